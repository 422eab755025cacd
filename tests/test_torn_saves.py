"""Ends in the middle of a save, or just before it: the position is the old one or the new one, and nothing is lost."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import BOTH, Program
from watchers import Make, collecting, watchers

from rigatoni import HandlerError, Hooks, SQLiteStore, StreamError

CRASHING = """
from rigatoni import SQLiteStore, Watcher


class Crashing(SQLiteStore):
    def save(self, name, positions, status=None):
        if given["last"] in handled:
            os.kill(os.getpid(), signal.SIGKILL) if given["kills"] else os._exit(9)
        super().save(name, positions, status)
        say(saved=handled[-1:])


handled = []
watcher = Watcher(given["uri"], given["database"], store=Crashing(given["store"]), save_interval=0.02)


@watcher.on("insert")
def handle(event):
    handled.append(event.document_key["_id"])
    say(handled=handled[-1])


watcher.start()
say(state=watcher.state)
watcher.join()
"""


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any, store_path: str) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"store": store_path, **options})


@BOTH
@pytest.mark.parametrize("kills", [True, False], ids=["SIGKILL", "os._exit"])
def test_a_process_that_ends_between_the_return_of_a_handler_and_the_save_repeats_that_very_event(
    database: Any, mongodb_replica_set: Any, make: Make, store_path: str, tmp_path: Path, patched: bool, kills: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    with Program(CRASHING, tmp_path, patched=patched, kills=kills, last=3, **given) as program:
        program.wait_said("state")
        for number in (1, 2):
            database.orders.insert_one({"_id": number})
            program.wait_for(lambda n=number: [n] in program.said("saved"))
        database.orders.insert_one({"_id": 3})
        assert program.end() == (-signal.SIGKILL if kills else 9)
        assert program.said("handled") == [1, 2, 3]
    database.orders.insert_one({"_id": 4})
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    wait_until(lambda: 4 in seen)
    assert seen == [3, 4]


class Heard(Hooks):
    """Which cursors were freed."""

    def __init__(self) -> None:
        self.closed_streams: list[str] = []

    def closed(self, stream: str, error: BaseException | None) -> None:
        self.closed_streams.append(stream)


def tear(store: SQLiteStore, error: BaseException, armed: Callable[[], bool]) -> None:
    """Let a transaction that writes a position be ended after its first statement."""
    write = store._connections.write

    def torn(statements: Any) -> int:
        def until_torn() -> Any:
            for statement in statements:
                yield statement
                if armed() and "resume_tokens" in statement[0]:
                    raise error

        return write(until_torn())

    store._connections.write = torn


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, gevent.GreenletExit, MemoryError, gevent.Timeout])
def test_what_ends_a_save_in_the_middle_ends_the_watcher_with_the_old_position_and_nothing_is_lost(
    database: Any, make: Make, store_path: str, error: type[BaseException]
) -> None:
    store, heard = SQLiteStore(store_path), Heard()
    watcher = make(store=store, hooks=[heard])
    seen = collecting(watcher, "insert")
    tear(store, error(), armed=lambda: 2 in seen)
    watcher.start()
    started = store.load("default")
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: store.load("default") != started)
    stored = store.load("default")
    database.orders.insert_one({"_id": 2})
    with pytest.raises((error, StreamError)):
        watcher.join(60)
    assert watcher.state == "failed" and heard.closed_streams == [database.name]
    assert store.load("default") == stored, "all of it is undone"
    store.close()
    again = make()
    seen = collecting(again, "insert")
    again.start()
    wait_until(lambda: seen)
    assert again.stop() and seen == [2]


def test_a_saver_that_is_killed_while_it_waits_for_the_file_ends_the_watcher_and_nothing_is_lost(
    database: Any, make: Make, store_path: str
) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")

    @watcher.on("delete")
    def kill(event: Any) -> None:
        # Here, because greenlets of a hub are killed in its thread.
        saver, *_ = watcher._life._killable
        saver.kill(block=False)

    watcher.start()
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen)
    other = sqlite3.connect(store_path, isolation_level=None, timeout=60)
    other.execute("begin immediate")
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: len(seen) == 2)
    database.orders.delete_one({"_id": 2})
    wait_until(lambda: watcher.error is not None)
    other.execute("rollback")
    other.close()
    with pytest.raises(HandlerError, match="killed by somebody else"):
        watcher.join(60)
    # The last save was made by its end.
    again = make()
    seen = collecting(again, "insert")
    again.start()
    database.orders.insert_one({"_id": 3})
    wait_until(lambda: seen)
    assert again.stop() and seen == [3]
