"""What a Watcher tells of itself: numbers, hooks and the status row of its store."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import gevent
import pytest
from conftest import wait_until
from watchers import Make, collecting, failing, messages, watchers

from rigatoni import ChangeStreamConfig, HandlerError, Hooks, RetryPolicy, SQLiteStore
from rigatoni.hub import Flag
from rigatoni.mongod import ReplicaSet

FOR_EVER = ChangeStreamConfig(max_reconnect_attempts=0, initial_backoff=0.01)
COUNTS = {"received", "handled", "failed", "retried", "dead_lettered", "reconnects", "in_flight"}
OF_ALL = {"state", "lag", "headroom", "streams"} | COUNTS
OF_A_STREAM = {"state", "lag", "headroom", "catching_up"} | COUNTS


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


class Recorder(Hooks):
    """Keeps what it hears, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def names(self) -> list[str]:
        return [heard[0] for heard in self.heard]

    def opened(self, stream: str) -> None:
        self.heard.append(("opened", stream))

    def received(self, stream: str, count: int, size: int) -> None:
        self.heard.append(("received", stream, count, size))

    def handled(self, event: Any, seconds: float) -> None:
        self.heard.append(("handled", event.document_key["_id"], seconds))

    def failed(self, event: Any, error: BaseException, attempt: int) -> None:
        self.heard.append(("failed", event.document_key["_id"], type(error), attempt))

    def dead_lettered(self, event: Any, error: BaseException) -> None:
        self.heard.append(("dead_lettered", event.document_key["_id"], type(error)))

    def saved(self, stream: str, token: Any) -> None:
        self.heard.append(("saved", stream))

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        self.heard.append(("reconnecting", stream, attempt, delay))

    def closed(self, stream: str, error: BaseException | None) -> None:
        self.heard.append(("closed", stream, error))

    def status(self) -> Mapping[str, Any]:
        return {"parcels": 5}


