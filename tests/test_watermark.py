"""The finished prefix: in random histories it never passes an undone event, never goes back, and counts exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from rigatoni.watermark import Batch, Watermark


def token(place: int) -> dict[str, str]:
    return {"_data": f"{place:06}"}


def place_of(found: Mapping[str, Any] | None) -> int:
    """Read the place from a token; 0 before everything."""
    return 0 if found is None else int(found["_data"])


def a_batch(*places: int, end: int | None = None, size: int = 0) -> Batch:
    return Batch([{"_id": token(place)} for place in places], token(end or places[-1]), size)


def test_nothing_finished_is_no_position() -> None:
    assert Watermark().advance() is None

    watermark = Watermark()
    watermark.track(a_batch(1))

    assert watermark.advance() is None
    assert watermark.in_flight == 1


def test_an_empty_stream_goes_on() -> None:
    watermark = Watermark()

    watermark.extend(token(5))

    assert watermark.advance() == token(5)


def test_the_end_of_a_batch_counts_only_once_all_of_it_is_done() -> None:
    watermark, batch = Watermark(), a_batch(1, 2, end=9, size=100)
    watermark.track(batch)

    batch.done[0] = 1
    assert watermark.advance() == token(1)
    assert (watermark.in_flight, watermark.size) == (1, 100)

    batch.done[1] = 1
    assert watermark.advance() == token(9)
    assert (watermark.in_flight, watermark.size) == (0, 0)


def test_the_oldest_undone_event_is_found_without_a_change() -> None:
    watermark, first, second = Watermark(), a_batch(1, 2), a_batch(3, 4)
    assert watermark.undone() is None
    watermark.track(first)
    watermark.track(second)
    assert watermark.undone() == token(1)

    first.done[0] = second.done[0] = 1
    assert watermark.undone() == token(2)
    first.done[1] = 1
    assert watermark.undone() == token(4)
    assert watermark.in_flight == 4

    second.done[1] = 1
    assert watermark.undone() is None
    assert watermark.advance() == token(4)
    assert watermark.undone() is None


def test_a_token_behind_an_unfinished_batch_waits_for_it() -> None:
    watermark, batch = Watermark(), a_batch(1)
    watermark.track(batch)
    watermark.extend(token(7))

    assert watermark.advance() is None

    batch.done[0] = 1
    assert watermark.advance() == token(7)


def test_a_handler_that_changes_its_event_changes_no_position() -> None:
    watermark, batch = Watermark(), a_batch(1, 2)
    watermark.track(batch)

    batch.events[0]["_id"]["_data"] = "spoilt"
    batch.events[0]["_id"] = token(99)  # type: ignore[index]
    batch.done[0] = 1

    assert watermark.advance() == token(1)


def test_the_oldest_event_is_the_first_that_is_not_done() -> None:
    watermark, first, second = Watermark(), a_batch(1, 2), a_batch(3, 4)
    watermark.track(first)
    watermark.track(second)
    first.done[:] = b"\1\1"
    second.done[1] = 1

    assert watermark.oldest() is second.events[0]

    second.done[0] = 1
    assert watermark.oldest() is None


class History(RuleBasedStateMachine):
    """Batches arrive in order, events become done in any; beside it a plain list of what is undone."""

    def __init__(self) -> None:
        super().__init__()
        self.watermark = Watermark()
        self.last = 0
        self.undone: dict[int, tuple[Batch, int]] = {}
        self.batch_of: dict[int, Batch] = {}
        self.reached = 0

    @rule(count=st.integers(0, 5), gap=st.integers(0, 3), size=st.integers(0, 100))
    def track(self, count: int, gap: int, size: int) -> None:
        places = range(self.last + 1, self.last + 1 + count)
        self.last += count + gap
        batch = Batch([{"_id": token(place)} for place in places], token(self.last), size)
        for index, place in enumerate(places):
            self.undone[place] = batch, index
            self.batch_of[place] = batch
        self.watermark.track(batch)

    @precondition(lambda self: self.undone)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.undone)))
        batch, index = self.undone.pop(place)
        batch.done[index] = 1

    @precondition(lambda self: self.batch_of.keys() - self.undone.keys())
    @rule(data=st.data())
    def finish_again(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.batch_of.keys() - self.undone.keys())))
        batch = self.batch_of[place]
        batch.done[batch.tokens.index(token(place))] = 1

    @rule(gap=st.integers(1, 3))
    def extend(self, gap: int) -> None:
        self.last += gap
        self.watermark.extend(token(self.last))

    @rule()
    def advance(self) -> None:
        reached = place_of(self.watermark.advance())
        first_undone = min(self.undone, default=self.last + 1)
        done_before = [place for place in self.batch_of if place < first_undone]

        assert self.reached <= reached < first_undone
        assert reached >= max(done_before, default=0)
        if not self.undone:
            assert reached == self.last
        assert self.watermark.in_flight == sum(place >= first_undone for place in self.batch_of)
        held = {id(self.batch_of[place]): self.batch_of[place] for place in self.batch_of if place >= first_undone}
        assert self.watermark.size >= sum(batch.size for batch in held.values())
        self.reached = reached

    @invariant()
    def what_is_in_flight_is_never_fewer_than_what_is_undone(self) -> None:
        assert self.watermark.in_flight >= len(self.undone)

    def teardown(self) -> None:
        for batch, index in self.undone.values():
            batch.done[index] = 1
        self.undone.clear()
        self.advance()
        assert (self.watermark.in_flight, self.watermark.size) == (0, 0)


def test_random_histories_agree_with_a_plain_list() -> None:
    run_state_machine_as_test(History, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))
