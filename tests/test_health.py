"""What is wrong with a watcher, told by its status row."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import wait_until
from pages import health, served
from watchers import Make, collecting, failing, watchers

from rigatoni import HandlerError, RetryPolicy
from rigatoni.contrib.health import FRESH, is_fresh, problems

NOW = 1_700_000_000.0


def row(state: str = "running", age: float = 0.5, **streams: str) -> dict[str, Any]:
    """Make a status row, with streams and their states."""
    told = {scope: {"state": stream} for scope, stream in (streams or {"shop": "active"}).items()}
    return {"name": "parcels", "host": "depot", "pid": 7, "state": state, "streams": told, "saved_at": NOW - age}


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def test_a_watcher_that_runs_and_writes_is_well() -> None:
    assert problems(row(), NOW) == []
    assert problems(row(age=FRESH), NOW) == []
    assert problems(row(age=-FRESH), NOW) == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (None, ["no status row", "start one"]),
        (row(age=10.1), ["10 s old", "process 7 on 'depot'", "start it again"]),
        (row("starting", age=3600), ["3600 s old"]),
        (row(age=-60), ["60 s ahead", "set the clock"]),
        (row("starting"), ["is starting", "server can be reached"]),
        (row("stopping"), ["is stopping", "handlers"]),
        (row("stopped"), ["has stopped", "start it again"]),
        (row("stopped", age=3600), ["has stopped", "start it again"]),
        (row("failed", age=3600), ["has failed", "log"]),
        (row("odd"), ["state 'odd'", "log"]),
        (row(shop="reconnecting"), ["stream 'shop' is reconnecting", "MongoDB"]),
    ],
)
def test_each_reason_is_a_sentence_with_what_to_do(status: Any, words: list[str]) -> None:
    (reason,) = problems(status, NOW)

    assert all(word in reason for word in words), reason
    assert "\n" not in reason


def test_every_stream_that_reconnects_is_named() -> None:
    reasons = problems(row(**{"shop": "reconnecting", "shop.orders": "active", "shop.p\n": "reconnecting"}), NOW)

    assert [reason.split(" is ")[0] for reason in reasons] == ["stream 'shop'", "stream 'shop.p\\n'"]


def test_the_time_of_the_call_is_what_counts_by_default() -> None:
    assert not is_fresh(row())
    assert "s old" in problems(row())[0]


def test_the_row_of_a_real_watcher_says_how_it_is(database: Any, make: Make) -> None:
    watcher = make()
    collecting(watcher)
    assert "no status row" in problems(watcher.store.status("default"))[0]
    watcher.start()
    wait_until(lambda: problems(watcher.store.status("default")) == [])
    watcher.stop()
    assert "has stopped" in problems(watcher.store.status("default"))[0]


def test_the_row_of_a_watcher_that_failed_says_so(database: Any, make: Make) -> None:
    watcher = failing(make(retry=RetryPolicy(max_attempts=1)))
    watcher.start()
    database.orders.insert_one({})
    with pytest.raises(HandlerError):
        watcher.join(60)
    assert "log" in problems(watcher.store.status("default"))[0]


def test_a_probe_is_told_of_a_failure_by_503_and_of_the_restart_by_200(database: Any, make: Make) -> None:
    watcher = make(retry=RetryPolicy(max_attempts=1))
    mended: list[bool] = []

    @watcher.on("insert", on_error="stop")
    def ship(event: Any) -> None:
        if not mended:
            raise ValueError("no such parcel")

    with served(watcher) as port:
        watcher.start()
        database.orders.insert_one({})
        with pytest.raises(HandlerError):
            watcher.join(60)
        code, text = health(port)
        assert code == 503 and "the watcher has failed" in text
        mended.append(True)
        assert watcher.start() == "running"
        wait_until(lambda: health(port)[0] == 200)
        watcher.stop()
        assert health(port)[0] == 503
