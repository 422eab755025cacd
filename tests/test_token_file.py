"""What befalls the token file of a watcher: damage, removal, foreign locks, the wrong owner; and what it does then."""

from __future__ import annotations

import logging
import os
import re
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import BOTH, Program, run_program
from watchers import Make, collecting, messages, watchers

from rigatoni import InvalidResumeTokenError, ResumeTokenPersistenceError, SQLiteStore

WATCH = """
import gevent
from rigatoni import SQLiteStore, Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"])


@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"])
"""


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any, store_path: str) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"store": store_path, **options})


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any, store_path: str) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}


def run_and_stop(make: Make, database: Any, *keys: Any) -> None:
    """Have documents handled, so that a position behind them is stored."""
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_many([{"_id": key} for key in keys])
    wait_until(lambda: seen == [*keys])
    assert watcher.stop()


# -- at the start


def as_text(path: Path) -> None:
    path.write_text("name = 'shop'\n" * 400)


def without_header(path: Path) -> None:
    path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])


def without_pages(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096))


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [as_text, without_header, without_pages, as_directory])
def test_a_damaged_file_stops_the_start_is_kept_and_once_restored_nothing_is_lost(
    database: Any, make: Make, store_path: str, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = Path(store_path)
    run_and_stop(make, database, 1, 2)
    backup = path.read_bytes()
    damage(path)
    damaged = path.is_file() and path.read_bytes()
    database.orders.insert_one({"_id": 3})
    watcher = make()
    seen = collecting(watcher, "insert")
    with pytest.raises(ResumeTokenPersistenceError) as raised:
        watcher.start()
    assert store_path in str(raised.value) and watcher.state == "failed"
    assert (path.is_file() and path.read_bytes()) == damaged
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_bytes(backup)
    assert watcher.start() == "running"
    wait_until(lambda: seen)
    assert watcher.stop() and seen == [3]


@pytest.mark.parametrize("start_at", [None, "earliest"])
def test_an_emptied_file_is_an_empty_store_and_a_start_from_now_is_warned_of_with_its_path(
    database: Any, make: Make, store_path: str, caplog: pytest.LogCaptureFixture, start_at: Any
) -> None:
    run_and_stop(make, database, 1)
    os.truncate(store_path, 0)
    database.orders.insert_one({"_id": 2})
    caplog.clear()
    watcher = make(start_at=start_at)
    seen = collecting(watcher, "insert", collection="orders")
    watcher.start()
    database.orders.insert_one({"_id": 3})
    wait_until(lambda: 3 in seen)
    warnings = [text for text in messages(caplog, logging.WARNING) if store_path in text]
    if start_at is None:
        assert len(warnings) == 1 and os.path.isabs(store_path) and "from now" in warnings[0]
        assert seen == [3]
    else:
        assert warnings == [] and seen == [1, 2, 3]


@pytest.mark.parametrize(("place", "digits"), [(18, "2BFF"), (22, "FFFF")], ids=["version", "behind the time"])
def test_a_token_that_the_server_cannot_read_is_named_by_its_stream_and_its_file(
    database: Any, make: Make, store_path: str, place: int, digits: str
) -> None:
    run_and_stop(make, database, 1)
    with closing(sqlite3.connect(store_path)) as connection, connection:
        ((token,),) = connection.execute("select token from resume_tokens").fetchall()
        begin = token.index('"82') + 1 + place
        forged = token[:begin] + digits + token[begin + len(digits) :]
        connection.execute("update resume_tokens set token = ?", [forged])
    watcher = make()
    collecting(watcher, "insert")
    named = re.escape(f"the position of stream {database.name!r} in {store_path}: ")
    with pytest.raises(InvalidResumeTokenError, match=f"^{named}the server cannot read the resume token"):
        watcher.start()


FORBIDDEN = (
    WATCH
    + """
import sqlite_utils
from rigatoni import ResumeTokenPersistenceError

# What is imported late must be there: another user may not find it.
warm = Watcher(given["uri"], given["database"], name="warm", store=given["warm"])
warm.on("insert")(handle)
warm.start()
warm.stop()
if os.geteuid() == 0:
    os.setuid(65534)
try:
    watcher.start()
except ResumeTokenPersistenceError as error:
    say(refused=str(error), state=watcher.state)
"""
)


@BOTH
@pytest.mark.parametrize("is_directory", [True, False], ids=["directory", "file"])
def test_a_file_that_may_not_be_written_stops_the_start_with_its_path_and_the_user(
    given: Any, tmp_path: Path, patched: bool, is_directory: bool
) -> None:
    # Not in pytest's directory, which other users may not enter; a superuser, who may write everything, becomes nobody.
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "tokens.db")
        store = SQLiteStore(path)
        store.open()
        store.close()
        os.chmod(path, 0o666 if is_directory else 0o444)
        os.chmod(directory, 0o555 if is_directory else 0o777)
        given = {**given, "store": str(path), "warm": given["store"]}
        program = run_program(FORBIDDEN, tmp_path, patched=patched, **given)
        os.chmod(directory, 0o755)
    (refused,) = program.said("refused")
    assert str(path) in refused and "user id" in refused
    assert program.said("state") == ["failed"]


