"""One event and its handlers: attempts, timeouts, acknowledgements, and what happens when attempts are spent."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from flow import PATIENCE, Flow, at_once, insert
from gevent.event import Event
from greenlet import GreenletExit

from rigatoni.config import RetryPolicy
from rigatoni.errors import HandlerError, ResumeTokenPersistenceError
from rigatoni.events import AckableEvent, ChangeEvent, DeadLetter
from rigatoni.hooks import Hooks


class Sometimes:
    """Fail so many times for each document, then return; remember every call."""

    def __init__(self, times: int, error: Callable[[], BaseException] = lambda: ValueError("not yet")) -> None:
        self.calls: list[Any] = []
        self._times = times
        self._error = error

    def __call__(self, event: ChangeEvent) -> None:
        assert event.document_key is not None
        key = event.document_key["_id"]
        self.calls.append(key)
        if self.calls.count(key) <= self._times:
            raise self._error()


class Listener(Hooks):
    """Write down what became of events."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def handled(self, event: ChangeEvent, seconds: float) -> None:
        assert seconds >= 0
        self.told.append(("handled", event.document_key))

    def failed(self, event: ChangeEvent, error: BaseException, attempt: int) -> None:
        self.told.append(("failed", event.document_key, str(error), attempt))

    def dead_lettered(self, event: ChangeEvent, error: BaseException) -> None:
        self.told.append(("dead_lettered", event.document_key, str(error)))


def counted(flow: Flow) -> tuple[int, int, int, int]:
    counts = flow.delivery.counts
    return counts.handled, counts.failed, counts.retried, counts.dead_lettered


# -- attempts


def test_a_return_acknowledges() -> None:
    flow, handler = Flow(), Sometimes(0)
    flow.on()(handler)

    batch = flow.play(insert(1), insert(2))

    assert handler.calls == [1, 2]
    assert list(batch.done) == [1, 1]
    assert flow.watermark.advance() == batch.end
    assert counted(flow) == (2, 0, 0, 0)


def test_what_nobody_handles_is_done() -> None:
    flow = Flow()
    flow.on("delete")(Sometimes(0))
    flow.on("update", fields="paid")(lambda event: pytest.fail("it was not paid"))

    batch = flow.play(insert(1), {**insert(2), "operationType": "update", "updateDescription": {"updatedFields": {}}})

    assert all(batch.done)
    assert counted(flow) == (0, 0, 0, 0)


def test_a_handler_that_fails_is_called_again_until_it_returns() -> None:
    handler, listener = Sometimes(2), Listener()
    flow = Flow(hooks=[listener])
    flow.on()(handler)

    batch = flow.play(insert(1), insert(2))

    assert handler.calls == [1, 1, 1, 2, 2, 2]
    assert list(batch.done) == [1, 1]
    assert counted(flow) == (2, 4, 4, 0)
    assert listener.told[:3] == [
        ("failed", {"_id": 1}, "not yet", 1),
        ("failed", {"_id": 1}, "not yet", 2),
        ("handled", {"_id": 1}),
    ]


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_a_handler_is_called_as_often_as_its_policy_says(attempts: int) -> None:
    flow, handler = Flow(), Sometimes(99)
    flow.on(retry=at_once(attempts))(handler)

    flow.play(insert(1))

    assert handler.calls == [1] * attempts
    assert [letter.attempts for letter in flow.letters] == [attempts]


def test_without_a_limit_it_is_called_for_ever() -> None:
    flow, handler = Flow(retry=at_once(0)), Sometimes(50)
    flow.on()(handler)

    batch = flow.play(insert(1))

    assert len(handler.calls) == 51 and list(batch.done) == [1]


def test_what_is_not_to_be_retried_is_spent_at_once() -> None:
    flow = Flow()
    handler = Sometimes(99, lambda: KeyError("gone"))
    flow.on(retry=at_once(5, retry_on=(ValueError, OSError)))(handler)

    flow.play(insert(1))

    assert handler.calls == [1]
    assert [(letter.attempts, letter.error) for letter in flow.letters] == [(1, "KeyError: 'gone'")]


