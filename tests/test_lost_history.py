"""An oplog that really forgets: while nobody watches, behind a slow handler, and around an idle collection."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import gevent
import pytest
from bson import Timestamp, json_util
from conftest import wait_until
from pymongo import MongoClient
from watchers import messages

from rigatoni import (
    ChangeEvent,
    ChangeStreamConfig,
    HandlerError,
    Hooks,
    InvalidResumeTokenError,
    RetryPolicy,
    SQLiteStore,
    Watcher,
)
from rigatoni.client import oldest
from rigatoni.mongod import ReplicaSet


class Forgetful:
    """A database on a server whose oplog can be made to forget all that was written so far."""

    def __init__(self, uri: str, client: MongoClient[Any], name: str, store: str) -> None:
        self.uri = uri
        self.name = name
        self.store = store
        self.orders = client[name].orders
        self._client = client
        self._numbers = count()

    def insert(self, times: int) -> list[int]:
        numbers = [next(self._numbers) for _ in range(times)]
        self.orders.insert_many([{"_id": number} for number in numbers])
        return numbers

    def now(self) -> Timestamp:
        last: Timestamp = self._client.admin.command("hello")["lastWrite"]["opTime"]["ts"]
        return last

    def forget(self) -> Timestamp:
        """Write elsewhere until the oplog begins after what was written last, and say when that was."""
        last = self.now()

        def forgotten() -> bool:
            self._client.elsewhere.filler.insert_one({"text": "x" * 250_000})
            return oldest(self._client) > last

        wait_until(forgotten)
        self._client.drop_database("elsewhere")
        return last

    def sent(self) -> int:
        """Count the events that the cursor of the orders has sent, while nobody waits for more."""
        return sum(each["cursor"]["nDocsReturned"] for each in self._cursors(type="idleCursor"))

    def _cursors(self, **kind: str) -> list[Any]:
        match = {"cursor.originatingCommand.$db": self.name, **kind}
        return list(self._client.admin.aggregate([{"$currentOp": {"idleCursors": True}}, {"$match": match}]))

    def kill_cursors(self) -> None:
        """Let the stream break off, whether it waits for a reply or not."""
        for each in self._cursors():
            self._client[self.name].command({"killCursors": "orders", "cursors": [each["cursor"]["cursorId"]]})

    def position_time(self) -> Timestamp:
        with closing(sqlite3.connect(self.store)) as connection:
            ((cluster_time,),) = connection.execute("select cluster_time from resume_tokens").fetchall()
        found: Timestamp = json_util.loads(cluster_time)
        return found

    def watcher(self, seen: list[int], **options: Any) -> Watcher:
        """Make a watcher that keeps the numbers of the orders that are inserted."""
        watcher = Watcher(self.uri, **{"database": self.name, "store": self.store, **options})
        insert = watcher.on("insert", collection="orders", database=self.name)
        insert(lambda event: seen.append(event.document_key["_id"]))
        return watcher


class Gaps(Hooks):
    def __init__(self) -> None:
        self.found: list[tuple[str, Timestamp, Timestamp]] = []

    def gap(self, stream: str, since: Any, until: Any) -> None:
        self.found.append((stream, since, until))


class Tokens(Hooks):
    """Remembers what a log must not show."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.stored: list[str] = []

    def saved(self, stream: str, token: Any) -> None:
        self.stored += [token["_data"]] if token else []


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    # Without frequent checkpoints the server truncates nothing, whatever the oplog's size.
    with ReplicaSet(oplog_size=1, arguments=["--syncdelay", "1"]) as replica_set:
        with MongoClient(replica_set.uri) as client:
            yield replica_set.uri, client


@pytest.fixture
def forgetful(server: Any, mongodb_database_name: str, store_path: str) -> Iterator[Forgetful]:
    uri, client = server
    yield Forgetful(uri, client, mongodb_database_name, store_path)
    client.drop_database(mongodb_database_name)


