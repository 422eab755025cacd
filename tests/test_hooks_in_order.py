"""All hooks on a real watcher: called when their docstrings say so, in that order, from the watcher's hub."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import pytest
from bson import Timestamp
from conftest import wait_until
from failing import Failing
from watchers import Make, collecting, watchers

from rigatoni import ChangeStreamConfig, HandlerError, Hooks, MemoryStore, RetryPolicy, StreamError, Watcher

QUICK = ChangeStreamConfig(max_await_time=0.1, initial_backoff=0.001)
TOLD = ["opened", "received", "handled", "failed", "dead_lettered", "saved", "reconnecting", "gap", "closed"]


class Everything(Hooks):
    """Keeps what every hook was told, and in which thread."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()
        self.rows = 0

    def told(self, *what: Any) -> None:
        self.heard.append(what)
        self.threads.add(threading.get_ident())

    def names(self, *left_out: str) -> list[str]:
        """Give the names of what was heard since the last time, each run of one name once."""
        heard, self.heard = self.heard, []
        return [name for name, _ in groupby(each[0] for each in heard if each[0] not in left_out)]

    def status(self) -> Mapping[str, Any]:
        self.threads.add(threading.get_ident())
        self.rows += 1
        return {"rows": self.rows, "state": "a lie", "streams": None}


for name in TOLD:
    setattr(Everything, name, lambda self, *what, name=name: self.told(name, *what))


@pytest.fixture
def make(failing: Failing) -> Any:
    with watchers(failing.uri, failing.name) as make:
        yield lambda **options: make(**{"config": QUICK, **options})


def test_a_life_with_everything_in_it(failing: Failing, make: Make) -> None:
    hooks = Everything()
    watcher = make(hooks=[hooks], on_history_lost="now", retry=RetryPolicy(max_attempts=2, initial_backoff=0.001))
    seen = collecting(watcher, "insert")

    @watcher.on("delete")
    def bury(event: Any) -> None:
        raise ValueError("no such parcel")

    @watcher.on("update", on_error="stop")
    def stop(event: Any) -> None:
        raise KeyError("no such order")

    watcher.start()
    assert hooks.names() == ["opened", "saved"]

    failing.insert()
    wait_until(lambda: seen and hooks.heard and hooks.heard[-1][0] == "saved" and ("handled" in kinds(hooks)))
    assert hooks.names()[-3:] == ["received", "handled", "saved"]

    failing.orders.delete_one({})
    wait_until(lambda: "dead_lettered" in kinds(hooks))
    heard = list(hooks.heard)
    assert hooks.names("saved") == ["received", "failed", "dead_lettered"]
    failures = [each for each in heard if each[0] == "failed"]
    assert [(type(error), attempt) for _, _, error, attempt in failures] == [(ValueError, 1), (ValueError, 2)]
    assert [each[1].operation for each in heard if each[0] == "dead_lettered"] == ["delete"]

    failing.fail({"times": 1}, errorCode=91)
    wait_until(lambda: "opened" in kinds(hooks))
    ((_, scope, error, attempt, delay),) = [each for each in hooks.heard if each[0] == "reconnecting"]
    assert (scope, attempt, delay) == (failing.name, 1, pytest.approx(0.001, rel=0.1)) and isinstance(
        error, StreamError
    )
    assert hooks.names("saved") == ["reconnecting", "opened"]

    failing.fail({"times": 1}, errorCode=286)
    wait_until(lambda: "opened" in kinds(hooks))
    ((_, scope, since, until),) = [each for each in hooks.heard if each[0] == "gap"]
    assert scope == failing.name and isinstance(since, Timestamp) and isinstance(until, Timestamp) and since <= until
    assert hooks.names("saved") == ["gap", "opened"]

    failing.insert()
    wait_until(lambda: len(seen) == 2)
    failing.orders.update_one({}, {"$set": {"a": 1}})
    with pytest.raises(HandlerError):
        watcher.join(60)
    assert hooks.heard[-1] == ("closed", failing.name, watcher.error)
    assert hooks.names("saved")[-2:] == ["failed", "closed"]
    # All of it in the watcher's own thread, for this process is not patched.
    assert len(hooks.threads) == 1 and threading.get_ident() not in hooks.threads


def kinds(hooks: Everything) -> list[str]:
    return [each[0] for each in list(hooks.heard)]


def test_a_position_is_in_the_store_and_a_letter_too_when_the_hook_hears_of_it(failing: Failing, make: Make) -> None:
    store, found = MemoryStore(), []

    class Looking(Hooks):
        def saved(self, stream: str, token: Mapping[str, Any] | None) -> None:
            found.append(("saved", store.load("default")[stream].token == token))

        def dead_lettered(self, event: Any, error: BaseException) -> None:
            found.append(("buried", [letter.event["_id"] for letter in store.letters("default")] == [event["_id"]]))

    watcher = make(store=store, hooks=[Looking()], retry=RetryPolicy(max_attempts=1))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        raise ValueError("no")

    watcher.start()
    failing.insert()
    wait_until(lambda: ("buried", True) in found)
    watcher.stop()
    assert {*found} == {("saved", True), ("buried", True)}


def test_each_event_of_a_batch_is_told_with_the_time_of_the_whole_call(failing: Failing, make: Make) -> None:
    hooks = Everything()
    watcher = make(hooks=[hooks])
    lists: list[int] = []
    watcher.on_batch("insert", max_size=3, max_wait=60)(lambda events: lists.append(len(events)))
    watcher.start()
    failing.insert(3)
    wait_until(lambda: kinds(hooks).count("handled") == 3)
    handled = [each for each in hooks.heard if each[0] == "handled"]
    assert lists == [3]
    assert [event.document_key["_id"] for _, event, _ in handled] == [1, 2, 3]
    assert len({seconds for _, _, seconds in handled}) == 1


def test_a_hook_hears_how_long_a_plain_handler_took(failing: Failing, make: Make) -> None:
    hooks = Everything()
    watcher = make(hooks=[hooks])
    watcher.on("insert")(lambda event: threading.Event().wait(0.05))
    watcher.start()
    failing.insert()
    wait_until(lambda: "handled" in kinds(hooks))
    ((_, event, seconds),) = [each for each in hooks.heard if each[0] == "handled"]
    assert seconds >= 0.05 and event.collection == "orders"


def test_what_a_hook_returns_comes_into_the_row_and_replaces_nothing_of_it(failing: Failing, make: Make) -> None:
    hooks = Everything()
    watcher = make(hooks=[hooks])
    collecting(watcher)
    watcher.start()
    wait_until(lambda: watcher.store.status("default")["rows"] > 2)
    row = watcher.store.status("default")
    assert row["state"] == "running" and [*row["streams"]] == [failing.name]


def test_a_start_that_waits_for_the_server_tells_of_its_attempts(caplog: pytest.LogCaptureFixture) -> None:
    hooks = Everything()
    watcher = Watcher(
        "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=50",
        store=MemoryStore(),
        config=ChangeStreamConfig(max_reconnect_attempts=2, initial_backoff=0.001),
        hooks=[hooks],
    )
    collecting(watcher)
    with pytest.raises(StreamError):
        watcher.start()
    # Two attempts, and one wait between them.
    assert [(name, stream, attempt) for name, stream, _, attempt, _ in hooks.heard] == [("reconnecting", "", 1)]