def test_an_error_that_is_to_be_retried_may_turn_into_one_that_is_not() -> None:
    flow = Flow()
    errors: list[BaseException] = [ValueError("again"), KeyError("final")]
    handler = Sometimes(99, lambda: errors.pop(0))
    flow.on(retry=at_once(5, retry_on=ValueError))(handler)

    flow.play(insert(1))

    assert handler.calls == [1, 1]
    assert [letter.error for letter in flow.letters] == ["KeyError: 'final'"]


@pytest.mark.parametrize(
    ("retry_on", "calls"),
    [(Exception, 3), (TimeoutError, 3), (OSError, 3), (gevent.Timeout, 3), (ValueError, 1), ((KeyError, Exception), 3)],
)
def test_a_timeout_is_retried_by_whoever_retries_exceptions_or_timeouts(retry_on: Any, calls: int) -> None:
    flow = Flow()
    seen: list[int] = []

    @flow.on(timeout=0.001, retry=at_once(3, retry_on=retry_on))
    def slow(event: ChangeEvent) -> None:
        seen.append(1)
        gevent.sleep(PATIENCE)

    batch = flow.play(insert(1))

    assert len(seen) == calls and list(batch.done) == [1]
    assert [letter.attempts for letter in flow.letters] == [calls]
    assert flow.letters[0].error.startswith("Timeout")


def test_a_timeout_that_leaks_from_a_handler_is_a_failed_attempt() -> None:
    flow, handler = Flow(), Sometimes(1, lambda: gevent.Timeout(5))
    flow.on()(handler)

    batch = flow.play(insert(1))

    assert handler.calls == [1, 1] and list(batch.done) == [1]


def test_a_stop_cuts_the_wait_for_another_attempt_and_the_event_stays_undone() -> None:
    flow, handler = Flow(retry=RetryPolicy(initial_backoff=3600.0, max_backoff=3600.0)), Sometimes(99)
    flow.on()(handler)
    batch = flow.put(insert(1), insert(2))
    gevent.sleep(0)
    assert handler.calls == [1]

    flow.end()
    flow.settle()

    assert handler.calls == [1] and list(batch.done) == [0, 0]
    assert flow.failures == [] and flow.letters == []


# -- what happens when the attempts are spent


def test_a_dead_letter_says_what_happened_to_whom() -> None:
    listener = Listener()
    flow, handler = Flow(hooks=[listener]), Sometimes(99, lambda: LookupError("no such parcel"))
    flow.on("insert")(handler)

    batch = flow.play(insert(7, fullDocument={"_id": 7}))

    (letter,) = flow.letters
    assert (letter.id, letter.handler, letter.attempts) == (None, "test_delivery:Sometimes", 3)
    assert letter.event == batch.events[0]
    assert letter.error == "LookupError: no such parcel"
    assert "in __call__" in letter.traceback and "LookupError: no such parcel" in letter.traceback
    assert letter.buried_at > 1.7e9
    assert listener.told[-1] == ("dead_lettered", {"_id": 7}, "no such parcel")
    assert counted(flow) == (0, 3, 2, 1)


def test_an_event_is_done_only_after_its_letter_is_committed() -> None:
    at_burial: list[int] = []

    def bury(letter: DeadLetter) -> None:
        gevent.sleep(0)
        at_burial.extend(batch.done)

    flow = Flow(bury=bury)
    flow.on()(Sometimes(99))
    batch = flow.put(insert(1))
    flow.settle()

    assert at_burial == [0] and list(batch.done) == [1]


@pytest.mark.parametrize("error", [ResumeTokenPersistenceError("the disk is full"), OSError("the disk is full")])
def test_an_event_whose_letter_cannot_be_stored_is_not_done(error: Exception) -> None:
    def bury(letter: DeadLetter) -> None:
        raise error

    flow = Flow(bury=bury)
    flow.on()(Sometimes(99))
    batch = flow.put(insert(1), insert(2))
    flow.settle()

    (failure,) = flow.failures
    assert isinstance(failure, ResumeTokenPersistenceError)
    assert error in (failure, failure.__cause__)
    assert list(batch.done) == [0, 0] and flow.delivery.counts.dead_lettered == 0


