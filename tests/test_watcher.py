"""A Watcher's way from ``start()`` to its end, and who hears of its errors."""

from __future__ import annotations

import logging
import os
import threading
import time
from datetime import timedelta
from typing import Any

import gevent
import pytest
from conftest import wait_until
from gevent.hub import Hub
from watchers import Make, collecting, failing, messages, watchers

from rigatoni import (
    ChangeStreamConfig,
    ConfigurationError,
    HandlerError,
    Hooks,
    MaxReconnectAttemptsExceededError,
    ResumeTokenPersistenceError,
    RetryPolicy,
)
from rigatoni import watcher as watching
from rigatoni.hub import Flag, wait_for_any

#: Nobody listens there.
CLOSED = "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=50"
NEVER_TWICE = ChangeStreamConfig(max_reconnect_attempts=1, initial_backoff=0.01)


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


# -- states


def test_a_watcher_goes_from_created_over_running_to_stopped_and_again(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    assert (watcher.state, watcher.error) == ("created", None)
    for round in range(2):
        assert watcher.start() == "running" == watcher.state
        database.orders.insert_one({"_id": round})
        wait_until(lambda expected=round: expected in seen)
        assert watcher.stop() and watcher.join()
        assert (watcher.state, watcher.error) == ("stopped", None)
    assert seen == [0, 1]
    assert watcher.stop()


def test_a_second_start_is_refused_and_harms_nothing(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    with pytest.raises(ConfigurationError, match=r"running already: stop\(\) it first"):
        watcher.start()
    assert watcher.state == "running"
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen == [1])


def test_a_watcher_that_says_it_has_stopped_starts_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, destroy = make(), Hub.destroy

    def take_time(hub: Any, **options: Any) -> None:
        time.sleep(0.1)
        destroy(hub, **options)

    # The last thing that its thread does.
    monkeypatch.setattr(Hub, "destroy", take_time)
    collecting(watcher)
    watcher.start()
    threading.Thread(target=watcher.stop).start()
    wait_until(lambda: watcher.state == "stopped")
    assert watcher.start() == "running"


def test_a_watcher_that_says_it_has_stopped_starts_again_before_all_who_wait_for_its_end_are_told(make: Make) -> None:
    class Late(Flag):
        def set(self) -> None:
            time.sleep(0.1)
            super().set()

    watcher = make()
    collecting(watcher)
    watcher.start()
    watcher._life.ended = Late()
    threading.Thread(target=watcher.stop).start()
    wait_until(lambda: watcher.state == "stopped")
    assert watcher.start() == "running"


def test_of_two_starts_at_once_one_is_refused(make: Make) -> None:
    watcher = make()
    collecting(watcher)
    barrier, said = threading.Barrier(2), []

    def start() -> None:
        barrier.wait()
        try:
            said.append(watcher.start())
        except ConfigurationError as error:
            said.append(error.category)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["configuration", "running"]


def test_nothing_can_be_registered_any_more_after_a_start(make: Make) -> None:
    watcher = make()
    collecting(watcher)
    watcher.start()
    with pytest.raises(ConfigurationError, match=r"after start\(\)"):
        watcher.on("insert")(print)
    with pytest.raises(ConfigurationError, match=r"after start\(\)"):
        watcher.watch("orders")


def test_a_start_that_fails_raises_once_and_may_be_repeated(
    make: Make, mongodb_replica_set: Any, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = make(client=CLOSED, config=NEVER_TWICE)
    collecting(watcher)
    for _ in range(2):
        caplog.clear()
        with pytest.raises(MaxReconnectAttemptsExceededError) as caught:
            watcher.start()
        assert watcher.state == "failed" and watcher.error is caught.value
        assert [message for message in messages(caplog) if type(caught.value).__name__ in message] == messages(caplog)
        assert len(messages(caplog)) == 1
        with pytest.raises(MaxReconnectAttemptsExceededError):
            watcher.join()
        assert watcher.stop()


def test_an_error_that_no_retry_mends_is_raised_at_once(make: Make) -> None:
    watcher = make(config=ChangeStreamConfig(pipeline=[{"$group": {"_id": 1}}], max_reconnect_attempts=0))
    collecting(watcher)
    with pytest.raises(ConfigurationError):
        watcher.start()
    assert watcher.state == "failed"


def test_a_failed_start_leaves_the_name_free(make: Make, store_path: str, tmp_path: Any) -> None:
    failing = make(store=store_path, config=ChangeStreamConfig(pipeline=[{"$group": {"_id": 1}}]))
    collecting(failing)
    with pytest.raises(ConfigurationError):
        failing.start()
    watcher = make(store=store_path)
    collecting(watcher)
    assert watcher.start() == "running"


# -- join, with, error


def test_join_gives_up_after_its_time_and_the_watcher_goes_on(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    assert watcher.join(timeout=0.05) is False
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen == [1])
    assert watcher.state == "running"


def test_with_starts_and_stops(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    with watcher as entered:
        assert entered is watcher and watcher.state == "running"
        database.orders.insert_one({"_id": 1})
        wait_until(lambda: seen == [1])
    assert watcher.state == "stopped"


def test_leaving_with_raises_the_fatal_error_unless_another_is_under_way(database: Any, make: Make) -> None:
    with pytest.raises(HandlerError), failing(make()) as watcher:
        database.orders.insert_one({})
        wait_until(lambda: watcher.error)
    with pytest.raises(KeyError), failing(make()) as watcher:
        database.orders.insert_one({})
        wait_until(lambda: watcher.error)
        raise KeyError("of the program")


def test_a_fatal_error_is_logged_once_whoever_waits_and_raised_by_all(
    database: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = failing(make())
    watcher.start()
    database.orders.insert_one({"_id": 7})
    for _ in range(2):
        with pytest.raises(HandlerError) as caught:
            watcher.join(60)
        assert watcher.error is caught.value and watcher.state == "failed"
    assert caught.value.event.document_key == {"_id": 7}
    assert isinstance(caught.value.__cause__, ValueError)
    assert watcher.stop() and watcher.stats()["state"] == "failed"
    assert len(messages(caplog)) == 1 and "HandlerError" in messages(caplog)[0]


def test_a_log_handler_that_raises_keeps_no_fatal_error_from_ending_the_watcher(
    database: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ConnectionError("the log server is away")

    def run() -> None:
        try:
            watcher.run()
        except HandlerError as error:
            raised.append(error)

    monkeypatch.setattr(logging.getLogger("rigatoni"), "handlers", [Broken(logging.ERROR)])
    watcher, raised = failing(make()), list[HandlerError]()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    wait_until(lambda: watcher.state == "running")
    database.orders.insert_one({})
    with pytest.raises(HandlerError) as caught:
        watcher.join(10)
    thread.join(10)
    assert raised == [caught.value] and watcher.state == "failed"


def test_run_raises_the_fatal_error_and_the_next_start_delivers_its_event_first(
    database: Any, make: Make, store_path: str
) -> None:
    watcher = failing(make(store=store_path))
    said: list[Any] = []

    def run() -> None:
        try:
            watcher.run()
        except HandlerError as error:
            said.append(error.event.document_key["_id"])

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: watcher.state == "running")
    database.orders.insert_many([{"_id": number} for number in range(5)])
    thread.join()
    assert said == [0] and watcher.state == "failed"
    again = make(store=store_path)
    seen = collecting(again, "insert")
    again.start()
    wait_until(lambda: len(seen) == 5)
    assert seen == [0, 1, 2, 3, 4]


def test_run_returns_after_a_stop_from_elsewhere(make: Make) -> None:
    watcher = make()
    collecting(watcher)
    thread = threading.Thread(target=watcher.run)
    thread.start()
    wait_until(lambda: watcher.state == "running")
    assert watcher.stop()
    thread.join()
    assert watcher.state == "stopped"


def test_a_store_that_vanishes_ends_the_watcher(make: Make, store_path: str) -> None:
    watcher = make(store=store_path)
    collecting(watcher)
    watcher.start()
    os.unlink(store_path)
    with pytest.raises(ResumeTokenPersistenceError):
        watcher.join(60)
    assert watcher.state == "failed"


# -- two in one process


@pytest.mark.parametrize("share", [True, False], ids=["one object", "one path"])
def test_a_second_watcher_of_one_name_in_this_process_is_refused(
    database: Any, make: Make, store_path: str, share: bool
) -> None:
    first = make(store=store_path)
    seen = collecting(first, "insert")
    first.start()
    second = make(store=first.store if share else store_path)
    collecting(second)
    with pytest.raises(ConfigurationError, match="name="):
        second.start()
    assert second.state == "failed"
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen == [1])
    # Only the name is taken, and the first has kept it.
    third = make(store=first.store, name="third")
    others = collecting(third, "insert")
    third.start()
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: seen == [1, 2] and others == [2])
    assert third.stop() and first.stop()
    assert sorted(first.store.names()) == ["default", "third"]
    first.store.close()


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_what_the_server_says_of_a_command_is_logged_only_for_debugging(
    make: Make, caplog: pytest.LogCaptureFixture, level: int
) -> None:
    caplog.set_level(level, "rigatoni")
    watcher = make(config=ChangeStreamConfig(pipeline=[{"$match": {"card": {"$literal4711": 1}}}]))
    collecting(watcher, "insert")
    with pytest.raises(ConfigurationError) as caught:
        watcher.start()
    assert "literal4711" not in str(caught.value)
    assert ("literal4711" in caplog.text) is (level == logging.DEBUG)


def test_a_start_waits_no_longer_than_it_is_told_and_goes_on_starting(make: Make, database: Any) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    assert watcher.start(timeout=0) in ("starting", "running")
    wait_until(lambda: watcher.state == "running")
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen == [1])


def test_a_start_that_raises_what_ended_it_at_once_raises_it_only_at_its_end(
    make: Make, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Hooks):
        def closed(self, stream: str, error: BaseException | None) -> None:
            gevent.sleep(0.2)

    def late(flags: Any, timeout: float | None = None) -> bool:
        found = wait_for_any(flags, timeout)
        wait_until(lambda: watcher.error)
        return found

    watcher = make(hooks=[Slow()], start_at=timedelta(hours=1), on_error="stop", retry=RetryPolicy(max_attempts=1))
    failing(watcher)
    database.orders.insert_one({"_id": 1})
    monkeypatch.setattr(watching, "wait_for_any", late)
    for _ in range(2):
        with pytest.raises(HandlerError):
            watcher.start()
        assert watcher.state == "failed"
