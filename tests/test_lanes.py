"""Order, barriers and concurrency: random streams against the words of the contract, and single cases.

The theatre below writes down each call of a handler with two ticks of a clock, when it began and when it ended; what
must hold is then asked of the list.
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import gevent
import pytest
from bson import Binary, Code, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from conftest import wait_until
from flow import PATIENCE, Flow, at_once, barrier, event, insert
from gevent.event import Event
from hypothesis import given, settings
from hypothesis import strategies as st

from rigatoni import lanes as lanes_module
from rigatoni.errors import HandlerError
from rigatoni.events import ChangeEvent
from rigatoni.lane import TURN
from rigatoni.lanes import _slot
from rigatoni.registration import DOCUMENT_OPERATIONS
from rigatoni.watermark import HANDLED, UNWANTED

#: Values of ``_id``; those in one row are one document to the server.
DOCUMENTS: list[list[Any]] = [
    [1, 1.0, Int64(1), Decimal128("1"), Decimal128("1.0")],
    [2],
    [math.nan, Decimal128("NaN"), Decimal128("sNaN"), Decimal128("-NaN")],
    [0, -0.0, Decimal128("-0")],
    [{"a": 1, "b": [2]}, {"a": 1.0, "b": [Int64(2)]}],
    [None],
    ["x"],
    [Binary(b"x", 5)],
    [Regex("x", "i")],
    [Code("x", {"y": 1})],
]
POISON = 99


@pytest.fixture(scope="module", autouse=True)
def _silence() -> Iterator[None]:
    """Thousands of errors are logged here, as they should be."""
    logger = logging.getLogger("rigatoni.delivery")
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(logging.NOTSET)


# -- the theatre


@dataclass(eq=False)
class Call:
    """One call of a handler; without an end it is under way."""

    handler: int
    seqs: list[int]
    begin: int
    end: int | None = None
    is_returned: bool = False


@dataclass(eq=False)
class Play:
    """An event, and how its handlers behave: how often they yield, how often they fail."""

    seq: int
    raw: dict[str, Any]
    document: int | None
    yields: int
    fails: int

    @property
    def namespace(self) -> tuple[str | None, str | None]:
        ns = self.raw.get("ns") or {}
        return ns.get("db"), ns.get("coll")

    @property
    def is_barrier(self) -> bool:
        return self.raw["operationType"] not in DOCUMENT_OPERATIONS or self.document is None

    def reaches(self, other: Play) -> bool:
        """Tell whether this barrier concerns the namespace of another event."""
        operation, (database, collection) = self.raw["operationType"], self.namespace
        if operation == "invalidate":
            return True
        namespaces = [self.namespace, *([("shop", self.raw["to"]["coll"])] if operation == "rename" else [])]
        return other.namespace in namespaces or (collection is None and database == other.namespace[0])


@dataclass
class Theatre:
    """Play events through lanes and remember every call."""

    flow: Flow
    plays: list[Play]
    stop_at: int | None = None
    calls: list[Call] = field(default_factory=list)
    clock: Iterator[int] = field(default_factory=itertools.count)
    left: dict[tuple[int, int], int] = field(default_factory=dict)
    done: dict[int, tuple[bytearray, int]] = field(default_factory=dict)
    finished: set[tuple[int, int]] = field(default_factory=set)
    broken: list[AssertionError] = field(default_factory=list)

    def register(self, cast: list[dict[str, Any]]) -> None:
        for number, role in enumerate(cast):
            role = dict(role)
            on = self.flow.on_batch if "max_size" in role else self.flow.on
            operations = role.pop("operations")
            on(*operations, **role)(type(f"Handler{number}", (Actor,), {})(self, number, role))

    def act(self, number: int, role: dict[str, Any], argument: Any) -> None:
        events = argument if isinstance(argument, list) else [argument]
        plays = [self.plays[event["seq"]] for event in events]
        assert 1 <= len(plays) <= role.get("max_size", 1)
        self._nobody_else_has(plays)
        assert all(flags[index] == 0 for flags, index in (self.done[play.seq] for play in plays))
        call = Call(number, [play.seq for play in plays], next(self.clock))
        self.calls.append(call)
        if len(self.calls) == self.stop_at:
            self.flow.end()
        try:
            for _ in range(max(play.yields for play in plays)):
                gevent.sleep(0)
            self._only_what_is_finished_is_done()
            if [play for play in plays if self._fails(number, play)]:
                raise ValueError("not this time")
            if role.get("ack") == "manual":
                for each in events:
                    each.ack()
            call.is_returned = True
            self.finished.update((number, play.seq) for play in plays)
        finally:
            call.end = next(self.clock)

    def play(self, sizes: Iterator[int]) -> None:
        rest = list(self.plays)
        while rest and not self.flow.stop.is_set():
            share, rest = rest[: (size := next(sizes))], rest[size:]
            # Flags are looked at by the handlers, so they must be found before the lanes run.
            batch = self.flow.put(*(play.raw for play in share))
            self.done.update((play.seq, (batch.done, index)) for index, play in enumerate(share))
            gevent.sleep(0)
        self.flow.settle()

    def wanted(self, play: Play) -> list[int]:
        return [
            number
            for number, handler in enumerate(self.flow._handlers)
            if handler.matches(*play.namespace, play.raw["operationType"])
        ]

    def of(self, play: Play, handler: int | None = None) -> list[Call]:
        return [call for call in self.calls if play.seq in call.seqs and handler in (None, call.handler)]

    def _fails(self, number: int, play: Play) -> bool:
        left = self.left.setdefault((number, play.seq), play.fails)
        self.left[number, play.seq] = max(left - 1, 0) if play.fails != POISON else left
        return left > 0

    def _only_what_is_finished_is_done(self) -> None:
        """Ask for the position as the saver does, which may do so whenever a handler waits."""
        token = self.flow.watermark.advance()
        reached = 0 if token is None else int(token["_data"])
        buried = {(letter.handler, letter.event["seq"]) for letter in self.flow.letters}
        for seq, (flags, index) in self.done.items():
            wanted = self.wanted(self.plays[seq])
            left = [n for n in wanted if (n, seq) not in self.finished and (name_of(n), seq) not in buried]
            assert flags[index] == 0 or not left, f"{self.plays[seq].raw} is done, and {left} have not returned"
            # Its place in the stream, which begins at 1.
            assert flags[index] or reached < seq + 1, f"the position {reached} is past {self.plays[seq].raw}"

    def _nobody_else_has(self, plays: list[Play]) -> None:
        running = [self.plays[seq] for call in self.calls if call.end is None for seq in call.seqs]
        for mine, theirs in itertools.product(plays, running):
            is_one_document = mine.namespace == theirs.namespace and mine.document == theirs.document
            assert not is_one_document, f"{mine.raw} and {theirs.raw} are handled at once"


@dataclass(frozen=True)
class Actor:
    """A handler that does as the theatre says."""

    theatre: Theatre
    number: int
    role: dict[str, Any]

    def __call__(self, argument: Any) -> None:
        try:
            self.theatre.act(self.number, self.role, argument)
        except AssertionError as error:
            # Kept, because it looks like any failure of a handler, which may be called again or stopped.
            self.theatre.broken.append(error)
            raise


def name_of(number: int) -> str:
    """Say what the handler of this number is called."""
    return f"{__name__}:Handler{number}"


def is_before(earlier: list[Call], later: list[Call]) -> bool:
    """Tell whether all of these calls ended before all of those began."""
    return all(a.end is not None and a.end < b.begin for a in earlier for b in later)


def check_order(theatre: Theatre, earlier: Play, later: Play) -> None:
    """Each handler is called for one before it is called for the other; in one batch they stand in order."""
    for handler in range(len(theatre.flow._handlers)):
        mine, theirs = theatre.of(earlier, handler), theatre.of(later, handler)
        shared = [call for call in mine if later.seq in call.seqs]
        for call in shared:
            assert call.seqs.index(earlier.seq) < call.seqs.index(later.seq)
        assert is_before([c for c in mine if c not in shared], [c for c in theirs if c not in shared])


def check(theatre: Theatre) -> None:
    """Ask the calls for everything that the contract says about order."""
    assert theatre.broken == []
    for earlier, later in itertools.combinations(theatre.plays, 2):
        barred = [play for play in (earlier, later) if play.is_barrier]
        if barred:
            other = later if barred[0] is earlier else earlier
            if barred[0].reaches(other) or (later.is_barrier and later.reaches(earlier)):
                assert is_before(theatre.of(earlier), theatre.of(later)), (earlier.raw, later.raw)
        elif earlier.namespace == later.namespace:
            if earlier.document == later.document or width(theatre, earlier) == 1:
                check_order(theatre, earlier, later)
    for play in theatre.plays:
        for first, second in itertools.combinations(theatre.wanted(play), 2):
            assert is_before(theatre.of(play, first), theatre.of(play, second)), "not in the order of registration"
    check_concurrency(theatre)


def width(theatre: Theatre, play: Play) -> int:
    asked = [h.concurrency for h in theatre.flow._handlers if h.concurrency and h.concerns(*play.namespace)]
    return max(asked, default=theatre.flow._concurrency)


def check_concurrency(theatre: Theatre) -> None:
    for namespace in {play.namespace for play in theatre.plays}:
        calls = [call for call in theatre.calls if theatre.plays[call.seqs[0]].namespace == namespace]
        ticks = sorted([(c.begin, 1) for c in calls] + [(c.end, -1) for c in calls if c.end is not None])
        most = max(itertools.accumulate(step for _, step in ticks), default=0)
        if calls:
            assert most <= width(theatre, theatre.plays[calls[0].seqs[0]])


# -- random streams


@st.composite
def plays(draw: st.DrawFn, fails: st.SearchStrategy[int]) -> list[Play]:
    kinds = ["insert", "update", "replace", "delete"] * 4 + ["drop", "rename", "dropDatabase", "invalidate"]
    made = []
    for seq in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from([*kinds, "tomorrow", "keyless"]))
        collection = draw(st.sampled_from(["a", "a", "b", "c"]))
        document: int | None = None
        if kind in DOCUMENT_OPERATIONS:
            document = draw(st.integers(0, len(DOCUMENTS) - 1))
            raw = event(kind, draw(st.sampled_from(DOCUMENTS[document])), collection)
        elif kind == "keyless":
            raw = {"operationType": "insert", "ns": {"db": "shop", "coll": collection}}
        elif kind == "rename":
            raw = barrier(kind, collection, to=draw(st.sampled_from(["a", "b", "c"])))
        else:
            raw = barrier(kind, None if kind == "dropDatabase" else collection)
        raw["seq"] = seq
        made.append(Play(seq, raw, document, draw(st.integers(0, 3)), draw(fails)))
    return made


OPERATIONS = st.just([]) | st.lists(
    st.sampled_from(["insert", "update", "delete", "drop", "rename"]), min_size=1, max_size=3, unique=True
)
ROLE = st.fixed_dictionaries(
    {"operations": OPERATIONS, "collection": st.sampled_from([None, None, "a", ["a", "b"], "*"])},
    optional={
        "concurrency": st.integers(1, 3),
        "ack": st.just("manual"),
        "timeout": st.just(PATIENCE),
        "max_size": st.integers(1, 4),
    },
).map(lambda role: {**role, "max_wait": 0.001} if "max_size" in role else role)
CAST = st.lists(ROLE, min_size=1, max_size=3)
SIZES = st.lists(st.integers(1, 5), min_size=14, max_size=14)


@given(plays(st.sampled_from([0] * 6 + [1, 2, POISON])), CAST, st.integers(1, 4), SIZES)
@settings(max_examples=120, deadline=None)
def test_random_streams_are_handled_in_order_and_exactly_once(
    made: list[Play], cast: list[dict[str, Any]], concurrency: int, sizes: list[int]
) -> None:
    theatre = Theatre(Flow(concurrency=concurrency, retry=at_once(3)), made)
    theatre.register(cast)
    theatre.play(iter(sizes))

    flow = theatre.flow
    assert flow.failures == []
    letters = [(letter.handler, letter.event["seq"]) for letter in flow.letters]
    for play in made:
        wanted = theatre.wanted(play)
        flags, index = theatre.done[play.seq]
        assert flags[index] == (HANDLED if wanted else UNWANTED)
        for number in range(len(cast)):
            is_poisoned = play.fails == POISON
            returned = sum(call.is_returned for call in theatre.of(play, number))
            assert returned == (number in wanted and not is_poisoned)
            buried = letters.count((name_of(number), play.seq))
            assert buried == (number in wanted and is_poisoned)
    assert flow.watermark.advance() == {"_data": f"{len(made):06}"}
    assert flow.watermark.in_flight == 0
    check(theatre)


@given(plays(st.just(0)), CAST, st.integers(1, 4), SIZES, st.integers(1, 20))
@settings(max_examples=120, deadline=None)
def test_a_stop_in_the_middle_loses_nothing_and_leaves_nothing_to_repeat(
    made: list[Play], cast: list[dict[str, Any]], concurrency: int, sizes: list[int], stop_at: int
) -> None:
    theatre = Theatre(Flow(concurrency=concurrency), made, stop_at)
    theatre.register(cast)
    theatre.play(iter(sizes))

    check_what_is_done(theatre)
    token = theatre.flow.watermark.advance()
    reached = 0 if token is None else int(token["_data"])
    assert max((seq + 1 for call in theatre.calls for seq in call.seqs), default=0) <= reached


@given(plays(st.sampled_from([0, 0, 1, POISON])), CAST, st.integers(1, 4), SIZES, st.integers(1, 20))
@settings(max_examples=120, deadline=None)
def test_a_stop_among_failing_handlers_acknowledges_only_what_returned(
    made: list[Play], cast: list[dict[str, Any]], concurrency: int, sizes: list[int], stop_at: int
) -> None:
    theatre = Theatre(Flow(concurrency=concurrency, retry=at_once(0)), made, stop_at)
    theatre.register(cast)
    gevent.spawn_later(0.05, theatre.flow.end)
    theatre.play(iter(sizes))

    check_what_is_done(theatre)


@given(plays(st.sampled_from([0, 0, 0, POISON])), CAST, st.integers(1, 4), SIZES)
@settings(max_examples=80, deadline=None)
def test_a_handler_that_fails_for_good_ends_everything_with_nothing_undone_acknowledged(
    made: list[Play], cast: list[dict[str, Any]], concurrency: int, sizes: list[int]
) -> None:
    theatre = Theatre(Flow(concurrency=concurrency, on_error="stop"), made)
    theatre.register(cast)
    theatre.play(iter(sizes))

    check_what_is_done(theatre)
    is_failed = any(theatre.wanted(play) and play.fails == POISON for play in made)
    assert bool(theatre.flow.failures) is is_failed


def check_what_is_done(theatre: Theatre) -> None:
    """Only what all of its handlers returned from is done; what was called, in the right order."""
    for play in theatre.plays:
        flags, index = theatre.done.get(play.seq, (bytearray(1), 0))
        wanted = theatre.wanted(play)
        is_finished = all(any(call.is_returned for call in theatre.of(play, number)) for number in wanted)
        if play.seq in theatre.done:
            due = (HANDLED if is_finished else 0) if wanted else UNWANTED
            # A barrier that nobody handles waits all the same, and may be given up with what it waits for.
            is_given_up = not wanted and play.document is None and not flags[index]
            assert flags[index] == due or is_given_up
    assert not theatre.flow.lanes.live
    check(theatre)


# -- single cases


def test_a_stop_finishes_an_event_whose_first_handler_was_called_already() -> None:
    flow, gate, calls = Flow(), Event(), []

    @flow.on()
    def single(event: ChangeEvent) -> None:
        calls.append(("single", event["documentKey"]["_id"]))
        if event.collection == "b":
            gate.wait(PATIENCE)

    @flow.on_batch(collection="a", max_wait=PATIENCE)
    def batch(events: list[ChangeEvent]) -> None:
        calls.append(("batch", events[0]["documentKey"]["_id"]))

    done = flow.put(insert(1, "b"), insert(2, "a")).done
    gevent.sleep(0.01)
    assert calls == [("single", 1), ("single", 2)]

    flow.end()
    gate.set()
    flow.settle()

    assert calls[2:] == [("batch", 2)] and list(done) == [HANDLED, HANDLED]


def test_a_stop_forgets_an_event_that_waits_for_the_batch_before_it() -> None:
    flow, calls = Flow(), []

    @flow.on_batch(max_wait=PATIENCE)
    def batch(events: list[ChangeEvent]) -> None:
        calls.append([event["documentKey"]["_id"] for event in events])
        flow.end()

    flow.on("insert", collection="a")(lambda event: pytest.fail("it overtakes what was given up in b"))

    done = flow.put(event("update", 1, "a"), insert(2, "b"), insert(3, "a")).done
    flow.settle()

    assert calls == [[1]] and list(done) == [HANDLED, 0, 0]


def test_a_barrier_that_fails_lets_go_the_lanes_that_wait_for_it() -> None:
    flow = Flow(concurrency=4, on_error="stop", retry=at_once(1))

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        if event.operation == "drop":
            raise ValueError("broken")

    batch = flow.put(*map(insert, range(20)), barrier("drop"), *map(insert, range(20)))
    flow.settle()

    assert list(batch.done) == [HANDLED] * 20 + [0] * 21
    assert isinstance(flow.failures[0], HandlerError) and len(flow.failures) == 1


def test_a_lane_that_fails_during_a_stop_lets_go_who_waits_for_it_at_a_barrier() -> None:
    flow, gate, calls = Flow(concurrency=2, on_error="stop", retry=at_once(1)), Event(), []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        if event["documentKey"]["_id"] == 1:
            gate.wait(PATIENCE)
            raise ValueError("broken")
        calls.append(event.operation)

    # The last one overtakes the barrier, so that the stop does not forget it.
    batch = flow.put(insert(1), insert(2), barrier("drop"), insert(3, "parcels"))
    wait_until(lambda: len(calls) == 2)
    flow.end()
    gate.set()
    flow.settle()

    assert calls == ["insert", "insert"] and list(batch.done) == [0, HANDLED, 0, HANDLED]
    assert len(flow.failures) == 1


def test_running_handlers_are_named_to_other_threads_while_lanes_come_and_go() -> None:
    flow, ended, named = Flow(concurrency=50), [], []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        gevent.sleep(0)

    def ask() -> None:
        try:
            while not ended:
                named.extend(name for name, _ in flow.lanes.unfinished())
        except BaseException as error:
            ended.append(error)

    asking, interval = threading.Thread(target=ask), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        asking.start()
        for _ in range(100):
            flow.play(*map(insert, range(100)))
        assert ended == [] and named
    finally:
        sys.setswitchinterval(interval)
        ended.append(None)
        asking.join()


def test_a_handler_that_has_returned_is_not_named_while_the_rest_of_the_hub_has_its_turn() -> None:
    flow, named = Flow(), []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        gevent.spawn(lambda: named.append(list(flow.lanes.unfinished())))
        # Longer than a turn, and the hub is not asked.
        until = monotonic() + 2 * TURN
        while monotonic() < until:
            pass

    flow.play(*map(insert, range(3)))

    # The last one is looked for when nothing is left at all.
    assert named[:2] == [[], []]


def test_a_stop_during_the_retries_of_a_barrier_lets_nobody_pass_it() -> None:
    flow, calls = Flow(concurrency=4, retry=at_once(0)), []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        calls.append(event.operation)
        if event.operation == "drop":
            if calls.count("drop") == 3:
                flow.end()
            raise ValueError("broken")

    batch = flow.put(*map(insert, range(8)), barrier("drop"), *map(insert, range(8)))
    flow.settle()

    assert calls == ["insert"] * 8 + ["drop"] * 3
    assert list(batch.done) == [HANDLED] * 8 + [0] * 9 and flow.failures == []


def test_a_barrier_waits_for_returns_and_not_for_acknowledgements() -> None:
    flow, kept = Flow(concurrency=2), []
    flow.on(ack="manual")(kept.append)

    flow.play(insert(1), insert(2), barrier("drop"), insert(1))

    assert [event.operation for event in kept] == ["insert", "insert", "drop", "insert"]


def test_documents_are_handled_at_once_as_far_as_there_are_lanes() -> None:
    flow, gate, inside = Flow(concurrency=3), Event(), []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        inside.append(event)
        gate.wait(PATIENCE)

    flow.put(*(insert(number) for number in range(6)))
    gevent.sleep(0.01)
    assert len(inside) == 3

    gate.set()
    flow.settle()
    assert len(inside) == 6


def test_a_slow_collection_does_not_hold_another() -> None:
    flow, gate, returned = Flow(), Event(), []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        if event.collection == "slow":
            gate.wait(PATIENCE)
        returned.append(event.collection)

    flow.put(insert(1, "slow"), insert(1, "fast"), insert(2, "fast"))
    wait_until(lambda: len(returned) >= 2)
    assert returned == ["fast", "fast"]
    assert [(name, event.collection) for name, event in flow.lanes.unfinished()] == [
        (f"{__name__}:{handler.__qualname__}", "slow")
    ]

    gate.set()
    flow.settle()
    assert returned == ["fast", "fast", "slow"] and list(flow.lanes.unfinished()) == []


def test_the_rest_of_the_hub_goes_on_while_handlers_do_not_yield() -> None:
    flow, ticks = Flow(), []
    flow.on()(lambda event: ticks_during.append(len(ticks)))
    ticks_during: list[int] = []

    def tick() -> None:
        while flow.lanes.live:
            ticks.append(1)
            gevent.sleep(0)

    flow.put(*(insert(number) for number in range(50_000)))
    ticker = gevent.spawn(tick)
    flow.settle()
    ticker.join(PATIENCE)

    assert ticks_during[-1] > 1


def test_a_lane_that_is_killed_from_outside_is_a_failure() -> None:
    flow, gate = Flow(), Event()
    flow.on()(lambda event: gate.wait(PATIENCE))
    batch = flow.put(insert(1), insert(2))
    gevent.sleep(0)
    (lane,) = flow.lanes.live
    assert lane.greenlet is not None

    lane.greenlet.kill()
    flow.settle()

    assert [type(failure) for failure in flow.failures] == [HandlerError]
    assert list(batch.done) == [0, 0]


def test_a_lane_that_is_killed_while_it_waits_for_its_batch_is_a_failure() -> None:
    flow = Flow()
    flow.on_batch(max_wait=PATIENCE)(lambda events: pytest.fail("it was killed before"))
    batch = flow.put(insert(1))
    gevent.sleep(0)
    (lane,) = flow.lanes.live
    assert lane.greenlet is not None

    lane.greenlet.kill()
    flow.settle()

    assert len(flow.failures) == 1 and list(batch.done) == [0]


# -- batches


def batches(flow: Flow, *operations: str, **options: Any) -> list[list[Any]]:
    calls: list[list[Any]] = []

    @flow.on_batch(*operations, **{"max_wait": PATIENCE, **options})
    def handler(events: list[ChangeEvent]) -> None:
        calls.append([event["documentKey"]["_id"] if "documentKey" in event else event.operation for event in events])

    return calls


def test_a_batch_is_handed_over_when_it_is_full_or_has_waited() -> None:
    flow = Flow()
    calls = batches(flow, max_size=3, max_wait=0.01)

    flow.play(*map(insert, range(5)))

    assert calls == [[0, 1, 2], [3, 4]]


def test_a_batch_behind_a_slow_handler_is_not_kept_waiting_by_a_lane_that_never_runs_dry() -> None:
    flow, order = Flow(), []

    @flow.on()
    def slow(event: ChangeEvent) -> None:
        gevent.sleep(0.01)
        order.append("one")

    @flow.on_batch(max_wait=0.05)
    def many(events: list[ChangeEvent]) -> None:
        order.append("many")

    flow.play(*map(insert, range(20)))

    # Without a look at the clock it would be handed over once, when the lane runs dry.
    assert order.count("one") == 20 and order.count("many") > 1


def test_events_that_arrive_while_a_batch_waits_join_it() -> None:
    flow = Flow()
    calls = batches(flow, max_size=3)
    for number in range(3):
        flow.put(insert(number))
        gevent.sleep(0)

    flow.settle()

    assert calls == [[0, 1, 2]]


def test_an_event_for_single_handlers_flushes_the_batch_before_it() -> None:
    flow, seen = Flow(), []
    calls = batches(flow, "insert")
    flow.on("delete")(lambda event: seen.append(list(calls)))

    flow.play(insert(1), insert(2), event("delete", 3))

    assert seen == [[[1, 2]]] == [calls]


def test_a_barrier_flushes_the_batch_and_is_a_batch_of_its_own() -> None:
    flow = Flow()
    calls = batches(flow, max_wait=0.001)

    flow.play(insert(1), insert(2), barrier("drop"), insert(3))

    assert calls == [[1, 2], ["drop"], [3]]


def test_an_update_that_nobody_wants_does_not_flush_the_batch() -> None:
    flow = Flow()
    calls = batches(flow, "insert", "update", max_size=2, fields="paid")

    flow.play(insert(1), event("update", 9, updateDescription={"updatedFields": {"other": 1}}), insert(2))

    assert calls == [[1, 2]]


def test_when_the_stream_is_held_a_batch_that_is_not_full_is_handed_over() -> None:
    flow = Flow()
    calls = batches(flow, max_size=10)

    flow.put(insert(1), insert(2))
    flow.lanes.flush()
    flow.settle()
    assert calls == [[1, 2]]

    flow.put(insert(3))
    gevent.sleep(0.01)
    assert calls == [[1, 2]]
    flow.lanes.flush()
    flow.settle()
    assert calls == [[1, 2], [3]]


def test_a_batch_holds_events_of_one_lane_only() -> None:
    flow = Flow(concurrency=4)
    calls = batches(flow, max_wait=0.001)
    collections: dict[Any, str] = {}
    keys = [*range(20)]

    flow.play(*(insert(key, collections.setdefault(key, "ab"[key % 2])) for key in keys))

    assert sorted(key for call in calls for key in call) == keys
    assert all(len({collections[key] for key in call}) == 1 for call in calls)
    assert all(len({_slot({"_id": key}, 4) for key in call}) == 1 for call in calls)


# -- which lane


@pytest.mark.parametrize("row", DOCUMENTS, ids=lambda row: repr(row[0]))
def test_values_that_are_one_id_to_the_server_share_a_lane(row: list[Any]) -> None:
    assert len({_slot({"_id": value}, 1_000_003) for value in row}) == 1
    assert len({_slot({"_id": {"part": [value]}}, 1_000_003) for value in row}) == 1


def test_different_documents_are_spread_over_the_lanes() -> None:
    assert {_slot({"_id": ObjectId()}, 4) for _ in range(200)} == {0, 1, 2, 3}
    assert {_slot({"_id": {"a": number}}, 4) for number in range(200)} == {0, 1, 2, 3}


def test_the_shard_key_beside_the_id_does_not_matter() -> None:
    assert _slot({"region": "north", "_id": 7}, 1_000_003) == _slot({"_id": 7, "region": "south"}, 1_000_003)


BSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text()
    | st.binary()
    | st.datetimes()
    | st.sampled_from(
        [MinKey(), MaxKey(), Regex("a"), Code("a"), Code("a", {"b": 1}), Timestamp(1, 1), Decimal128("sNaN")]
    ),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(BSON, st.integers(2, 8))
@settings(max_examples=200, deadline=None)
def test_any_id_has_a_lane_and_always_the_same(value: Any, lanes: int) -> None:
    assert 0 <= _slot({"_id": value}, lanes) == _slot({"_id": value}, lanes) < lanes


@pytest.mark.parametrize("key", [None, "7", 7, [1], {"no": "id"}])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_document_key_that_a_pipeline_has_changed_ends_nothing(key: Any, concurrency: int) -> None:
    flow, calls = Flow(concurrency=concurrency), []
    flow.on()(lambda event: calls.append(event.id))

    flow.play(*({**insert(), "documentKey": key, "nth": number} for number in range(4)))

    assert calls == sorted(calls) and len(calls) == 4


@pytest.mark.parametrize("namespace", [None, "shop.orders", {}, {"db": "shop"}])
def test_a_namespace_that_a_pipeline_has_changed_ends_nothing(namespace: Any) -> None:
    flow, calls = Flow(), []
    flow.on()(lambda event: calls.append(event.id))

    flow.play({**insert(), "ns": namespace}, {**insert(), "ns": namespace})

    assert len(calls) == 2


def test_names_without_end_are_forgotten_and_the_order_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "MOST_ROUTES", 4)
    flow, calls = Flow(concurrency=2), []

    @flow.on()
    def handler(event: ChangeEvent) -> None:
        gevent.sleep(0)
        calls.append((event.collection, event["nth"]))

    events = [insert(1, f"c{nth % 9}", nth=nth) for nth in range(60)]
    for nth in range(0, 60, 10):
        flow.put(*events[nth : nth + 10])
        gevent.sleep(0)
    flow.settle()

    assert len(calls) == 60 and len(flow.lanes._routes) <= 4
    for number in range(9):
        mine = [nth for name, nth in calls if name == f"c{number}"]
        assert mine == sorted(mine)


def test_a_stop_during_the_retries_of_a_batch_before_a_barrier_lets_go_who_waits_for_it() -> None:
    flow, calls = Flow(concurrency=2, retry=at_once(0)), []

    @flow.on_batch(max_wait=PATIENCE)
    def handler(events: list[ChangeEvent]) -> None:
        calls.append([event.operation for event in events])
        if events[0]["documentKey"]["_id"] == 1:
            if len(calls) > 5:
                flow.end()
            raise ValueError("broken")

    flow.put(insert(1), insert(2), barrier("drop"), insert(3))
    flow.settle()

    assert flow.failures == [] and ["drop"] not in calls


def test_a_barrier_that_nobody_handles_holds_back_what_comes_after_it() -> None:
    flow, gate, calls = Flow(concurrency=8), Event(), []

    def handle(event: ChangeEvent) -> None:
        calls.append(event["documentKey"]["_id"])
        gate.wait(PATIENCE)

    flow.on("insert", collection="orders")(handle)
    batch = flow.put(insert(1), barrier("drop"), insert(2), insert(3), insert(4))
    gevent.sleep(0)
    gevent.sleep(0)
    assert calls == [1] and list(batch.done) == [0, 0, 0, 0, 0]

    gate.set()
    flow.settle()

    assert sorted(calls) == [1, 2, 3, 4] and list(batch.done) == [HANDLED, UNWANTED, HANDLED, HANDLED, HANDLED]