def test_skip_counts_as_done_without_a_letter(caplog: pytest.LogCaptureFixture) -> None:
    flow, handler = Flow(on_error="stop"), Sometimes(99)
    flow.on(on_error="skip")(handler)

    batch = flow.play(insert(1), insert(2))

    assert handler.calls == [1, 1, 1, 2, 2, 2]
    assert list(batch.done) == [1, 1] and flow.letters == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_stop_ends_the_watcher_with_the_event_undone_and_says_why() -> None:
    flow, handler = Flow(), Sometimes(99)
    flow.on(on_error="stop")(handler)

    batch = flow.put(insert(1), insert(2))
    flow.settle()

    (failure,) = flow.failures
    assert isinstance(failure, HandlerError) and isinstance(failure.__cause__, ValueError)
    assert failure.event.raw is batch.events[0]
    assert "Sometimes failed 3 times with ValueError" in str(failure)
    assert handler.calls == [1, 1, 1] and list(batch.done) == [0, 0] and flow.letters == []


def test_when_one_lane_stops_others_finish_what_their_handlers_hold() -> None:
    flow, gate, returned = Flow(on_error="stop"), Event(), []

    @flow.on(collection="orders")
    def broken(event: ChangeEvent) -> None:
        raise ValueError("broken")

    @flow.on(collection="stock")
    def slow(event: ChangeEvent) -> None:
        gate.wait(PATIENCE)
        returned.append(event.id)

    batch = flow.put(insert(1, "stock"), insert(2, "stock"), insert(1))
    assert flow.stop.wait(PATIENCE)
    gate.set()
    flow.settle()

    assert len(returned) == 1
    assert list(batch.done) == [1, 0, 0] and len(flow.failures) == 1


