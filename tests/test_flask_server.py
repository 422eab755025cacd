"""The server and the commands of Flask: the watcher runs where requests are served or it is asked to, nowhere else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import ENVIRONMENT
from serving import SHOP, flask, write

from rigatoni import SQLiteStore

SERVE = ("run", "--port", "0")


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


def fill(database: Any, first: int, count: int = 20) -> None:
    database.orders.insert_many([{"_id": number} for number in range(first, first + count)])


def test_the_development_server_watches_from_its_first_request_on(tmp_path: Path, uri: str, database: Any) -> None:
    with flask(tmp_path, uri, database.name, *SERVE) as server:
        server.wait_for(lambda: "Running on" in server.log)
        assert server.status() == {}

        assert server.get()["pid"] == server.process.pid
        server.wait_for(server.active)
        fill(database, 0)
        server.wait_seen(20)
        server.end(signal.SIGINT)
        assert server.status()["state"] == "stopped"
    assert set(server.seen.values()) == {1}


def test_the_reloader_starts_only_where_requests_are_served_and_repeats_nothing(
    tmp_path: Path, uri: str, database: Any
) -> None:
    with flask(tmp_path, uri, database.name, "run", "--debug", "--port", "0") as server:
        server.wait_for(server.get)
        server.wait_for(server.active)
        first = server.active()
        fill(database, 0)
        server.wait_seen(20)
        # Later than what the reloader has seen, also where the file system counts in seconds.
        os.utime(tmp_path / "shop.py", (time.time() + 5, time.time() + 5))
        server.wait_for(lambda: (server.get() or {}).get("pid", first) != first)
        server.wait_for(lambda: server.active() not in (first, None))
        fill(database, 20)
        server.wait_seen(40)

        assert first != server.process.pid
        assert server.active() != server.process.pid
        assert "standing by" not in server.log and "Traceback" not in server.log
    assert set(server.seen.values()) == {1}


EARLY = SHOP + "\n\napp = create_app()\nrigatoni.start()\n"


@pytest.mark.parametrize("options", [(), ("--debug",)], ids=["plain", "with the reloader"])
def test_a_start_by_hand_needs_no_request_and_is_none_where_only_files_are_watched(
    tmp_path: Path, uri: str, database: Any, options: tuple[str, ...]
) -> None:
    write(tmp_path, {"shop.py": EARLY})
    with flask(tmp_path, uri, database.name, "run", *options, "--port", "0") as server:
        server.wait_for(server.active)
        assert (server.active() == server.process.pid) == (not options)
        assert "standing by" not in server.log


def test_it_runs_in_the_foreground_until_a_signal_and_stands_by_for_a_server(
    tmp_path: Path, uri: str, database: Any
) -> None:
    with flask(tmp_path, uri, database.name, "rigatoni", "run") as worker:
        worker.wait_for(worker.active)
        fill(database, 0)
        worker.wait_seen(20)
        with flask(tmp_path, uri, database.name, *SERVE) as server:
            server.wait_for(server.get)
            server.wait_for(lambda: server.get()["state"] == "standby")
            assert worker.end() == 0
            server.wait_for(lambda: server.active() == server.process.pid)
            fill(database, 20)
            server.wait_seen(40)
    assert "rigatoni.watcher: watcher 'default' watches" in worker.log
    assert set(server.seen.values()) == {1}


def ended(folder: Path, *arguments: str, given: str | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Flask to its end."""
    return subprocess.run(
        [sys.executable, "-m", "flask", "--app", "shop", *arguments],
        cwd=folder,
        env=ENVIRONMENT | {f"FLASK_RIGATONI_{key}": value for key, value in settings.items()},
        input=given,
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_no_other_command_starts_it(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": SHOP})
    nowhere = {"URI": "mongodb://127.0.0.1:9/", "STORE": str(tmp_path / "tokens.db")}

    shell = ended(tmp_path, "shell", given="from shop import rigatoni; print(rigatoni.watcher.state)\n", **nowhere)
    routes = ended(tmp_path, "routes", **nowhere)

    assert "created" in shell.stdout and routes.returncode == 0
    assert not (tmp_path / "tokens.db").exists()


def test_the_commands_of_a_consumer_know_the_store_and_the_name_of_the_application(
    tmp_path: Path, uri: str, database: Any
) -> None:
    settings = {"URI": uri, "DATABASE": database.name, "STORE": str(tmp_path / "tokens.db"), "NAME": "search"}
    with flask(tmp_path, uri, database.name, "rigatoni", "run", FLASK_RIGATONI_NAME="search") as worker:
        worker.wait_for(lambda: (SQLiteStore(tmp_path / "tokens.db").status("search") or {}).get("state") == "running")
        status = ended(tmp_path, "rigatoni", "status", **settings)
        assert worker.end() == 0
    tokens = ended(tmp_path, "rigatoni", "tokens", "list", **settings)
    letters = ended(tmp_path, "rigatoni", "dead-letters", "replay", "--all", **settings)

    assert (status.returncode, status.stdout.splitlines()[0]) == (0, "search: well")
    assert tokens.returncode == 0 and database.name in tokens.stdout
    assert letters.returncode == 0 and "replayed 0 of 0" in letters.stderr


def test_an_application_without_a_watcher_is_told_how_it_gets_one(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": "from flask import Flask\n\napp = Flask(__name__)\n"})
    for command in ("run", "status"):
        refused = ended(tmp_path, "rigatoni", command)
        assert refused.returncode == 2
        assert "has no watcher: write Rigatoni(app)" in refused.stderr


def test_a_fatal_error_ends_it_with_its_exit_code(tmp_path: Path) -> None:
    write(tmp_path, {"shop.py": SHOP})
    refused = ended(tmp_path, "rigatoni", "run", URI="mongodb://127.0.0.1:9/", STORE="/nowhere/tokens.db")
    wrong = ended(tmp_path, "rigatoni", "run", URI="mongodb://127.0.0.1:9/", CONCURRENCY="s3cret")

    assert refused.returncode == 16 and "rigatoni: persistence: " in refused.stderr
    assert wrong.returncode == 10 and "configuration: RIGATONI_CONCURRENCY must be" in wrong.stderr
    assert "s3cret" not in wrong.stderr
