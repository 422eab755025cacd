"""A program without gevent's patches ends with the exit code that it chose, whatever its watcher's thread was doing."""

from __future__ import annotations

from pathlib import Path

from programs import run_program

from rigatoni import SQLiteStore

WATCHER = """\
from rigatoni import ChangeStreamConfig, StreamError, Watcher

config = ChangeStreamConfig(max_reconnect_attempts=1, initial_backoff=0.01)
uri = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=50"
watcher = Watcher(uri, "shop", store=given["store"], config=config)
watcher.on()(say)
"""

#: A thread that ends beside the interpreter does harm by chance only.
TRIES = 5


def test_a_program_ends_well_right_after_the_stop_of_a_watcher_that_stood_by(tmp_path: Path, store_path: str) -> None:
    store = SQLiteStore(store_path)
    assert store.lock("default")
    stood_by = WATCHER + "say(state=watcher.start())\nsay(stopped=watcher.stop())\n"

    ended = [run_program(stood_by, tmp_path, store=store_path) for _ in range(TRIES)]

    store.unlock("default")
    assert all(program.lines == [{"state": "standby"}, {"stopped": True}] for program in ended)


def test_a_program_ends_well_right_after_a_start_that_failed(tmp_path: Path, store_path: str) -> None:
    failing = WATCHER + "try:\n    watcher.start()\nexcept StreamError as error:\n    say(category=error.category)\n"

    ended = [run_program(failing, tmp_path, store=store_path) for _ in range(TRIES)]

    assert all(program.lines == [{"category": "max_retries"}] for program in ended)