@pytest.mark.parametrize("error", [GreenletExit, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("options", [{}, {"timeout": PATIENCE}, {"ack": "manual"}])
def test_what_is_meant_to_end_a_program_ends_the_watcher_and_acknowledges_nothing(
    error: type[BaseException], options: dict[str, Any]
) -> None:
    flow, handler = Flow(), Sometimes(99, error)
    flow.on(**options)(handler)

    batch = flow.put(insert(1), insert(2))
    flow.settle()

    (failure,) = flow.failures
    assert isinstance(failure, HandlerError) and isinstance(failure.__cause__, error)
    assert error.__name__ in str(failure) and failure.event.raw is batch.events[0]
    assert handler.calls == [1] and list(batch.done) == [0, 0]


# -- several handlers


def test_a_handler_that_returned_is_not_called_again_while_another_is_retried() -> None:
    flow, calls = Flow(), []

    @flow.on()
    def first(event: ChangeEvent) -> None:
        calls.append("first")

    @flow.on()
    def second(event: ChangeEvent) -> None:
        calls.append("second")
        if calls.count("second") < 3:
            raise ValueError("not yet")

    @flow.on()
    def third(event: ChangeEvent) -> None:
        calls.append("third")

    batch = flow.play(insert(1))

    assert calls == ["first", "second", "second", "second", "third"]
    assert list(batch.done) == [1]


def test_an_event_is_done_only_once_every_handler_has_returned() -> None:
    flow, seen = Flow(), []
    for number in range(3):
        flow.on()(type(f"Handler{number}", (), {"__call__": lambda self, event: seen.append(batch.done[0])})())

    batch = flow.put(insert(1))
    flow.settle()

    assert seen == [0, 0, 0] and list(batch.done) == [1]


def test_after_a_letter_for_one_handler_the_next_is_called() -> None:
    flow, broken, sound = Flow(), Sometimes(99), Sometimes(0)
    flow.on()(broken)
    flow.on_batch()(lambda events: sound(events[0]))

    batch = flow.play(insert(1))

    assert sound.calls == [1] and len(flow.letters) == 1 and list(batch.done) == [1]


def test_handlers_of_one_event_may_have_different_policies() -> None:
    flow, calls = Flow(), []

    @flow.on(on_error="skip", retry=at_once(1))
    def skipped(event: ChangeEvent) -> None:
        calls.append("skipped")
        raise ValueError("skip me")

    @flow.on(retry=at_once(2))
    def buried(event: ChangeEvent) -> None:
        calls.append("buried")
        raise ValueError("bury me")

    flow.play(insert(1))

    assert calls == ["skipped", "buried", "buried"]
    assert [letter.handler for letter in flow.letters] == [f"{__name__}:{buried.__qualname__}"]


# -- manual acknowledgement


def held(flow: Flow) -> list[AckableEvent]:
    """Register a handler that keeps its events and does not acknowledge."""
    events: list[AckableEvent] = []

    @flow.on(ack="manual")
    def keep(event: AckableEvent) -> None:
        events.append(event)

    return events


def test_a_manual_handler_acknowledges_before_it_returns() -> None:
    flow, seen = Flow(), []

    @flow.on(ack="manual")
    def handler(event: AckableEvent) -> None:
        seen.append(batch.done[0])
        event.ack()
        event.ack()
        seen.append(batch.done[0])

    batch = flow.put(insert(1))
    flow.settle()

    assert seen == [0, 1] and flow.failures == []


def test_a_manual_handler_may_acknowledge_later_and_in_any_order() -> None:
    flow = Flow()
    events = held(flow)
    batch = flow.play(insert(1), insert(2))
    assert list(batch.done) == [0, 0]

    flow.progressed.clear()
    events[1].ack()
    assert list(batch.done) == [0, 1] and flow.progressed.is_set()
    assert flow.watermark.advance() is None and flow.watermark.in_flight == 2

    events[0].ack()
    events[0].ack()
    assert list(batch.done) == [1, 1] and flow.watermark.advance() == batch.end


def test_an_acknowledgement_from_another_thread_wakes_who_waits_for_progress() -> None:
    flow = Flow()
    events = held(flow)
    batch = flow.play(insert(1))
    flow.progressed.clear()

    thread = threading.Thread(target=events[0].ack)
    waiting = gevent.spawn(flow.progressed.wait, PATIENCE)
    gevent.sleep(0)
    thread.start()
    waiting.join(PATIENCE)
    thread.join(PATIENCE)

    assert waiting.value is True and list(batch.done) == [1]


def test_manual_and_automatic_handlers_of_one_event_must_both_be_finished() -> None:
    flow = Flow()
    events, other = held(flow), Sometimes(0)
    flow.on()(other)
    batch = flow.play(insert(1))

    assert other.calls == [1] and list(batch.done) == [0]

    events[0].ack()
    assert list(batch.done) == [1]


def test_a_manual_handler_that_raises_after_its_ack_is_not_called_again(caplog: pytest.LogCaptureFixture) -> None:
    flow, calls = Flow(), []

    @flow.on(ack="manual")
    def handler(event: AckableEvent) -> None:
        calls.append(1)
        event.ack()
        raise ValueError("too late")

    batch = flow.play(insert(1))

    assert calls == [1] and list(batch.done) == [1] and flow.letters == []
    assert counted(flow) == (0, 1, 0, 0)
    assert "handler failed after it had acknowledged" in caplog.text


def test_a_manual_handler_that_raises_before_its_ack_is_called_again() -> None:
    flow, calls = Flow(), []

    @flow.on(ack="manual")
    def handler(event: AckableEvent) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not yet")
        event.ack()

    batch = flow.play(insert(1))

    assert calls == [1, 1] and list(batch.done) == [1]


def test_an_ack_during_the_wait_for_another_attempt_makes_it_needless() -> None:
    flow, calls = Flow(retry=RetryPolicy(initial_backoff=0.05, max_backoff=0.05)), []

    @flow.on(ack="manual")
    def handler(event: AckableEvent) -> None:
        calls.append(event)
        raise ValueError("somebody else has it")

    batch = flow.put(insert(1))
    gevent.sleep(0)
    calls[0].ack()
    flow.settle()

    assert len(calls) == 1 and list(batch.done) == [1] and flow.letters == []


def test_a_manual_handler_that_never_acknowledges_is_dead_lettered_only_when_it_fails() -> None:
    flow = Flow()

    @flow.on(ack="manual")
    def handler(event: AckableEvent) -> None:
        raise ValueError("broken")

    batch = flow.play(insert(1))

    assert len(flow.letters) == 1 and list(batch.done) == [1]


# -- batches


def keys(events: list[Any]) -> list[Any]:
    return [event.document_key["_id"] for event in events]


def test_a_batch_is_acknowledged_together() -> None:
    flow, calls = Flow(), []

    @flow.on_batch(max_size=3)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append((keys(events), list(batch.done)))

    batch = flow.put(*map(insert, range(6)))
    flow.settle()

    assert calls == [([0, 1, 2], [0, 0, 0, 0, 0, 0]), ([3, 4, 5], [1, 1, 1, 0, 0, 0])]
    assert list(batch.done) == [1] * 6 and counted(flow) == (6, 0, 0, 0)


def test_a_batch_that_fails_is_retried_as_a_batch_first() -> None:
    flow, calls = Flow(), []

    @flow.on_batch(max_size=2)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append(keys(events))
        if len(calls) < 3:
            raise ValueError("not yet")

    batch = flow.play(insert(1), insert(2))

    assert calls == [[1, 2]] * 3 and list(batch.done) == [1, 1] and flow.letters == []


def test_only_what_fails_alone_in_a_failed_batch_is_dead_lettered() -> None:
    flow, calls = Flow(retry=at_once(2)), []

    @flow.on_batch(max_size=3)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append(keys(events))
        if 2 in keys(events):
            raise ValueError("two is broken")

    batch = flow.play(insert(1), insert(2), insert(3))

    assert calls == [[1, 2, 3], [1, 2, 3], [1], [2], [3]]
    assert [letter.event["documentKey"] for letter in flow.letters] == [{"_id": 2}]
    assert flow.letters[0].attempts == 3
    assert list(batch.done) == [1, 1, 1]


def test_a_batch_of_one_is_not_handed_over_again() -> None:
    flow, calls = Flow(), []

    @flow.on_batch(max_size=1)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append(keys(events))
        raise ValueError("broken")

    flow.play(insert(1))

    assert calls == [[1]] * 3 and [letter.attempts for letter in flow.letters] == [3]


def test_stop_in_a_failed_batch_keeps_what_did_not_fail_alone() -> None:
    flow = Flow(on_error="stop", retry=at_once(1))

    @flow.on_batch(max_size=3)
    def handler(events: list[ChangeEvent]) -> None:
        if 2 in keys(events):
            raise ValueError("two is broken")

    batch = flow.put(insert(1), insert(2), insert(3))
    flow.settle()

    (failure,) = flow.failures
    assert isinstance(failure, HandlerError) and failure.event.raw is batch.events[1]
    assert list(batch.done) == [1, 0, 0]


def test_a_stop_in_the_middle_of_a_failed_batch_hands_over_no_more() -> None:
    flow, calls = Flow(retry=at_once(1)), []

    @flow.on_batch(max_size=3)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append(keys(events))
        if len(events) > 1:
            raise ValueError("one at a time, please")
        flow.end()

    batch = flow.put(insert(1), insert(2), insert(3))
    flow.settle()

    assert calls == [[1, 2, 3], [1]]
    assert list(batch.done) == [1, 0, 0] and flow.failures == []


def test_what_a_manual_batch_handler_acknowledged_before_it_failed_is_not_handed_over_again() -> None:
    flow, calls = Flow(retry=at_once(2)), []

    @flow.on_batch(max_size=3, ack="manual")
    def handler(events: list[AckableEvent]) -> None:
        calls.append(keys(events))
        events[0].ack()
        if len(events) > 1:
            raise ValueError("the rest later")

    batch = flow.play(insert(1), insert(2), insert(3))

    assert calls == [[1, 2, 3], [2, 3], [3]]
    assert list(batch.done) == [1, 1, 1] and flow.letters == []


def test_the_events_of_a_manual_batch_are_acknowledged_one_by_one() -> None:
    flow, kept = Flow(), []
    flow.on_batch(max_size=2, ack="manual")(kept.extend)
    batch = flow.play(insert(1), insert(2))

    assert list(batch.done) == [0, 0]
    kept[1].ack()
    assert list(batch.done) == [0, 1]
    kept[0].ack()
    assert list(batch.done) == [1, 1]


def test_hooks_hear_of_each_event_of_a_batch() -> None:
    listener, calls = Listener(), []
    flow = Flow(hooks=[listener])

    @flow.on_batch(max_size=2)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not yet")

    flow.play(insert(1), insert(2))

    assert listener.told == [
        ("failed", {"_id": 1}, "not yet", 1),
        ("failed", {"_id": 2}, "not yet", 1),
        ("handled", {"_id": 1}),
        ("handled", {"_id": 2}),
    ]