# -- while it runs


@pytest.mark.parametrize("suffix", ["", ".default.lock"], ids=["database", "lock"])
@pytest.mark.parametrize("is_replaced", [True, False], ids=["replaced", "unlinked"])
def test_a_file_that_is_unlinked_or_replaced_while_it_is_in_use_ends_the_watcher_and_is_named(
    database: Any, make: Make, store_path: str, tmp_path: Path, suffix: str, is_replaced: bool
) -> None:
    path = store_path + suffix
    watcher = make()
    collecting(watcher, "insert")
    watcher.start()
    if is_replaced:
        (tmp_path / "other").touch()
        os.replace(tmp_path / "other", path)
    else:
        os.unlink(path)
    # Seconds: it looks with each status row, once a second.
    with pytest.raises(ResumeTokenPersistenceError) as raised:
        watcher.join(10)
    assert f" {path} " in str(raised.value)
    assert watcher.state == "failed"


def test_in_a_patched_process_it_ends_the_watcher_too(given: Any, tmp_path: Path) -> None:
    with Program(WATCH + "say(state=watcher.start())\nwatcher.join()\n", tmp_path, patched=True, **given) as program:
        program.wait_said("state")
        os.unlink(given["store"])
        assert program.end() == 1
        assert f"ResumeTokenPersistenceError: the store {given['store']} cannot be used" in program.complaints


def fill(store: SQLiteStore) -> None:
    """Let what is open of it not grow any more; what is opened anew has room again."""
    for opened, lock in tuple(store._connections._open.values()):
        with lock:
            opened.execute("pragma max_page_count=1")


def test_a_full_disk_ends_the_watcher_after_its_patience_and_once_there_is_room_nothing_is_lost(
    database: Any, make: Make, store_path: str
) -> None:
    run_and_stop(make, database, 1)
    patience, seen = 0.3, []
    watcher = make(store=SQLiteStore(store_path, patience=patience))

    @watcher.on("insert", ack="manual")
    def handle(event: Any) -> None:
        seen.append(event.document_key["_id"])
        # While the last one is unfinished, the position is the token of the one before it.
        if "is_last" not in event.full_document:
            event.ack()

    watcher.start()
    began = monotonic()
    fill(watcher.store)
    # A token holds the key, so that the position needs pages of its own.
    keys = [f"{number} {10_000 * 'x'}" for number in range(4)]
    database.orders.insert_many([*({"_id": key} for key in keys[:3]), {"_id": keys[3], "is_last": True}])
    with pytest.raises(ResumeTokenPersistenceError, match="disk is full; free some space") as raised:
        watcher.join(60)
    assert monotonic() - began >= patience
    assert store_path in str(raised.value) and watcher.state == "failed"
    assert seen == keys
    database.orders.insert_one({"_id": "new"})
    assert watcher.start() == "running"
    wait_until(lambda: "new" in seen)
    # What was done on the full disk comes again, and nothing older.
    assert watcher.stop() and seen == [*keys, *keys, "new"]


def emptied(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [emptied, without_header, without_pages])
def test_a_file_that_is_damaged_while_it_is_in_use_is_never_a_silent_start_from_now(
    database: Any, make: Make, store_path: str, damage: Callable[[Path], None]
) -> None:
    run_and_stop(make, database, 1)
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    damage(Path(store_path))
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: seen)
    watcher.stop()
    database.orders.insert_one({"_id": 3})
    again = make()
    seen = collecting(again, "insert")
    try:
        again.start()
    except ResumeTokenPersistenceError as error:
        assert store_path in str(error)
    else:
        # SQLite had what was damaged in its memory, and has written it anew.
        wait_until(lambda: seen)
        assert seen[-1] == 3


