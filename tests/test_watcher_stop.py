"""Who may stop a Watcher, when, and how long that takes."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import gevent
import pytest
from conftest import wait_until
from watchers import Make, collecting, messages, watchers

from rigatoni import ChangeStreamConfig, RetryPolicy

FOR_EVER = ChangeStreamConfig(max_reconnect_attempts=0, initial_backoff=0.01)


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def test_a_stop_ends_a_start_that_finds_no_server(make: Make) -> None:
    watcher = make(client="mongodb://127.0.0.1:9/", config=FOR_EVER)
    collecting(watcher)
    said: list[Any] = []
    thread = threading.Thread(target=lambda: said.append(watcher.start()))
    thread.start()
    wait_until(lambda: watcher.state == "starting")
    began = time.monotonic()
    assert watcher.stop()
    # The client alone would wait 5 s for a server.
    assert time.monotonic() - began < 2.5
    thread.join()
    assert said == ["stopped"] and watcher.state == "stopped" and watcher.error is None


def test_a_stop_from_a_handler_returns_at_once_and_its_event_counts(database: Any, make: Make) -> None:
    watcher, said, seen = make(), [], []

    @watcher.on("insert")
    def stop(event: Any) -> None:
        seen.append(event.document_key["_id"])
        if len(seen) == 1:
            began = time.monotonic()
            said.append((watcher.stop(), time.monotonic() - began))

    watcher.start()
    database.orders.insert_one({"_id": 1})
    assert watcher.join(60) and watcher.state == "stopped"
    ((stopped, seconds),) = said
    assert stopped is False and seconds < 1
    watcher.start()
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: 2 in seen)
    assert seen == [1, 2]


def test_a_stop_comes_from_any_thread_and_wakes_who_joins(make: Make) -> None:
    watcher = make()
    collecting(watcher)
    watcher.start()
    said: list[bool] = []
    joining = threading.Thread(target=lambda: said.append(watcher.join()))
    joining.start()
    stopping = threading.Thread(target=lambda: said.append(watcher.stop()))
    stopping.start()
    joining.join()
    stopping.join()
    assert said == [True, True] and watcher.state == "stopped"


@pytest.mark.parametrize("is_cooperative", [True, False], ids=["cooperative", "blocking"])
def test_a_stop_does_not_wait_longer_than_it_was_told_and_names_who_hangs(
    database: Any, make: Make, caplog: pytest.LogCaptureFixture, is_cooperative: bool
) -> None:
    watcher, hangs, free = make(), threading.Event(), threading.Event()

    @watcher.on("insert")
    def hang(event: Any) -> None:
        hangs.set()
        while is_cooperative and not free.is_set():
            gevent.sleep(0.01)
        free.wait()

    watcher.start()
    database.orders.insert_one({"_id": 1})
    wait_until(hangs.is_set)
    began = time.monotonic()
    try:
        assert watcher.stop(timeout=0.2) is False
        seconds = time.monotonic() - began
        assert 0.2 <= seconds < 3
        warning = messages(caplog, logging.WARNING)[-1]
        assert "hang" in warning and "insert" in warning and "orders" in warning
    finally:
        free.set()
    assert watcher.join(60)
    assert watcher.state == "stopped"
    # It was not finished when the watcher ended, so that it comes again.
    if is_cooperative:
        hangs.clear()
        watcher.start()
        wait_until(hangs.is_set)


def test_a_stop_without_patience_still_ends_an_idle_watcher(make: Make) -> None:
    watcher = make()
    collecting(watcher)
    watcher.start()
    assert watcher.stop(timeout=0) is True
    assert watcher.state == "stopped"


def test_a_stop_cuts_the_wait_for_another_attempt(database: Any, make: Make) -> None:
    watcher, calls = make(retry=RetryPolicy(initial_backoff=30)), []

    @watcher.on("insert")
    def fail(event: Any) -> None:
        calls.append(event.id)
        raise OSError("no")

    watcher.start()
    database.orders.insert_one({})
    wait_until(lambda: calls)
    began = time.monotonic()
    assert watcher.stop(timeout=30) is True
    assert time.monotonic() - began < 10
    assert len(calls) == 1 and watcher.store.letters("default") == []