def test_what_the_oplog_forgot_while_nobody_watched_stops_every_start_until_a_policy_says_otherwise(
    forgetful: Forgetful, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    with forgetful.watcher(seen):
        first = forgetful.insert(3)
        wait_until(lambda: len(seen) == 3)
    stored = forgetful.position_time()
    forgetful.insert(3)
    forgotten = forgetful.forget()
    kept = forgetful.insert(3)

    for _ in range(2):
        watcher = forgetful.watcher(seen)
        with pytest.raises(InvalidResumeTokenError, match="on_history_lost") as caught:
            watcher.start()
        assert caught.value.code == 286 and watcher.state == "failed"
        assert repr(forgetful.name) in str(caught.value) and forgetful.store in str(caught.value)
        assert forgetful.position_time() == stored
    assert seen == first

    caplog.clear()
    gaps = Gaps()
    with forgetful.watcher(seen, on_history_lost="earliest", hooks=[gaps]):
        wait_until(lambda: len(seen) >= 6)
    assert seen == first + kept
    ((stream, since, until),) = gaps.found
    assert stream == forgetful.name and since == stored < forgotten < until
    (told,) = messages(caplog)
    assert str(since) in told and str(until) in told
    # Which is past for good: the position is a good one again.
    written = forgetful.insert(3)
    with forgetful.watcher(seen):
        wait_until(lambda: len(seen) >= 9)
    assert seen == first + kept + written


def test_with_now_only_what_comes_after_the_start_is_handled(
    forgetful: Forgetful, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    with forgetful.watcher(seen):
        forgetful.insert(1)
        wait_until(lambda: seen)
    stored = forgetful.position_time()
    forgetful.insert(3)
    forgetful.forget()
    forgetful.insert(3)
    last, gaps = forgetful.now(), Gaps()
    with forgetful.watcher(seen, on_history_lost="now", hooks=[gaps]):
        written = forgetful.insert(3)
        wait_until(lambda: len(seen) >= 4)
    assert seen == [0, *written]
    ((stream, since, until),) = gaps.found
    assert stream == forgetful.name and since == stored and until >= last
    (told,) = messages(caplog)
    assert str(since) in told and str(until) in told


@pytest.fixture(scope="module")
def overtaken(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forgetful]:
    """One whose stored position is forgotten, to start from again and again, each time with a copy of its store."""
    uri, client = server
    forgetful = Forgetful(uri, client, "overtaken", str(tmp_path_factory.mktemp("overtaken") / "tokens.db"))
    seen: list[int] = []
    with forgetful.watcher(seen):
        forgetful.insert(1)
        wait_until(lambda: seen)
    forgetful.insert(1)
    forgetful.forget()
    yield forgetful
    client.drop_database(forgetful.name)


def nothing(watcher: Watcher) -> None:
    """Declare nothing else."""


def another_handler(watcher: Watcher) -> None:
    # So that the cursor is no longer one on the orders alone, but on their database, or on all.
    database = watcher.database or "elsewhere"
    watcher.on("insert", collection="customers", database=database)(lambda event: None)


def a_stream_of_its_own(watcher: Watcher) -> None:
    watcher.watch("orders")


#: What is declared otherwise than in the run before, and the scope of the stream then.
CHANGES: dict[str, tuple[dict[str, Any], Callable[[Watcher], None], str]] = {
    "another pipeline": ({"config": ChangeStreamConfig(pipeline=[{"$addFields": {"x": 1}}])}, nothing, "overtaken"),
    "another handler": ({}, another_handler, "overtaken"),
    "a stream of its own": ({}, a_stream_of_its_own, "overtaken.orders"),
    "the deployment": ({"database": None}, another_handler, ""),
}


@pytest.mark.parametrize("policy", ["stop", "now", "earliest"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_position_that_was_lost_is_not_passed_over_because_something_else_is_declared_now(
    policy: str, change: str, overtaken: Forgetful, store_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(overtaken.store, store_path)
    stored = overtaken.position_time()
    options, declare, scope = CHANGES[change]
    gaps, seen = Gaps(), list[int]()
    watcher = overtaken.watcher(seen, store=store_path, on_history_lost=policy, hooks=[gaps], **options)
    declare(watcher)
    kept = overtaken.insert(3)

    if policy == "stop":
        before = positions(store_path)
        with pytest.raises(InvalidResumeTokenError, match="on_history_lost") as caught:
            watcher.start()
        assert caught.value.code == 286 and not gaps.found
        assert repr(scope) in str(caught.value) and store_path in str(caught.value)
        assert positions(store_path) == before and not seen
        return
    with watcher:
        later = overtaken.insert(3)
        wait_until(lambda: later[-1] in seen)
    due = kept + later if policy == "earliest" else later
    # From the earliest on, what was written for other starts comes before it, but nothing of what was forgotten.
    assert seen[-len(due) :] == due and (policy == "earliest" or seen == due) and not {0, 1} & {*seen}
    ((stream, since, until),) = gaps.found
    assert stream == scope and since == stored < until
    (told,) = messages(caplog)
    assert str(since) in told and str(until) in told


def positions(path: str) -> dict[str, Any]:
    store = SQLiteStore(path)
    try:
        return store.load("default")
    finally:
        store.close()


@pytest.mark.parametrize("policy", ["stop", "now", "earliest"])
def test_an_open_cursor_that_the_oplog_overtakes_behind_a_slow_handler_is_history_lost(
    policy: str, forgetful: Forgetful, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    times: list[Timestamp] = []
    is_free: list[bool] = []
    gaps = Gaps()
    watcher = forgetful.watcher(seen, max_in_flight=10, on_history_lost=policy, hooks=[gaps])

    @watcher.on("insert", collection="orders")
    def wait(event: ChangeEvent) -> None:
        times.append(event.cluster_time)
        while not is_free:
            gevent.sleep(0.01)

    assert watcher.start() == "running"
    written = forgetful.insert(50)
    # Ten in flight, ten that wait for room, and two replies read ahead; the server may have the rest in its hands.
    wait_until(lambda: forgetful.sent() == 40)
    written += forgetful.insert(50)
    forgotten = forgetful.forget()
    kept = forgetful.insert(3)
    assert forgetful.sent() == 40 and seen == written[:1] and not messages(caplog)
    is_free.append(True)

    if policy == "stop":
        with pytest.raises(InvalidResumeTokenError, match="on_history_lost") as caught:
            watcher.join(60)
        # CappedPositionLost: the cursor knows of it before anybody asks for a position.
        assert caught.value.code == 136 and watcher.state == "failed" and not gaps.found
        assert seen == written[: len(seen)]
        stored = forgetful.position_time()
        with pytest.raises(InvalidResumeTokenError) as caught:
            watcher.start()
        assert caught.value.code == 286 and forgetful.position_time() == stored <= times[-1]
        return
    wait_until(lambda: gaps.found)
    later = forgetful.insert(3)
    wait_until(lambda: later[-1] in seen)
    before = sum(number in written for number in seen)
    assert 40 <= before < len(written)
    due = written[:before] + (kept if policy == "earliest" else []) + later
    assert watcher.stop() and seen == due
    ((stream, since, until),) = gaps.found
    # What was read is not part of the gap, whether it was handled already or not.
    assert stream == forgetful.name and since == times[before - 1] < forgotten < until
    (told,) = messages(caplog)
    assert str(since) in told and str(until) in told
    # And the gap is behind it for good.
    again = forgetful.insert(3)
    with forgetful.watcher(seen):
        wait_until(lambda: len(seen) >= len(due) + 3)
    assert seen == due + again


def test_an_idle_collection_survives_a_busy_server_because_its_stream_moves_on(forgetful: Forgetful) -> None:
    seen: list[int] = []
    watcher = forgetful.watcher(seen)
    with watcher:
        forgetful.insert(1)
        wait_until(lambda: seen)
        forgotten = forgetful.forget()
        # While it runs, not only at its end.
        wait_until(lambda: forgetful.position_time() > forgotten)
    # The only event there ever was is forgotten; had its token been the position, this start would fail.
    missed = forgetful.insert(2)
    with forgetful.watcher(seen):
        wait_until(lambda: len(seen) >= 3)
    assert seen == [0, *missed]


def test_no_token_is_logged_whole_when_the_stream_reconnects_is_rescued_or_has_lost_history(
    forgetful: Forgetful, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    tokens = Tokens()
    # What is looked up changes, so that the event of the saved token passes once, and not again.
    looked_up = ChangeStreamConfig(pipeline=[{"$match": {"fullDocument.open": True}}], full_document="updateLookup")

    def noting(fails_at: int | None = None, **options: Any) -> Watcher:
        options = {"config": looked_up, "retry": RetryPolicy(max_attempts=1), "on_error": "stop", **options}
        watcher = Watcher(forgetful.uri, forgetful.name, store=forgetful.store, hooks=[tokens], **options)

        @watcher.on("update", collection="orders")
        def note(event: ChangeEvent) -> None:
            tokens.seen.append(event.id)
            if event.document_key["_id"] == fails_at:
                raise ValueError("not this one")

        return watcher

    forgetful.orders.insert_many([{"_id": number, "open": True} for number in (1, 2)])
    watcher = noting(fails_at=2)
    watcher.start()
    forgetful.orders.update_many({}, {"$set": {"n": 1}})
    with pytest.raises(HandlerError):
        watcher.join(60)
    forgetful.orders.update_one({"_id": 1}, {"$set": {"open": False}})
    with noting() as watcher:
        wait_until(lambda: len(tokens.seen) == 3)
        wait_until(lambda: forgetful.kill_cursors() or watcher.stats()["reconnects"])
        forgetful.orders.update_one({"_id": 2}, {"$set": {"n": 2}})
        wait_until(lambda: len(tokens.seen) == 4)
    forgetful.forget()
    for options in ({}, {"config": ChangeStreamConfig()}):
        with pytest.raises(InvalidResumeTokenError):
            noting(**options).start()
    with noting(on_history_lost="earliest"):
        pass

    for told in ("no longer lets its token through", "reconnecting after", "no longer holds", "no longer has"):
        assert told in caplog.text
    assert len(tokens.seen) == 4 and tokens.stored
    assert [token for token in tokens.seen + tokens.stored if token in caplog.text] == []
