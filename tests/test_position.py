"""Places in a stream: their order, what a stream inherits, and random histories against a position per namespace.

The model at the end knows no rows. It remembers for each namespace how far it is done, which is what the rows are meant
to say, and plays runs of changing scopes and handlers, clean stops and crashes over a growing oplog.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from bson import Timestamp
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from rigatoni.position import Position, Resumption, earliest, narrowest, resume, time_of

V1, V2 = "2B02", "2B04"


def a_token(time: int, index: int = 0, version: str = V1) -> dict[str, Any]:
    """Make the token of an event: `index` is its place in the transaction that has this cluster time."""
    place = f"2B{2 * index:02X}" if index else "29"
    uuid, key = "5A1004" + "9F" * 16, "46645F69640064" + f"{time:024X}" + "0004"
    return {"_data": f"82{time:08X}00000001{version}2C0100{place}6E{uuid}{key}", "_typeBits": b"\x82"}


def a_mark(time: int, version: str = V1) -> dict[str, Any]:
    """Make a high-water mark: the postBatchResumeToken that comes before all events of its cluster time."""
    return {"_data": f"82{time:08X}00000001{version}29296E04"}


def at(time: int, index: int = 0, version: str = V1, fingerprint: str = "") -> Position:
    return Position.of(a_token(time, index, version), fingerprint)


def from_time(time: int) -> Position:
    return Position(None, Timestamp(time, 1))


# -- tokens and positions


def test_the_cluster_time_is_read_from_the_token() -> None:
    token = {"_data": "8265A1B2C30000002A2B022C0100296E5A1004"}

    assert time_of(token) == Timestamp(0x65A1B2C3, 42)
    assert Position.of(token, "filter", "rs0").cluster_time == Timestamp(0x65A1B2C3, 42)


@pytest.mark.parametrize(
    "token",
    [
        None,
        "82",
        {},
        {"_data": b"8265A1B2C30000002A2B02"},
        {"_data": 82},
        {"_data": ""},
        {"_data": "8265A1B2C30000002A"},
        {"_data": "8365A1B2C30000002A2B022C01"},
        {"_data": "82secret-secret-secret"},
        {"_data": "8265A1B2C30000002A2B022C01secret"},
        {"_data": "8265A1B2C30000002A2B022C01\n"},
    ],
)
def test_a_malformed_token_is_refused_and_not_shown(token: Any) -> None:
    with pytest.raises(ValueError, match="Pass the whole token") as raised:
        Position.of(token)

    assert "65A1" not in str(raised.value) and "secret" not in str(raised.value)


def test_a_token_of_another_cluster_time_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match=r"Timestamp\(7, 1\)") as raised:
        Position(a_token(5), Timestamp(7, 1))

    assert "82" not in str(raised.value)


def test_a_position_keeps_the_whole_token_but_does_not_show_it() -> None:
    token = a_token(5)
    position = Position.of(token, "filter", "rs0")
    kept = dict(token)
    token.clear()

    assert position.token == kept
    assert position == Position(kept, Timestamp(5, 1), "filter", "rs0")
    assert hash(position) == hash(Position(kept, Timestamp(5, 1), "filter", "rs0"))
    assert kept["_data"] not in repr(position) and "typeBits" not in repr(position)


def test_a_position_covers_the_events_up_to_its_own_also_within_a_transaction() -> None:
    position = at(5, index=1)

    assert [position.covers(a_token(5, index)) for index in range(3)] == [True, True, False]
    assert position.covers(a_token(4)) and not position.covers(a_token(6))


def test_a_high_water_mark_covers_no_event_of_its_cluster_time() -> None:
    assert not Position.of(a_mark(5)).covers(a_token(5))
    assert Position.of(a_mark(5)).covers(a_token(4))


def test_a_time_covers_no_event_of_that_time() -> None:
    assert not from_time(5).covers(a_token(5))
    assert from_time(5).covers(a_token(4))


def test_of_tokens_of_different_versions_only_the_cluster_time_is_compared() -> None:
    assert at(5, version=V2).covers(a_token(4)) and at(5).covers(a_token(4, version=V2))
    assert not at(5, 3, version=V2).covers(a_token(5)) and not at(5, 3).covers(a_token(5, version=V2))
    assert not at(5, version=V2).covers(a_token(6))


def test_digits_in_lower_case_sort_as_the_server_reads_them() -> None:
    lower = Position.of({"_data": a_token(0xA5)["_data"].lower()})

    assert not lower.covers(a_token(0xB5)) and lower.covers(a_token(0xA5))
    assert at(0xB5).reaches(lower) and not lower.reaches(at(0xB5))


def test_a_position_moves_forward_only() -> None:
    assert at(5).later(at(6)) == at(6) and at(6).later(at(5)) == at(6)
    assert at(5).later(at(5, 1)) == at(5, 1) and at(5, 1).later(at(5)) == at(5, 1)
    assert from_time(5).later(at(5)) == at(5) and at(5).later(from_time(5)) == at(5)
    assert from_time(6).later(at(5)) == from_time(6) and at(5).later(from_time(6)) == from_time(6)


def test_a_position_stays_where_the_order_is_unknown() -> None:
    assert at(5).later(at(5, 1, V2)) == at(5) and at(5, 1, V2).later(at(5)) == at(5, 1, V2)
    assert at(5).later(at(6, version=V2)) == at(6, version=V2)


def test_the_same_place_is_reached() -> None:
    assert at(5).reaches(at(5)) and from_time(5).reaches(from_time(5))


def test_the_earliest_position_is_the_one_that_all_others_reach() -> None:
    assert earliest([]) is None
    assert earliest([at(7), at(5, 1), at(5), at(6, version=V2)]) == at(5)
    assert earliest([at(5), from_time(5), at(5, version=V2)]) == from_time(5)


def test_the_earliest_of_one_time_and_different_versions_is_that_time() -> None:
    tied = [Position.of(a_token(5, 2), "filter", "rs0"), Position.of(a_token(5, 1, V2), "other", "rs0"), at(6)]

    assert earliest(tied) == Position(None, Timestamp(5, 1), "", "rs0")


# -- scopes


def contains(scope: str, other: str) -> bool:
    return narrowest(other, [scope]) == scope


def test_a_scope_contains_itself_and_what_is_inside() -> None:
    assert contains("", "") and contains("", "shop") and contains("", "shop.orders")
    assert contains("shop", "shop") and contains("shop", "shop.orders") and contains("shop", "shop.orders.eu")
    assert contains("shop.orders", "shop.orders")


def test_a_scope_does_not_contain_what_only_looks_alike() -> None:
    assert not contains("shop", "") and not contains("shop.orders", "shop")
    assert not contains("shop", "shopping.orders") and not contains("shop", "crm.shop")
    assert not contains("shop.orders", "shop.orders.eu") and not contains("shop.orders.eu", "shop.orders")


def test_the_narrowest_scope_wins() -> None:
    assert narrowest("shop.orders.eu", ["", "shop", "shop.orders"]) == "shop"
    assert narrowest("shop.orders", ["", "shop", "shop.orders"]) == "shop.orders"
    assert narrowest("crm", ["", "shop"]) == ""
    assert narrowest("crm", ["shop"]) is None


# -- what a stream inherits


def test_without_stored_rows_there_is_no_start_and_nothing_is_dropped() -> None:
    resumption = resume({"crm": at(9), "shop.items": at(9)}, "shop.orders", ["shop.orders"])

    assert resumption.start is None and resumption.inherited == {} and not resumption.catching_up
    assert not resumption.drops("shop", "orders", a_token(1))
    assert resumption.rows(at(3)) == {"shop.orders": at(3)}
    assert resumption.rows(at(4)) == {"shop.orders": at(4)}


def test_a_stream_starts_from_its_own_row_before_one_around_it() -> None:
    resumption = resume({"": at(9), "shop": at(8), "shop.orders": at(5)}, "shop.orders", ["shop.orders"])

    assert resumption.start == at(5) and resumption.inherited == {"shop.orders": at(5)}


def test_a_stream_starts_from_the_narrowest_row_around_it_and_does_not_write_it() -> None:
    resumption = resume({"": at(4), "shop": at(8)}, "shop.orders", ["shop.orders"])

    assert resumption.start == at(8) and resumption.inherited == {"shop": at(8)}
    assert resumption.drops("shop", "orders", a_token(8)) and not resumption.drops("shop", "orders", a_token(9))
    assert resumption.rows(at(8)) == {"shop.orders": at(8)}
    assert resumption.rows(at(9)) == {"shop.orders": at(9)}


def test_a_stream_inherits_the_rows_inside_it_that_no_other_stream_owns() -> None:
    stored = {"shop": at(8), "shop.orders": at(5), "shop.items": at(3), "crm": at(2), "crm.leads": at(1)}

    shared = resume(stored, "", ["", "crm", "shop.items"])
    crm = resume(stored, "crm", ["", "crm", "shop.items"])

    assert shared.inherited == {"shop": at(8), "shop.orders": at(5)}
    assert crm.inherited == {"crm": at(2), "crm.leads": at(1)}


def test_an_event_is_dropped_by_the_narrowest_row_that_contains_it() -> None:
    resumption = resume({"": at(9), "shop": at(5), "shop.orders": at(7)}, "", [""])

    assert resumption.start == at(5)
    assert [resumption.drops("shop", "orders", a_token(time)) for time in (7, 8)] == [True, False]
    assert [resumption.drops("shop", "orders.eu", a_token(time)) for time in (5, 6)] == [True, False]
    assert [resumption.drops("shop", None, a_token(time)) for time in (5, 6)] == [True, False]
    assert [resumption.drops("crm", "orders", a_token(time)) for time in (9, 10)] == [True, False]


def test_an_invalidation_belongs_to_the_scope_of_the_stream() -> None:
    resumption = resume({"": at(1), "shop": at(5), "shop.orders": at(3)}, "shop", ["shop"])

    assert [resumption.drops(None, None, a_token(time)) for time in (5, 6)] == [True, False]


def test_all_inherited_rows_advance_together_and_the_inner_ones_go_when_all_are_reached() -> None:
    resumption = resume({"shop": at(8), "shop.orders": at(5), "shop.items": at(3)}, "shop", ["shop"])

    assert resumption.rows(at(3)) == {"shop": at(8), "shop.orders": at(5), "shop.items": at(3)}
    assert resumption.rows(at(6)) == {"shop": at(8), "shop.orders": at(6), "shop.items": at(6)}
    assert resumption.rows(at(8)) == {"shop": at(8), "shop.orders": None, "shop.items": None}
    assert resumption.rows(at(9)) == {"shop": at(9), "shop.orders": None, "shop.items": None}


def test_rows_never_go_backwards_even_when_the_prefix_does() -> None:
    resumption = resume({"shop": at(8), "shop.orders": at(5)}, "shop", ["shop"])
    resumption.rows(at(9))

    assert resumption.rows(at(6)) == {"shop": at(9), "shop.orders": None}


def test_rows_that_stay_keep_the_fingerprint_of_who_saved_them() -> None:
    stored = {"shop": at(8, fingerprint="old"), "shop.orders": at(5, fingerprint="other")}
    resumption = resume(stored, "shop", ["shop"])

    assert resumption.start == stored["shop.orders"]
    moved = resumption.rows(at(6, fingerprint="new"))
    assert moved == {"shop": stored["shop"], "shop.orders": at(6, fingerprint="new")}


def test_from_inner_rows_alone_an_own_row_begins_at_the_earliest_of_them() -> None:
    resumption = resume({"shop.orders": at(5), "shop.items": at(3)}, "shop", ["shop"])

    assert resumption.start == at(3)
    assert resumption.rows(from_time(3)) == {"shop": at(3), "shop.orders": at(5), "shop.items": at(3)}
    assert [resumption.drops("shop", "carts", a_token(3, index)) for index in (0, 1)] == [True, False]


def test_from_a_row_around_and_inner_rows_the_own_row_begins_at_the_one_around() -> None:
    resumption = resume({"": at(8), "shop.orders": at(5)}, "shop", ["shop"])

    assert resumption.start == at(5)
    assert resumption.rows(at(5)) == {"shop": at(8), "shop.orders": at(5)}
    assert resumption.drops("shop", "carts", a_token(7)) and not resumption.drops("shop", "orders", a_token(7))


def test_rows_of_one_time_and_different_versions_start_at_that_time_and_may_only_repeat() -> None:
    resumption = resume({"shop": at(5, 1), "shop.orders": at(5, 1, V2)}, "shop", ["shop"])

    assert resumption.start == from_time(5)
    assert not resumption.drops("shop", "items", a_token(5, 0, V2))
    assert resumption.drops("shop", "orders", a_token(5, 0, V2))
    assert resumption.rows(at(5, 2, V2)) == {"shop": at(5, 1), "shop.orders": at(5, 2, V2)}
    assert resumption.rows(at(6, 0, V2)) == {"shop": at(6, 0, V2), "shop.orders": None}


def test_catching_up_ends_when_the_prefix_is_past_the_cluster_times_of_all_rows() -> None:
    resumption = resume({"shop": at(8), "shop.orders": at(5)}, "shop", ["shop"])

    assert resumption.catching_up
    resumption.rows(at(7))
    assert resumption.catching_up
    resumption.rows(at(8))
    assert resumption.catching_up, "a cursor opened by time still has events of that time to come"
    resumption.rows(Position.of(a_mark(9)))
    assert not resumption.catching_up


# -- random histories

NODES = ("", "shop", "shop.orders", "shop.orders.eu", "shop.items", "crm", "crm.orders", "crm.leads")
NAMESPACES = NODES[1:]
COLLECTIONS = tuple(node for node in NODES if "." in node)


def owner(node: str, scopes: Any) -> str | None:
    database = node.split(".")[0]
    return next((scope for scope in (node, database, "") if scope in scopes), None)


@dataclass(frozen=True)
class Change:
    namespace: str
    time: int
    index: int


class Stream:
    """Read one scope as the server would give it, and keep what is finished."""

    def __init__(self, resumption: Resumption, fingerprint: str, version: str, oplog: list[Change]) -> None:
        self.resumption, self.fingerprint, self.version, self.oplog = resumption, fingerprint, version, oplog
        self.running: set[int] = set()
        self.read: list[int] = []
        start = resumption.start
        if start is None:
            self.next, mark = len(oplog), a_mark(oplog[-1].time + 1, version)
        elif start.token is not None and start.fingerprint == fingerprint and start.token["_data"][18:22] == version:
            self.next, mark = self.first_after(start.token["_data"]), dict(start.token)
        else:  # also the rescue from 280: a server need not know tokens of another version
            self.next, mark = self.first_at(start.cluster_time.time), a_mark(start.cluster_time.time, version)
        self.opened = Position.of(mark, fingerprint)
        self.done_at_opening = self.next

    def first_at(self, time: int) -> int:
        return sum(change.time < time for change in self.oplog)

    def first_after(self, data: str) -> int:
        return sum(a_token(change.time, change.index, self.version)["_data"] <= data for change in self.oplog)

    def prefix(self, mark: bool) -> tuple[Position, int]:
        """Give the finished prefix, and how many changes of the oplog it covers.

        With `mark` as the server's postBatchResumeToken, when all that there is was read and is finished.
        """
        if mark and not self.running and self.next == len(self.oplog):
            time = self.oplog[-1].time + 1
            return Position.of(a_mark(time, self.version), self.fingerprint), len(self.oplog)
        unfinished = min(self.running, default=len(self.oplog))
        reached = max((number for number in self.read if number < unfinished), default=None)
        if reached is None:
            return self.opened, self.done_at_opening
        change = self.oplog[reached]
        return Position.of(a_token(change.time, change.index, self.version), self.fingerprint), reached + 1


class History(RuleBasedStateMachine):
    """Play runs of changing scopes and handlers, and compare each event with a position per namespace."""

    versions: tuple[str, ...] = (V1,)

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, Position] = {}
        self.oplog: list[Change] = []
        self.done_to: dict[str, int] = {}  # the model: per namespace, all before this index of the oplog is done
        self.born_at: dict[str, int] = {}
        self.handled: Counter[int] = Counter()
        self.unhandled: set[int] = set()  # passed without a handler, and saved
        self.may_crash = False
        self.crashed = False
        self.streams: dict[str, Stream] = {}
        self.handlers: frozenset[str] = frozenset()

    @initialize(crashes=st.booleans())
    def begin_the_oplog(self, crashes: bool) -> None:
        self.may_crash = crashes
        self.write(["shop.orders"])

    @rule(namespaces=st.lists(st.sampled_from(NAMESPACES), min_size=1, max_size=4))
    def write(self, namespaces: list[str]) -> None:
        """Append a transaction, or one change."""
        time = (self.oplog[-1].time if self.oplog else 0) + len(namespaces)
        self.oplog += [Change(namespace, time, index) for index, namespace in enumerate(namespaces)]

    @precondition(lambda self: not self.streams)
    @rule(
        shared=st.sampled_from(["", "shop", "crm", None]),
        watched=st.sets(st.sampled_from(COLLECTIONS), max_size=3),
        handlers=st.frozensets(st.sampled_from(NAMESPACES)),
        data=st.data(),
    )
    def start(self, shared: str | None, watched: set[str], handlers: frozenset[str], data: st.DataObject) -> None:
        scopes = watched | ({shared} if shared is not None else set()) or {""}
        self.begin(scopes, handlers, data.draw(st.sampled_from(self.versions)))

    def begin(self, scopes: set[str], handlers: frozenset[str], version: str) -> None:
        self.handlers = handlers
        for scope in sorted(scopes):
            fingerprint = f"{scope} {sorted(node for node in handlers if owner(node, scopes) == scope)}"
            self.streams[scope] = Stream(resume(dict(self.stored), scope, scopes), fingerprint, version, self.oplog)
        for scope, stream in self.streams.items():
            self.give_birth([node for node in NODES if owner(node, scopes) == scope], scope, stream)
        self.write_rows({scope: stream.opened for scope, stream in self.streams.items()})
        for scope in self.streams:
            assert scope in self.stored, "the first transaction holds a position of every stream"

    def give_birth(self, nodes: list[str], scope: str, stream: Stream) -> None:
        """Let namespaces that nobody watched before begin where the stream does: at the earliest that it inherits."""
        inherited = [self.done_to[node] for node in nodes if node in self.done_to]
        begin = min(inherited, default=len(self.oplog))
        for node in nodes:
            if node not in self.done_to:
                self.done_to[node] = self.born_at[node] = begin
        skipped = [
            (number, change) for number, change in enumerate(self.oplog[: stream.next]) if change.namespace in nodes
        ]
        lost = [change for number, change in skipped if number >= self.done_to[change.namespace]]
        assert not lost, f"{scope!r} starts behind changes that are not done: {lost}"

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), count=st.integers(1, 8))
    def read(self, data: st.DataObject, count: int) -> None:
        scope = data.draw(st.sampled_from(sorted(self.streams)))
        self.read_some(scope, count)

    def read_some(self, scope: str, count: int) -> None:
        stream = self.streams[scope]
        for number in range(stream.next, min(stream.next + count, len(self.oplog))):
            stream.next = number + 1
            change = self.oplog[number]
            if owner(change.namespace, {scope}) is None:
                continue
            stream.read.append(number)
            if owner(change.namespace, self.streams) == scope:
                self.deliver(stream, number, change)

    def deliver(self, stream: Stream, number: int, change: Change) -> None:
        database, _, collection = change.namespace.partition(".")
        token = a_token(change.time, change.index, stream.version)
        offered = not (stream.resumption.catching_up and stream.resumption.drops(database, collection or None, token))
        due = number >= self.done_to[change.namespace]
        assert offered or not due, f"lost: {change}"
        assert due or not offered or len(self.versions) > 1, f"repeated: {change}"
        if offered and change.namespace in self.handlers:
            stream.running.add(number)

    @precondition(lambda self: any(stream.running for stream in self.streams.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        stream = data.draw(st.sampled_from([stream for stream in self.streams.values() if stream.running]))
        self.handle(stream, data.draw(st.sampled_from(sorted(stream.running))))

    def handle(self, stream: Stream, number: int) -> None:
        stream.running.remove(number)
        self.handled[number] += 1

    @precondition(lambda self: self.streams)
    @rule(mark=st.booleans())
    def save(self, mark: bool) -> None:
        prefixes = {scope: stream.prefix(mark) for scope, stream in self.streams.items()}
        self.write_rows({scope: position for scope, (position, _) in prefixes.items()})
        for node in NODES:
            scope = owner(node, self.streams)
            if scope is not None:
                self.done_to[node] = max(self.done_to[node], prefixes[scope][1])
                self.excuse(node)

    def excuse(self, node: str) -> None:
        if node not in self.handlers:
            behind = range(self.born_at[node], self.done_to[node])
            self.unhandled.update(number for number in behind if self.oplog[number].namespace == node)

    def write_rows(self, prefixes: dict[str, Position]) -> None:
        """Write the rows of all streams in one transaction, watching what may be written and deleted."""
        for scope, prefix in prefixes.items():
            for row, position in self.streams[scope].resumption.rows(prefix).items():
                assert owner(row, self.streams) == scope, "a stream writes only rows that it owns"
                before = self.stored.get(row)
                if position is None:
                    assert row not in self.streams, "the row of a stream is never deleted"
                    self.stored.pop(row, None)
                else:
                    assert before is None or position.reaches(before), f"backwards: {row!r}"
                    self.stored[row] = position

    @precondition(lambda self: self.streams)
    @rule(mark=st.booleans())
    def stop(self, mark: bool) -> None:
        """Stop reading, let all that was handed out return, save."""
        for stream in self.streams.values():
            for number in sorted(stream.running):
                self.handle(stream, number)
        self.save(mark)
        self.streams = {}

    @precondition(lambda self: self.streams and self.may_crash)
    @rule()
    def crash(self) -> None:
        self.crashed = True
        self.streams = {}

    def teardown(self) -> None:
        """Watch everything to the end, and count."""
        if self.streams:
            self.stop(mark=False)
        self.write(["crm"])
        self.begin({""}, frozenset(NAMESPACES), self.versions[-1])
        self.read_some("", len(self.oplog))
        self.stop(mark=True)
        assert set(self.stored) == {""}, "all inner rows are gone once they are past"
        for number, change in enumerate(self.oplog):
            if number >= self.born_at[change.namespace] and number not in self.unhandled:
                assert self.handled[number] >= 1, f"lost: {change}"
            if not self.crashed and len(self.versions) == 1:
                assert self.handled[number] <= 1, f"repeated after clean stops alone: {change}"


class HistoryWithUpgrades(History):
    """Let the server change the version of its tokens between runs: events may be repeated, never lost."""

    versions = (V1, V2)


@pytest.mark.parametrize(("history", "examples"), [(History, 120), (HistoryWithUpgrades, 60)])
def test_random_histories_lose_nothing_and_repeat_nothing_that_was_saved(history: type[History], examples: int) -> None:
    run_state_machine_as_test(history, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None))
