"""Who may stop a Watcher, when, and how long that takes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import BOTH, Program
from watchers import Make, collecting, messages, watchers

from rigatoni import ChangeStreamConfig, MemoryStore, Position, RetryPolicy

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


class Remote(MemoryStore):
    """Holds what is saved until it is let go, as a network may, and does not take two saves at once."""

    is_saving = is_held = False

    def save(self, name: str, positions: Mapping[str, Position | None], status: Any = None) -> None:
        assert not self.is_saving, "the answer to an earlier save is still to come"
        self.is_saving = True
        while self.is_held:
            gevent.sleep(0.01)
        super().save(name, positions, status)
        self.is_saving = False


def test_a_stop_lets_a_save_that_is_under_way_come_to_its_end(make: Make) -> None:
    store, said = Remote(), list[bool]()
    watcher = make(store=store)
    collecting(watcher)
    watcher.start()
    # The start saves that, too; from then on it is done apart.
    wait_until(lambda: store.status("default")["state"] == "running")
    store.is_held = True
    wait_until(lambda: store.is_saving)
    stopping = threading.Thread(target=lambda: said.append(watcher.stop()))
    stopping.start()
    wait_until(lambda: watcher.state != "running")
    store.is_held = False
    stopping.join()
    assert said == [True] and watcher.error is None and not store.is_saving
    assert watcher.state == store.status("default")["state"] == "stopped"


OVERRUN = """
import gevent, threading
from rigatoni import RetryPolicy, Watcher

policy = RetryPolicy(max_attempts=1)
watcher = Watcher(given["uri"], given["database"], store=given["store"], retry=policy)
began, free, greenlets = threading.Event(), threading.Event(), []


@watcher.on("insert")
def overrun(event):
    greenlets.append(gevent.getcurrent())
    began.set()
    # Where the process is not patched, the watcher's whole thread waits.
    free.wait()
    say(overran=True)
    if given["raises"]:
        raise ValueError("too late")


@watcher.on("insert")
def come_next(event):
    say(called=True)


say(state=watcher.start())
began.wait()
say(stopped=watcher.stop(0.1), state=watcher.state)
free.set()
if given["is_patched"]:
    greenlets[0].join()
watcher.join()
"""


@BOTH
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_nothing_follows_a_handler_that_a_stop_has_left_behind(
    database: Any, make: Make, mongodb_replica_set: Any, store_path: str, tmp_path: Path, raises: bool, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path, "is_patched": patched}
    with Program(OVERRUN, tmp_path, patched=patched, raises=raises, **given) as program:
        program.wait_said("state")
        database.orders.insert_one({"_id": 1})
        assert program.end() == 0, program.complaints
        assert program.lines[1:] == [
            {"stopped": False, "state": "stopped" if patched else "running"},
            {"overran": True},
        ]
    watcher = make(store=store_path)
    seen = collecting(watcher, "insert")
    watcher.start()
    wait_until(lambda: seen == [1])
    assert watcher.store.letters("default") == []
