"""ChangeStreamListener: whatever is acknowledged when, no token passes an unfinished event."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from itertools import islice
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from rigatoni import ChangeStreamConfig, ChangeStreamListener

#: Events of a random history.
EVENTS = 60


def reached(places: Sequence[str], token: Any) -> int:
    """Count the events that are at or before a token."""
    return sum(place <= token["_data"] for place in places)


class History(RuleBasedStateMachine):
    """A program takes, acknowledges, crashes and starts again, over the same events each time; beside it a plain set of
    what is acknowledged, and the token that a crash leaves.
    """

    def __init__(self, orders: Any, began: Any, places: Sequence[str]) -> None:
        super().__init__()
        self.orders = orders
        self.places = places
        self.saved = began
        self.finished: set[int] = set()
        self.start()

    def start(self) -> None:
        self.is_alive = True
        self.taken: list[Any] = []
        self.acknowledged: set[int] = set()
        self.first = reached(self.places, self.saved)
        config = ChangeStreamConfig(max_await_time=0.02, resume_token=self.saved, batch_size=7)
        self.listener = ChangeStreamListener(self.orders, config, self.save)

    def save(self, token: Any) -> None:
        if not self.is_alive:
            return
        assert token["_data"] >= self.saved["_data"], "the position went back"
        assert set(range(self.first, reached(self.places, token))) <= self.acknowledged, (
            "the position passed an unfinished event"
        )
        self.saved = token

    def prefix(self) -> int:
        """Count the events up to the first that is not acknowledged."""
        return next(n for n in range(self.first, EVENTS + 1) if n not in self.acknowledged)

    @rule(count=st.integers(1, 20))
    def take(self, count: int) -> None:
        expected = self.first + len(self.taken)
        for number in range(expected, min(expected + count, EVENTS)):
            event = self.listener.try_next()
            assert event is not None and event.id == self.places[number], "out of order, lost or repeated"
            self.taken.append(event)

    @rule()
    def idle(self) -> None:
        if self.first + len(self.taken) == EVENTS:
            assert self.listener.try_next() is None
            assert reached(self.places, self.saved) == self.prefix(), (
                "something finished was not saved within one await"
            )

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        for index in data.draw(st.lists(st.integers(0, len(self.taken) - 1), max_size=20)):
            self.acknowledged.add(self.first + index)
            self.taken[index].ack()

    @rule()
    def close_and_start(self) -> None:
        self.listener.close()
        assert reached(self.places, self.saved) == self.prefix(), "close() did not save what was finished"
        self.finished |= self.acknowledged
        self.start()

    @rule()
    def crash(self) -> None:
        # Nobody keeps what the listener of a dead process says.
        self.is_alive = False
        self.listener.close()
        self.finished |= self.acknowledged
        self.start()

    def teardown(self) -> None:
        self.take(EVENTS)
        for event in self.taken:
            event.ack()
        self.finished |= set(range(self.first, EVENTS))
        self.acknowledged = set(range(self.first, EVENTS))
        self.listener.close()
        assert self.finished == set(range(EVENTS)), "an event was never finished"
        assert reached(self.places, self.saved) == EVENTS


class Workers:
    """Threads that acknowledge what they are given, each in its own order."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.events: list[Any] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(seed,)) for seed in range(4)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _work(self, seed: int) -> None:
        choose = random.Random(seed)
        while self.events or not self._is_over.is_set():
            try:
                event = self.events.pop(choose.randrange(len(self.events) or 1))
            except IndexError:
                self._is_over.wait(0.001)
            else:
                self.acknowledged.add(event.id)
                event.ack()


def test_in_random_histories_of_acks_and_crashes_no_token_passes_an_unfinished_event(database: Any) -> None:
    with ChangeStreamListener(database.orders) as listener:
        began = listener.resume_token
        database.orders.insert_many([{"_id": number} for number in range(EVENTS)])
        places = [next(listener).id for _ in range(EVENTS)]

    run_state_machine_as_test(
        lambda: History(database.orders, began, places),
        settings=settings(max_examples=25, stateful_step_count=30, deadline=None, database=None),
    )


def test_acks_of_many_threads_never_let_a_token_pass_an_unfinished_event(database: Any) -> None:
    told: list[str] = []
    places: list[str] = []
    workers = Workers()

    def check(token: Any) -> None:
        told.append(token["_data"])
        assert workers.acknowledged.issuperset(places[: reached(places, token)])

    config = ChangeStreamConfig(max_await_time=0.05, batch_size=50)
    with ChangeStreamListener(database.orders, config, check) as listener:
        database.orders.insert_many([{"_id": number} for number in range(1000)])
        for event in islice(listener, 1000):
            places.append(event.id)
            workers.events.append(event)
        workers.finish()

    assert told == sorted(set(told))
    assert told[-1] >= places[-1]
