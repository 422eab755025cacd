"""An oplog that really forgets: while nobody watches, behind a slow handler, and around an idle collection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from typing import Any

import gevent
import pytest
from bson import Timestamp, json_util
from conftest import wait_until
from pymongo import MongoClient
from watchers import messages

from rigatoni import ChangeEvent, Hooks, InvalidResumeTokenError, Watcher
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

    def oldest(self) -> Timestamp:
        found: Any = self._client.local["oplog.rs"].find_one(sort=[("$natural", 1)])
        return found["ts"]

    def forget(self) -> Timestamp:
        """Write elsewhere until the oplog begins after what was written last, and say when that was."""
        last = self.now()

        def forgotten() -> bool:
            self._client.elsewhere.filler.insert_one({"text": "x" * 250_000})
            return self.oldest() > last

        wait_until(forgotten)
        self._client.drop_database("elsewhere")
        return last

    def sent(self) -> int:
        """Count the events that the cursor of the orders has sent, while nobody waits for more."""
        cursors = self._client.admin.aggregate(
            [
                {"$currentOp": {"idleCursors": True}},
                {"$match": {"type": "idleCursor", "cursor.originatingCommand.$db": self.name}},
            ]
        )
        return sum(each["cursor"]["nDocsReturned"] for each in cursors)

    def position_time(self) -> Timestamp:
        with closing(sqlite3.connect(self.store)) as connection:
            ((cluster_time,),) = connection.execute("select cluster_time from resume_tokens").fetchall()
        found: Timestamp = json_util.loads(cluster_time)
        return found

    def watcher(self, seen: list[int], **options: Any) -> Watcher:
        """Make a watcher that keeps the numbers of the orders that are inserted."""
        watcher = Watcher(self.uri, self.name, store=self.store, **options)
        watcher.on("insert", collection="orders")(lambda event: seen.append(event.document_key["_id"]))
        return watcher


class Gaps(Hooks):
    def __init__(self) -> None:
        self.found: list[tuple[str, Timestamp, Timestamp]] = []

    def gap(self, stream: str, since: Any, until: Any) -> None:
        self.found.append((stream, since, until))


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