LOCKED = (
    WATCH
    + """
def tick():
    last = time.monotonic()
    while True:
        gevent.sleep(0.005)
        now = time.monotonic()
        gaps.append(now - last)
        last = now


@watcher.on("delete")
def start_ticking(event):
    # In the watcher's hub, which in an unpatched process is not the main one.
    gevent.spawn(tick)
    say(ticking=True)


@watcher.on("update")
def tell(event):
    for opened, _ in watcher.store._connections._open.values():
        say(busy_timeout=opened.execute("pragma busy_timeout").fetchone()[0])
    say(blocked=sum(gap for gap in gaps if gap > 0.05), longest=max(gaps), all=sum(gaps), last=event.id)


gaps = []
say(state=watcher.start())
watcher.join()
"""
)


@BOTH
@pytest.mark.parametrize("seconds", [1.0, pytest.param(10.0, marks=pytest.mark.faults)])
def test_a_lock_of_another_process_holds_up_neither_hub_nor_handlers_and_the_position_is_saved_later(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool, seconds: float
) -> None:
    reader = SQLiteStore(given["store"])
    with Program(LOCKED, tmp_path, patched=patched, **given) as program:
        program.wait_said("state")
        database.orders.insert_one({"_id": 0})
        database.orders.delete_one({"_id": 0})
        program.wait_said("ticking")
        other = sqlite3.connect(given["store"], isolation_level=None, timeout=60)
        other.execute("begin exclusive")
        stored = reader.load("default")
        for number in range(1, 21):
            database.orders.insert_one({"_id": number})
            # As long as the lock is to last.
            gevent.sleep(seconds / 20)
        program.wait_for(lambda: program.said("handled") == list(range(21)))
        assert reader.load("default") == stored
        other.execute("rollback")
        other.close()
        database.orders.update_one({"_id": 1}, {"$set": {"packed": True}})
        blocked, longest, measured = (program.wait_said(key) for key in ("blocked", "longest", "all"))
        print(f"locked for {seconds} s: the hub stood still for {longest * 1000:.0f} ms at most")
        # As a sum, because anything else on this machine may hold up a process now and then; who waits inside SQLite
        # stands still nearly all the time.
        assert measured >= seconds and blocked < measured / 2
        # And no statement waits inside SQLite even for a moment, which no clock can tell on a busy machine.
        assert set(program.said("busy_timeout")) == {0}
        (last,) = program.said("last")
        program.wait_for(lambda: reader.load("default")[database.name].token["_data"] >= last)
        program.kill()
    reader.close()
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_one({"_id": "new"})
    wait_until(lambda: seen)
    assert seen == ["new"]


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold what another process holds that writes and does not end."""
    SQLiteStore(path).save("other", {})
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin exclusive")
        yield


@BOTH
# Two different ones, because two of a kind may arrive as one.
@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT, signal.SIGTERM]], ids=["one", "two"])
def test_a_start_that_is_told_to_stop_does_not_wait_for_a_store_that_is_locked(
    given: dict[str, str], tmp_path: Path, patched: bool, signals: list[signal.Signals]
) -> None:
    text = "import logging\nlogging.basicConfig(level=logging.INFO)\n" + WATCH + "\n\nwatcher.run()\n"
    with locked(given["store"]), Program(text, tmp_path, patched=patched, **given) as program:
        program.wait_for(lambda: "watches" in program.complaints)
        for each in signals:
            program.signal(each)
        assert program.end() == 0, program.complaints
        # The patience of the store is 30 s. Less has passed, else it would have failed.
        assert "fails" not in program.complaints


STOPPED = (
    WATCH
    + """
say(state=watcher.start())
while not os.path.exists("stop"):
    time.sleep(0.01)
began = time.monotonic()
say(stopped=watcher.stop(timeout=0.3), seconds=time.monotonic() - began)
say(joined=watcher.join())
"""
)


@BOTH
def test_a_stop_does_not_wait_for_a_store_that_is_locked_and_what_was_handled_is_saved_afterwards(
    database: Any, given: dict[str, str], make: Make, tmp_path: Path, patched: bool
) -> None:
    with Program(STOPPED, tmp_path, patched=patched, **given) as program:
        program.wait_said("state")
        with locked(given["store"]):
            database.orders.insert_one({"_id": 1})
            program.wait_said("handled")
            (tmp_path / "stop").touch()
            assert program.wait_said("stopped") is False
            # Told are 0.3 s and 1.5 s; the patience of the store is 30 s.
            assert program.said("seconds")[0] < 4
            assert f"saving into {given['store']}" in program.complaints
        assert program.wait_said("joined") is True
        assert program.end() == 0
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: seen)
    assert seen == [2]