class Broken(Hooks):
    """Raises whatever it hears."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def _break(self, *heard: Any) -> Any:
        raise self._error

    opened = received = handled = failed = dead_lettered = saved = reconnecting = gap = closed = status = _break


# -- stats


def test_stats_have_the_same_keys_in_every_state(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    assert watcher.stats().keys() == OF_ALL
    assert (watcher.stats()["state"], watcher.stats()["lag"], watcher.stats()["streams"]) == ("created", None, {})
    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(3)])
    wait_until(lambda: len(seen) == 3 and watcher.stats()["in_flight"] == 0)
    wait_until(lambda: watcher.stats()["headroom"] is not None and watcher.stats()["lag"] is not None)
    stats = watcher.stats()
    assert stats.keys() == OF_ALL and stats["state"] == "running"
    assert (stats["received"], stats["handled"], stats["failed"], stats["reconnects"]) == (3, 3, 0, 0)
    ((scope, stream),) = stats["streams"].items()
    assert scope == database.name and stream.keys() == OF_A_STREAM
    assert (stream["state"], stream["catching_up"]) == ("active", False)
    assert {name: stream[name] for name in COUNTS} == {name: stats[name] for name in COUNTS}
    assert stats["lag"] >= 0 and stats["headroom"] >= 0
    json.dumps(stats)
    watcher.stop()
    assert watcher.stats().keys() == OF_ALL
    assert (watcher.stats()["state"], watcher.stats()["handled"]) == ("stopped", 3)


def test_stats_count_what_failed_was_retried_and_was_buried(database: Any, make: Make) -> None:
    watcher = make(retry=RetryPolicy(max_attempts=2, initial_backoff=0.001))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        raise ValueError("no")

    watcher.start()
    database.orders.insert_many([{}, {}])
    wait_until(lambda: watcher.stats()["dead_lettered"] == 2)
    stats = watcher.stats()
    assert (stats["received"], stats["handled"], stats["failed"], stats["retried"]) == (2, 0, 4, 2)


def test_stats_show_what_is_in_flight_and_how_far_behind_it_is(database: Any, make: Make) -> None:
    watcher = make()

    @watcher.on("insert", ack="manual")
    def keep(event: Any) -> None:
        kept.append(event)

    kept: list[Any] = []
    watcher.start()
    database.orders.insert_many([{}, {}])
    wait_until(lambda: len(kept) == 2)
    first = watcher.stats()
    assert first["in_flight"] == 2
    wait_until(lambda: watcher.stats()["lag"] > first["lag"])
    for event in kept:
        event.ack()
    wait_until(lambda: watcher.stats()["in_flight"] == 0 and watcher.stats()["lag"] == 0)


def test_stats_can_be_asked_from_any_thread_while_a_watcher_comes_and_goes(make: Make) -> None:
    watcher, said, free = make(), [], threading.Event()
    collecting(watcher)

    def ask() -> None:
        while not free.is_set():
            try:
                said.append(watcher.stats().keys())
            except Exception as error:
                said.append(error)
                return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        watcher.start()
        watcher.stop()
    free.set()
    for thread in threads:
        thread.join()
    assert all(keys == OF_ALL for keys in said)


# -- hooks


def test_hooks_are_called_in_the_order_in_which_things_happen(database: Any, make: Make) -> None:
    first, second = Recorder(), Recorder()
    second.heard = first.heard
    watcher = make(hooks=[first, second])
    seen = collecting(watcher, "insert")
    watcher.start()
    scope = database.name
    # The first positions are saved before start() returns.
    assert first.names() == ["opened", "opened", "saved", "saved"]
    assert first.heard[0] == ("opened", scope)
    del first.heard[:]
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen and "saved" in first.names())
    assert first.names()[:6] == ["received", "received", "handled", "handled", "saved", "saved"]
    assert first.heard[0][1:3] == (scope, 1) and first.heard[0][3] > 0
    assert first.heard[2][1] == 1 and first.heard[2][2] >= 0
    watcher.stop()
    assert first.heard[-2:] == [("closed", scope, None)] * 2


def test_hooks_hear_of_failures_and_of_letters(database: Any, make: Make) -> None:
    recorder = Recorder()
    watcher = make(hooks=[recorder], retry=RetryPolicy(max_attempts=2, initial_backoff=0.001))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        raise ValueError("no")

    watcher.start()
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: "dead_lettered" in recorder.names())
    heard = [each for each in recorder.heard if each[0] in ("failed", "dead_lettered")]
    assert heard == [("failed", 1, ValueError, 1), ("failed", 1, ValueError, 2), ("dead_lettered", 1, ValueError)]


def test_a_hook_hears_why_a_stream_ends(database: Any, make: Make) -> None:
    recorder = Recorder()
    watcher = failing(make(hooks=[recorder], retry=RetryPolicy(max_attempts=1)))
    watcher.start()
    database.orders.insert_one({})
    with pytest.raises(HandlerError):
        watcher.join(60)
    assert recorder.heard[-1] == ("closed", database.name, watcher.error)


@pytest.mark.parametrize(
    "error", [RuntimeError("broken hook"), gevent.Timeout(5, "broken hook")], ids=["Exception", "Timeout"]
)
def test_a_hook_that_raises_is_logged_and_harms_nothing(
    database: Any, make: Make, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    recorder = Recorder()
    watcher = make(hooks=[Broken(error), recorder], retry=RetryPolicy(max_attempts=1))
    seen = collecting(watcher, "insert")

    @watcher.on("delete")
    def fail(event: Any) -> None:
        raise ValueError("no")

    watcher.start()
    database.orders.insert_one({"_id": 1})
    database.orders.delete_one({"_id": 1})
    wait_until(lambda: "dead_lettered" in recorder.names())
    assert watcher.stop() and watcher.state == "stopped"
    assert seen == [1]
    assert {"opened", "received", "handled", "failed", "saved", "closed"} <= set(recorder.names())
    assert any("broken hook" in str(record.exc_info) for record in caplog.records)
    assert watcher.store.status("default")["parcels"] == 5


# -- the status row


def test_while_a_stop_waits_for_a_handler_the_status_row_says_so_and_stays_young(
    make: Make, database: Any, store_path: str
) -> None:
    watcher, is_free = make(store=store_path), Flag()
    watcher.on("insert")(lambda event: is_free.wait(60))
    watcher.start()
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: watcher.stats()["in_flight"] == 1)
    stopping = threading.Thread(target=watcher.stop, args=(60,))
    stopping.start()
    rows: list[Any] = []

    def is_young() -> bool:
        row = watcher.store.status("default")
        if row["state"] == "stopping" and row["saved_at"] not in rows:
            rows.append(row["saved_at"])
        return len(rows) > 1

    wait_until(is_young)
    is_free.set()
    stopping.join(60)
    assert watcher.store.status("default")["state"] == "stopped"


def test_the_status_row_says_who_watches_and_how_it_goes(database: Any, make: Make, store_path: str) -> None:
    watcher = make(store=store_path, name="parcels", hooks=[Recorder()])
    seen = collecting(watcher, "insert")
    before = time.time()
    watcher.start()
    database.orders.insert_one({"_id": 1})
    reader = SQLiteStore(store_path)
    wait_until(lambda: seen and reader.status("parcels")["handled"] == 1)
    row = reader.status("parcels")
    assert row.keys() >= OF_ALL | {"name", "host", "pid", "since", "saved_at", "parcels"}
    assert (row["name"], row["host"], row["pid"]) == ("parcels", socket.gethostname(), os.getpid())
    assert before <= row["since"] <= row["saved_at"] <= time.time()
    assert row["state"] == "running" and row["streams"][database.name]["state"] == "active"
    assert row["parcels"] == 5
    wait_until(lambda: reader.status("parcels")["saved_at"] > row["saved_at"])
    watcher.stop()
    assert reader.status("parcels")["state"] == "stopped"
    reader.close()


def test_the_last_status_row_of_a_failure_says_so(database: Any, make: Make) -> None:
    watcher = failing(make(retry=RetryPolicy(max_attempts=1)))
    watcher.start()
    database.orders.insert_one({})
    with pytest.raises(HandlerError):
        watcher.join(60)
    row = watcher.store.status("default")
    assert (row["state"], row["error"]) == ("failed", repr(watcher.error))


def test_a_status_row_is_written_from_the_moment_of_the_lock(make: Make) -> None:
    watcher = make(client="mongodb://127.0.0.1:9/")
    collecting(watcher)
    thread = threading.Thread(target=watcher.start)
    thread.start()
    wait_until(lambda: watcher.store.status("default"))
    assert watcher.store.status("default")["state"] == "starting"
    watcher.stop()
    thread.join()
    assert watcher.store.status("default")["state"] == "stopped"


def test_while_a_server_is_away_the_stream_says_that_it_reconnects(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    with ReplicaSet() as servers:
        watcher = make(client=servers.uri + "&serverSelectionTimeoutMS=100", config=FOR_EVER, hooks=[recorder])
        collecting(watcher)
        watcher.start()
        servers.kill(0)
        wait_until(lambda: watcher.stats()["reconnects"])
        (stream,) = watcher.stats()["streams"].values()
        assert watcher.state == "running" and stream["state"] == "reconnecting"
        assert ("reconnecting", 1) in [(heard[0], heard[2]) for heard in recorder.heard if len(heard) == 4]
        wait_until(lambda: watcher.store.status("default")["reconnects"])
        wait_until(lambda: watcher.stats()["reconnects"] > 1)
        assert watcher.stop()
    assert len([text for text in messages(caplog, logging.WARNING) if "reconnecting" in text]) == 1
