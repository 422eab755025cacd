"""The line on the terminal while ``rigatoni run`` catches up."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, ENVIRONMENT, running
from conftest import wait_until

from rigatoni import SQLiteStore, Watcher

# A handler slow enough that there is something to see.
PROGRAM = """\
import logging, os, time
from rigatoni import Watcher

watcher = Watcher(os.environ["URI"], os.environ["DATABASE"], store="positions.db")

@watcher.on("insert", collection="orders")
def note(event):
    time.sleep(0.1)
    if event.full_document["n"] == 25:
        logging.getLogger("shop").warning("half of it")
"""
EVENTS = 42


@pytest.fixture
def backlog(database: Any, mongodb_replica_set: Any, tmp_path: Path) -> dict[str, str]:
    """A program that was away while changes were made for more than five seconds of the server's time."""
    (tmp_path / "program.py").write_text(PROGRAM)
    uri = str(mongodb_replica_set.uri)
    watcher = Watcher(uri, database.name, store=str(tmp_path / "positions.db"))
    watcher.on("insert", collection="orders")(lambda event: None)
    with watcher:
        pass

    def now() -> int:
        database.ticks.insert_one({})
        return int(database.command("ping")["operationTime"].time)

    for second in range(6):
        begin = now()
        database.orders.insert_many([{"n": 7 * second + n} for n in range(7)])
        wait_until(lambda begin=begin: now() > begin)
    return {"URI": uri, "DATABASE": database.name}


@contextmanager
def on_terminal(folder: Path, **environment: str) -> Iterator[tuple[Any, Shown]]:
    """Run the program with a terminal as its standard error stream; give the process, and what it has written."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    command = [*COMMAND, "run", "program:watcher"]
    run = subprocess.Popen(command, cwd=folder, env=ENVIRONMENT | environment, stderr=theirs, stdin=subprocess.DEVNULL)
    try:
        yield run, Shown(ours)
    finally:
        run.kill()
        run.wait()
        os.close(ours)
        os.close(theirs)


class Shown:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._text = ""

    @property
    def text(self) -> str:
        try:
            while data := os.read(self._descriptor, 65536):
                self._text += data.decode()
        except BlockingIOError:
            pass
        return self._text


def test_a_terminal_shows_how_far_it_is_until_it_has_caught_up(backlog: dict[str, str], tmp_path: Path) -> None:
    with on_terminal(tmp_path, COLUMNS="80", **backlog) as (run, shown):
        wait_until(lambda: "caught up after" in shown.text)
        run.send_signal(signal.SIGINT)
        assert run.wait(timeout=60) == 0
        text = shown.text

    looks = re.findall(r"\rcatching up: (\d+) %, [\d.smh ]+ behind", text)
    assert len(looks) >= 2
    assert re.search(r" events/s, [\d.smh ]+ left", text)
    assert max(len(part) for part in re.split("[\r\n]", text) if part.startswith("catching")) < 80
    # A log line stands on a line of its own, and the last word comes once.
    assert re.search(r"\r +\r[^\r\n]* WARNING shop: half of it\r\n", text)
    assert text.count("rigatoni: caught up after") == 1


def test_a_pipe_shows_nothing_of_it(backlog: dict[str, str], tmp_path: Path) -> None:
    def is_through() -> bool:
        store = SQLiteStore(tmp_path / "positions.db")
        handled = (store.status("default") or {}).get("handled", 0)
        store.close()
        return bool(handled >= EVENTS)

    with running(tmp_path, "run", "program:watcher", **backlog) as run:
        wait_until(is_through)
        assert run.end(signal.SIGINT) == 0
        assert "half of it" in run.err

    assert "catching up:" not in run.err and "\r" not in run.err and "caught up" not in run.err
