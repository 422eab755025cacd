"""Handlers that start a ``gevent.Timeout`` and do not close it: it fires between two events, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from flow import PATIENCE, Flow, at_once, barrier, event, insert
from programs import BOTH, Program

from rigatoni import ChangeEvent, DeadLetter, RetryPolicy

#: Seconds after which what a handler leaves behind fires.
SOON = 0.01
#: Seconds of a wait that it fires in.
LONGER = 0.05


def leak(count: int = 3) -> None:
    for number in range(1, count + 1):
        gevent.Timeout(SOON * number / count).start()


def leaking(flow: Flow, *operations: str, **options: Any) -> list[Any]:
    """Register a handler that leaves timeouts running at document 1."""
    calls: list[Any] = []

    @flow.on(*operations, **options)
    def handle(event: ChangeEvent) -> None:
        calls.append((event.document_key or {}).get("_id"))
        if calls[-1] == 1:
            leak()

    return calls


def assert_harmless(flow: Flow, caplog: pytest.LogCaptureFixture) -> None:
    assert flow.failures == [] and flow.letters == []
    assert "a handler started it and did not close it" in caplog.text
    assert flow.watermark.advance() == {"_data": f"{flow.last:06}"}


def test_one_that_fires_while_the_lane_lets_others_run(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rigatoni.lane.TURN", 0.0)
    flow = Flow()
    calls = leaking(flow)
    numbers = list(range(1000))
    while not caplog.records:
        calls.clear()
        flow.play(*map(insert, numbers))
        assert calls == numbers
    assert_harmless(flow, caplog)


def test_one_that_fires_while_a_batch_waits_to_be_full(caplog: pytest.LogCaptureFixture) -> None:
    flow, batches = Flow(), []
    leaking(flow, "insert")

    @flow.on_batch("update", max_wait=LONGER)
    def handle(events: list[ChangeEvent]) -> None:
        batches.append([event.document_key["_id"] for event in events])

    began = monotonic()
    flow.play(insert(1), event("update", 1), event("update", 2))
    assert batches == [[1, 2]] and LONGER <= monotonic() - began
    assert_harmless(flow, caplog)


def test_one_that_fires_during_the_wait_for_another_attempt(caplog: pytest.LogCaptureFixture) -> None:
    flow, calls = Flow(retry=RetryPolicy(initial_backoff=LONGER, max_backoff=LONGER, backoff_jitter=0.0)), list[float]()

    @flow.on()
    def fail_first(event: ChangeEvent) -> None:
        calls.append(monotonic())
        if len(calls) == 1:
            leak()
            raise ValueError("not yet")

    flow.play(insert(1))
    first, second = calls
    assert LONGER <= second - first
    assert_harmless(flow, caplog)


def test_one_that_fires_while_its_lane_waits_at_a_barrier(caplog: pytest.LogCaptureFixture) -> None:
    flow, calls = Flow(concurrency=2), list[Any]()

    @flow.on()
    def handle(event: ChangeEvent) -> None:
        if event.document_key == {"_id": 1}:
            leak()
        elif event.document_key == {"_id": 2}:
            gevent.sleep(LONGER)
        calls.append(event.operation if event.document_key is None else event.document_key["_id"])

    flow.play(insert(1), insert(2), barrier("drop"), insert(3))
    assert calls == [1, 2, "drop", 3]
    assert_harmless(flow, caplog)


def test_one_that_fires_while_a_letter_is_buried(caplog: pytest.LogCaptureFixture) -> None:
    buried: list[Any] = []

    def bury(letter: DeadLetter) -> None:
        gevent.sleep(LONGER)
        buried.append(letter.event["documentKey"]["_id"])

    flow, calls = Flow(bury=bury, retry=at_once(1)), []

    @flow.on()
    def fail(event: ChangeEvent) -> None:
        calls.append(event.document_key["_id"])
        leak(1)
        raise ValueError("never")

    flow.play(insert(1), insert(2))
    assert calls == buried == [1, 2]
    assert_harmless(flow, caplog)


def test_one_that_fires_in_the_next_handler_is_a_failed_attempt_of_that() -> None:
    flow, calls = Flow(retry=at_once(3)), []

    @flow.on(collection="orders")
    def leaky(event: ChangeEvent) -> None:
        leak(1)

    @flow.on(collection="parcels")
    def slow(event: ChangeEvent) -> None:
        calls.append(event.document_key["_id"])
        # The first one to its end only if nothing fires, however busy the machine is.
        gevent.sleep(PATIENCE if len(calls) == 1 else LONGER)

    flow.play(insert(1), insert(1, "parcels"), insert(2, "parcels"))
    assert calls == [1, 1, 2]
    assert flow.failures == [] and flow.letters == []


LEAKING = """
import gevent
from rigatoni import RetryPolicy, Watcher

retry = RetryPolicy(max_attempts=5, initial_backoff=0.001, max_backoff=0.001)
watcher = Watcher(given["uri"], given["database"], store=given["store"], retry=retry)


@watcher.on("insert", "update", concurrency=given["concurrency"])
def leak(event):
    if given["leaks"]:
        if event.document_key["_id"] % 10 == 0:
            gevent.Timeout(0.005).start()
        gevent.sleep(0.001)
    say(handled=event.document_key["_id"])


@watcher.on_batch("update", max_wait=0.02)
def handle(events):
    say(batch=[event.document_key["_id"] for event in events])


say(state=watcher.start())
watcher.join()
"""


@BOTH
@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_watcher_whose_handlers_leak_goes_on_and_loses_nothing(
    concurrency: int, patched: bool, database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    written = list(range(100))
    with Program(LEAKING, tmp_path, patched=patched, leaks=True, concurrency=concurrency, **given) as program:
        program.wait_said("state")
        database.orders.insert_many({"_id": number} for number in written)
        database.orders.update_many({}, {"$set": {"packed": True}})
        program.wait_for(lambda: sum(map(len, program.said("batch"))) >= len(written))
        program.kill()
    assert sorted(set(program.said("handled"))) == written
    assert sorted(number for batch in program.said("batch") for number in batch) == written
    database.parcels.insert_one({"_id": -1})
    with Program(LEAKING, tmp_path, patched=patched, leaks=False, concurrency=concurrency, **given) as program:
        program.wait_for(lambda: -1 in program.said("handled"))
        assert program.said("handled").count(-1) == 1
