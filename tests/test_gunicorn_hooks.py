"""gunicorn's hooks where something is missing: the server, the extension, the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pages import PREFIX, health
from pymongo import MongoClient
from serving import SHOP, gunicorn, write

from rigatoni.contrib.gunicorn import hooks
from rigatoni.mongod import ReplicaSet

GEVENT = ("--worker-class", "gevent", "--workers", "2")
PLAIN = """\
import json
import os

from rigatoni import Watcher

watcher = Watcher.from_mapping(os.environ, "FLASK_RIGATONI_")


@watcher.on("insert", collection="orders")
def note(event):
    with open("seen", "a") as seen:
        seen.write(f"{event.document_key['_id']} {os.getpid()}\\n")


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "state": watcher.state}).encode()]


async def asynchronous(scope, receive, send):
    if scope["type"] == "http":
        body = json.dumps({"pid": os.getpid(), "state": watcher.state}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
"""
NAMED = 'from rigatoni.contrib.gunicorn import hooks\n\npost_worker_init, worker_exit = hooks("plain:watcher")\n'


@pytest.mark.parametrize("options", [GEVENT, ("--workers", "2")], ids=["gevent", "sync"])
def test_without_a_server_the_application_serves_and_the_watcher_keeps_trying(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    write(tmp_path, {"shop.py": SHOP.replace("Rigatoni()", f'Rigatoni(page={PREFIX!r}, authorize="public")')})
    with ReplicaSet() as replica_set:
        replica_set.kill(0)
        with gunicorn(tmp_path, replica_set.uri, "shop", *options) as server:
            server.wait_for(lambda: sorted(server.states(2).values()) == ["standby", "starting"])
            server.wait_for(lambda: server.status().get("state") == "starting")
            server.wait_for(lambda: "the watcher is starting" in health(server.port)[1])
            assert health(server.port)[0] == 503
            replica_set.restart(0)
            server.wait_for(server.active)
            server.wait_for(lambda: health(server.port)[0] == 200)
            with MongoClient(replica_set.uri) as client:
                client.shop.orders.insert_one({"_id": 1})
            server.wait_seen(1)
            replica_set.kill(0)
            assert server.end() == 0
        with gunicorn(tmp_path, replica_set.uri, "shop", *options) as server:
            server.states(2)
            # Also while it tries.
            assert server.end() == 0
            assert "SIGKILL" not in server.log and "Traceback" not in server.log


@pytest.mark.parametrize(
    ("app", "options"),
    [("plain:app", GEVENT), ("plain:app", ("--workers", "2")), ("plain:asynchronous", ("--worker-class", "asgi"))],
    ids=["gevent", "sync", "asgi"],
)
def test_any_application_can_name_its_watcher(
    tmp_path: Path, mongodb_replica_set: Any, database: Any, app: str, options: tuple[str, ...]
) -> None:
    write(tmp_path, {"plain.py": PLAIN})
    with gunicorn(tmp_path, mongodb_replica_set.uri, database.name, *options, conf=NAMED, app=app) as server:
        server.wait_for(server.active)
        assert server.active() in server.states(1 if "asgi" in options else 2)
        database.orders.insert_one({"_id": 1})
        server.wait_seen(1)
        assert server.end() == 0
        assert server.status()["state"] == "stopped"


@pytest.mark.parametrize("options", [GEVENT, ("--workers", "2")], ids=["gevent", "sync"])
def test_what_keeps_a_watcher_from_starting_is_logged_and_fails_no_worker(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    write(tmp_path, {"plain.py": PLAIN})
    with gunicorn(tmp_path, "mongodb://127.0.0.1:9/", "shop", *options, app="plain:app") as server:
        server.states(2)
        assert "this worker starts without a watcher" in server.log
        assert 'hooks("module:watcher")' in server.log
        assert server.end() == 0


def test_a_store_that_cannot_be_used_is_logged_and_fails_no_worker(tmp_path: Path) -> None:
    (tmp_path / "tokens.db").mkdir()
    with gunicorn(tmp_path, "mongodb://127.0.0.1:9/", "shop", *GEVENT) as server:
        server.wait_for(lambda: set(server.states(2).values()) == {"failed"})
        assert "ResumeTokenPersistenceError" in server.log
        assert server.end() == 0


#: What is killed without mercy is not always logged.
TELLING = """
from gunicorn.arbiter import Arbiter

kill_workers = Arbiter.kill_workers


def tell(self, number):
    print("left:", len(self.WORKERS), int(number), flush=True)
    kill_workers(self, number)


Arbiter.kill_workers = tell
"""

HANGING = PLAIN.replace(
    "def note(event):\n", "def note(event):\n    open('begun', 'w').close()\n    time.sleep(3600)\n"
)


@pytest.mark.parametrize("options", [GEVENT, ("--workers", "2")], ids=["gevent", "sync"])
def test_a_handler_that_hangs_does_not_keep_a_worker_from_ending(
    tmp_path: Path, mongodb_replica_set: Any, database: Any, options: tuple[str, ...]
) -> None:
    write(tmp_path, {"plain.py": "import time\n" + HANGING})
    options, conf = (*options, "--graceful-timeout", "10"), NAMED + TELLING
    with gunicorn(tmp_path, mongodb_replica_set.uri, database.name, *options, conf=conf, app="plain:app") as server:
        server.states(2)
        server.wait_for(server.active)
        database.orders.insert_one({"_id": 1})
        server.wait_for((tmp_path / "begun").exists)

        assert server.end() == 0
        # Patched the watcher itself says so, else whoever stops it.
        assert "plain:note with" in server.log
        assert [line for line in server.log.splitlines() if "left:" in line] == ["left: 2 15", "left: 0 9"]


@pytest.mark.parametrize("target", ["", "shop", "shop.watcher", "mongodb://h", "shop:", "a b:c"])
def test_what_names_no_watcher_is_refused_when_the_configuration_is_read(target: str) -> None:
    with pytest.raises(ValueError, match="module:name"):
        hooks(target)
