"""Each example is started as its header says, and seen to handle an event on a real server."""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from commands import Running, running
from conftest import wait_until
from documents import ROOT

EXAMPLES = ROOT / "examples"
FLASK = (sys.executable, "-m", "flask")
GUNICORN = (sys.executable, "-m", "gunicorn")
PROGRAMS = sorted(EXAMPLES.rglob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_every_example_says_what_it_is(program: Path) -> None:
    assert ast.get_docstring(ast.parse(program.read_text("utf-8")))


def address(server: Running) -> str:
    """Wait until a server says where it listens."""
    said = re.compile(r"(?:Running on|Listening at:) (http://127\.0\.0\.1:\d+)")
    wait_until(lambda: said.search(server.out + server.err) or server.process.poll() is not None)
    found = said.search(server.out + server.err)
    assert found, server.err
    return found[1]


def get(url: str) -> str:
    with urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def is_running(store: Path) -> bool:
    if not store.exists():
        return False
    connection = sqlite3.connect(store)
    try:
        (found,) = connection.execute("select status from status").fetchone() or ("{}",)
        return bool(json.loads(found).get("state") == "running")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()


def test_the_script_ships_an_order(tmp_path: Path, shop: Any, mongodb_replica_set: Any) -> None:
    text = (EXAMPLES / "orders.py").read_text("utf-8")
    (tmp_path / "orders.py").write_text(text.replace("mongodb://localhost:27017", mongodb_replica_set.uri))

    with running(tmp_path, "orders.py", command=(sys.executable, "-u")) as script:
        wait_until(lambda: is_running(tmp_path / "rigatoni.db") or script.process.poll() is not None)
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: script.out == "shipping pasta\n" or script.process.poll() is not None)
        assert script.out == "shipping pasta\n", script.err


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (FLASK, ("--app", str(EXAMPLES / "live.py"), "run", "--port", "0")),
        (
            GUNICORN,
            (
                *("-c", str(EXAMPLES / "gunicorn" / "gunicorn.conf.py"), "--chdir", str(EXAMPLES)),
                *("--bind", "127.0.0.1:0", "live:app"),
            ),
        ),
    ],
    ids=["flask", "gunicorn"],
)
def test_an_order_shows_in_a_browser_that_is_open(
    command: tuple[str, ...], arguments: tuple[str, ...], tmp_path: Path, shop: Any, mongodb_replica_set: Any
) -> None:
    with running(tmp_path, *arguments, command=command, RIGATONI_URI=mongodb_replica_set.uri) as server:
        url = address(server)
        assert "EventSource" in get(url)
        with urlopen(f"{url}/orders", timeout=60) as stream:
            assert stream.readline() == b"retry: 1000\n"
            told: list[bytes] = []

            def is_told() -> bool:
                # Again, because a process that has just begun does not see what was ordered before.
                urlopen(f"{url}/orders", data=urlencode({"item": "pasta"}).encode(), timeout=60).close()
                told.append(stream.readline() + stream.readline())
                return b'data: {"item": "pasta"}' in told[-1]

            wait_until(is_told)


def test_a_worker_of_gunicorn_handles_an_order_and_when_it_is_killed_another_does(
    tmp_path: Path, shop: Any, mongodb_replica_set: Any
) -> None:
    folder, store = EXAMPLES / "gunicorn", tmp_path / "rigatoni.db"
    environment = {"RIGATONI_URI": mongodb_replica_set.uri, "RIGATONI_STORE": str(store)}
    arguments = ("--chdir", str(folder), "-c", str(folder / "gunicorn.conf.py"), "--bind", "127.0.0.1:0", "web:app")

    with running(tmp_path, *arguments, command=GUNICORN, **environment) as server:
        url = address(server)
        wait_until(lambda: is_running(store) or server.process.poll() is not None)
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: shop.parcels.count_documents({}) == 1)
        active = json.loads(get(url))["pid"]
        assert shop.parcels.find_one()["worker"] == active
        os.kill(active, signal.SIGKILL)
        shop.orders.insert_one({"item": "rice"})
        wait_until(lambda: shop.parcels.count_documents({}) == 2)
        assert shop.parcels.find_one({"item": "rice"})["worker"] != active
