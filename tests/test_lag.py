"""Lag and headroom tell the truth: 0 only when everything is read and finished, and nothing while it is unknown."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from conftest import wait_until
from failing import Failing, Watched
from programs import Program
from watchers import Make, collecting, watchers

from rigatoni import ChangeStreamConfig, Hooks, Watcher
from rigatoni.mongod import ReplicaSet

QUICK = ChangeStreamConfig(max_await_time=0.1, max_reconnect_attempts=0, initial_backoff=0.01)

ACTIVE = """
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"])
watcher.on()(print)
say(state=watcher.start())
watcher.join()
"""


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


@contextmanager
def writing(collection: Any) -> Iterator[None]:
    """Have another thread insert documents all the time."""
    end = threading.Event()

    def write() -> None:
        while not end.wait(0.005):
            collection.insert_one({})

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


class Replies(Hooks):
    """Counts how often a stream moved on."""

    def __init__(self) -> None:
        self.saved_tokens: set[str] = set()

    def saved(self, stream: str, token: Any) -> None:
        self.saved_tokens.add(token["_data"])


def lags(watcher: Watcher, count: int = 30) -> list[float]:
    """Ask for the lag often, for longer than several awaits."""
    found = []
    for _ in range(count):
        found.append(watcher.stats()["lag"])
        sleep(0.03)
    return found


def test_a_stream_without_events_is_not_behind_from_the_beginning(database: Any, make: Make) -> None:
    watcher = make(config=QUICK)
    collecting(watcher)
    watcher.start()

    assert watcher.stats()["lag"] is not None
    wait_until(lambda: watcher.stats()["lag"] == 0)
    assert lags(watcher).count(0.0) >= 20


@pytest.mark.parametrize("collections", [["orders"], ["orders", "parcels"]], ids=["collection", "database"])
def test_a_stream_whose_filter_lets_nothing_through_is_not_behind_while_others_write(
    database: Any, make: Make, collections: list[str]
) -> None:
    replies = Replies()
    watcher = make(config=QUICK, hooks=[replies])
    collecting(watcher, "insert", collection=collections)
    watcher.start()

    with writing(database.noise):
        wait_until(lambda: len(replies.saved_tokens) > 3)
        found = lags(watcher)

    assert watcher.stats()["received"] == 0
    # A machine that is busy may be late for a reply; never is it more behind than the time that it was late.
    assert found.count(0.0) >= 20


def test_an_event_that_is_held_counts_from_its_own_time_not_from_the_position_before_it(
    database: Any, make: Make
) -> None:
    watcher, free = make(config=QUICK), threading.Event()

    @watcher.on("insert")
    def wait(event: Any) -> None:
        free.wait()

    try:
        watcher.start()
        # So long that the position is clearly older than the event: the server writes nothing by itself.
        sleep(3)
        before = monotonic()
        database.orders.insert_one({})
        wait_until(lambda: watcher.stats()["received"] == 1)
        first = watcher.stats()["lag"]
        # The server's times are whole seconds.
        assert 0 < first <= monotonic() - before + 1
        wait_until(lambda: watcher.stats()["lag"] > first + 1)
        assert watcher.stats()["lag"] <= monotonic() - before + 1
    finally:
        free.set()
    wait_until(lambda: watcher.stats()["lag"] == 0)


def test_a_start_in_the_past_is_behind_until_all_of_it_is_finished(database: Any, make: Make) -> None:
    database.orders.insert_one({})
    sleep(1.5)
    watcher, free = make(config=QUICK, start_at=timedelta(minutes=5)), threading.Event()

    @watcher.on("insert", collection="orders")
    def wait(event: Any) -> None:
        free.wait()

    try:
        watcher.start()
        assert watcher.stats()["lag"] >= 1
        wait_until(lambda: watcher.stats()["in_flight"])
        assert watcher.stats()["lag"] >= 1
    finally:
        free.set()
    wait_until(lambda: watcher.stats()["lag"] == 0)


def test_a_server_that_is_silent_for_longer_than_its_await_is_not_believed_to_have_nothing(failing: Failing) -> None:
    with Watched(failing, max_await_time=0.1) as watched:
        wait_until(lambda: watched.watcher.stats()["lag"] == 0)
        failing.fail({"times": 1}, blockConnection=True, blockTimeMS=3000)

        # As while it scans its oplog.
        wait_until(lambda: watched.watcher.stats()["lag"] > 1)
        assert watched.stream["state"] == "active"

        wait_until(lambda: watched.watcher.stats()["lag"] == 0)


def test_while_a_server_is_away_the_lag_grows_and_the_headroom_is_unknown(make: Make) -> None:
    with ReplicaSet() as servers:
        watcher = make(client=servers.uri + "&serverSelectionTimeoutMS=100", config=QUICK)
        collecting(watcher)
        watcher.start()
        wait_until(lambda: watcher.stats()["lag"] == 0 and watcher.stats()["headroom"] is not None)

        servers.kill(0)
        wait_until(lambda: watcher.stats()["streams"][watcher.database]["state"] == "reconnecting")
        assert watcher.stats()["headroom"] is None
        wait_until(lambda: watcher.stats()["lag"] > 1)

        servers.restart(0)
        wait_until(lambda: watcher.stats()["lag"] == 0 and watcher.stats()["headroom"] is not None)
        watcher.stop()


def test_of_a_watcher_that_does_not_run_nothing_is_known(database: Any, make: Make) -> None:
    watcher, other = make(config=QUICK), make(config=QUICK, name="other")
    for each in (watcher, other):
        collecting(each)
    assert (watcher.stats()["lag"], watcher.stats()["headroom"]) == (None, None)
    watcher.start()
    wait_until(lambda: watcher.stats()["headroom"] is not None)
    watcher.stop()
    assert (watcher.stats()["lag"], watcher.stats()["headroom"]) == (None, None)


def test_a_standby_knows_nothing_of_its_own_and_reads_the_row_of_the_active_one(
    database: Any, make: Make, store_path: str, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    with Program(ACTIVE, tmp_path, uri=mongodb_replica_set.uri, database=database.name, store=store_path) as active:
        active.wait_said("state")
        standby = make(config=QUICK, store=store_path)
        collecting(standby)
        assert standby.start() == "standby"
        assert (standby.stats()["state"], standby.stats()["lag"]) == ("standby", None)
        active.wait_for(lambda: standby.store.status("default")["lag"] == 0)
        assert standby.store.status("default")["pid"] == active.pid


def test_a_stream_that_is_open_again_is_behind_until_it_has_read_what_was_missed(failing: Failing) -> None:
    with Watched(
        failing, max_await_time=0.1, initial_backoff=0.1, max_backoff=0.1, max_reconnect_attempts=0
    ) as watched:
        wait_until(lambda: watched.watcher.stats()["lag"] == 0)
        # Each new cursor is opened, and then its first reply does not come.
        failing.fail("alwaysOn", errorCode=91)
        wait_until(lambda: watched.stream["state"] == "reconnecting")
        began = monotonic()
        wait_until(lambda: watched.openings > 10)
        assert watched.watcher.stats()["lag"] >= monotonic() - began - 0.1
        failing.mend()
        wait_until(lambda: watched.watcher.stats()["lag"] == 0)
