"""One lane: a queue and, only while there is something in it, a greenlet that works it off.

Within a lane everything is sequential. Lanes are the greenlets that must be joined: they hold a half-done event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import gevent
from greenlet import greenlet

from .barrier import Barrier
from .delivery import Delivery, Ticket, undisturbed
from .errors import HandlerError, StreamError
from .events import ChangeEvent
from .hub import Flag, GivenUp, let_others_run
from .registration import DOCUMENT_OPERATIONS, Function, Handler
from .runners import Runners
from .selection import Namespace
from .watermark import HANDLED, UNWANTED, Batch, Place

Raw = Mapping[str, Any]

#: A lane lets the rest of the hub run at least this often, in seconds, as far as its handlers let it.
TURN = 0.005


@dataclass(slots=True)
class Shared:
    """What all lanes of a stream have in common.

    :param delivery: calls the handlers.
    :param progress: called when events may have become done.
    :param fail: called with the error when a lane ends as it should not.
    """

    delivery: Delivery
    progress: Callable[[], None]
    fail: Callable[[BaseException], None]
    live: set[Lane] = field(default_factory=set)
    empty: Flag = field(default_factory=Flag)
    barriers: list[ItemBarrier] = field(default_factory=list)
    runners: Runners = field(init=False)

    def __post_init__(self) -> None:
        self.runners = Runners(self.fail)


class Group:
    """The lanes of one collection."""

    def __init__(self, shared: Shared, namespace: Namespace, width: int) -> None:
        self._shared = shared
        self.namespace = namespace
        self.width = width
        self.lanes: dict[int, Lane] = {}

    def lane(self, slot: int) -> Lane:
        """Return a lane by its number, from 0 to the width."""
        lane = self.lanes.get(slot)
        if lane is None:
            lane = self.lanes[slot] = Lane(self._shared)
            # It is new, but what comes before its first event is not: barriers that nobody passed yet hold it back too.
            for barrier in self._shared.barriers:
                if barrier.covers(self.namespace):
                    lane.stop_at(barrier)
        return lane


class Route:
    """Where events of one kind go."""

    __slots__ = ("group", "handlers", "is_barrier", "is_picky", "lane", "plain")

    def __init__(self, shared: Shared, group: Group, operation: str, handlers: Sequence[Handler]) -> None:
        self.group = group
        self.handlers = tuple(handlers)
        self.is_barrier = operation not in DOCUMENT_OPERATIONS
        self.is_picky = any(handler.fields for handler in handlers)
        self.lane = group.lane(0) if self.handlers and group.width == 1 else None
        #: The function, where nothing but a call and an acknowledgement is asked for.
        self.plain: Function | None = None
        if len(self.handlers) == 1 and not self.is_barrier and not self.is_picky:
            (handler,) = self.handlers
            if not handler.manual and handler.batch is None and handler.timeout is None:
                self.plain = shared.delivery.plain(handler.function)


Item = tuple[Batch, int, Raw, Route]
ItemBarrier = Barrier[Item]


class Lane:
    """Events in order, one at a time."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.items: deque[Item | ItemBarrier] = deque()
        self.greenlet: greenlet | None = None
        self.is_live = False
        self.current: Item | None = None
        self.arrived = Flag()
        self.is_due = False
        self.is_ending = False
        self.is_waiting = False
        self._pending: list[Ticket] = []
        self._pending_for: tuple[Handler, ...] = ()
        self._pending_last: Item | None = None
        self._due = 0.0

    def begin(self) -> None:
        """Have a greenlet work until nothing is left."""
        self.is_due = self.is_ending = False
        self.is_live = True
        if not self._shared.live:
            self._shared.empty.clear()
        self._shared.live.add(self)
        self._shared.runners.put(self._run)

    def stop_at(self, barrier: ItemBarrier) -> None:
        """Wait for the barrier after what is in the lane by now."""
        barrier.missing += 1
        self.items.append(barrier)
        self.arrived.set()
        if not self.is_live:
            self.begin()

    def newest(self) -> Place | None:
        """Say where the newest event stands that a handler was called for and that is not finished."""
        begun = [ticket.place for ticket in self._pending if ticket.is_begun]
        return max(begun if self.current is None else [*begun, place(self.current)], default=None)

    def forget(self, horizon: Place | None) -> None:
        """Give up what waits, as far as it comes after `horizon`; the handler that is running is left alone."""
        horizon = horizon or (0, 0)
        kept = [item for item in self.items if place(item) <= horizon]
        self.items.clear()
        self.items.extend(kept)
        self._pending = [ticket for ticket in self._pending if ticket.place <= horizon]
        self.is_ending = True
        self.arrived.set()

    def _run(self) -> None:
        self.greenlet = gevent.getcurrent()
        try:
            self._work()
        except GivenUp:
            pass
        except StreamError as error:
            self._shared.fail(error)
        except BaseException as error:
            # GreenletExit, SystemExit, KeyboardInterrupt: nothing that a handler may survive, and no acknowledgement.
            event = ChangeEvent(self.current[2]) if self.current else None
            failure = HandlerError(f"a handler was ended by {type(error).__name__} at {event!r}", event=event)
            failure.__cause__ = error
            self._shared.fail(failure)
        finally:
            self._leave()

    def _leave(self) -> None:
        for item in self.items:
            # What came before this barrier is not finished, so that nobody may pass it.
            if isinstance(item, Barrier):
                item.cancel()
        self.greenlet = self.current = None
        self.is_live = False
        self._shared.live.discard(self)
        self._shared.progress()
        if not self._shared.live:
            self._shared.empty.set()

    def _work(self) -> None:
        items, counts = self.items, self._shared.delivery.counts
        turn = monotonic() + TURN
        while items or self._wait_for_batch():
            item = items.popleft()
            if isinstance(item, Barrier):
                self._arrive(item)
                continue
            self.current = item
            batch, index, raw, route = item
            failure: BaseException | None = None
            if route.plain is not None and not self._pending:
                try:
                    route.plain(ChangeEvent(raw))
                    batch.done[index] = HANDLED
                    counts.handled += 1
                except (Exception, gevent.Timeout) as error:
                    failure = error
            if not batch.done[index]:
                self._handle(item, failure)
            if monotonic() > turn:
                self._shared.progress()
                # Its handler is not running any more.
                self.current = None
                undisturbed(let_others_run)
                turn = monotonic() + TURN

    def _handle(self, item: Item, error: BaseException | None = None) -> None:
        batch, index, raw, route = item
        handlers = (
            tuple(handler for handler in route.handlers if handler.wants(raw)) if route.is_picky else route.handlers
        )
        if not handlers:
            # What nobody wants ends no batch.
            batch.done[index] = UNWANTED
            return
        ticket = Ticket(batch, index, raw, handlers)
        first = next((nth for nth, handler in enumerate(handlers) if handler.batch is not None), len(handlers))
        at_once, later = handlers[:first], handlers[first:]
        if self._pending and self._pending_for != later:
            # Put back meanwhile, so that a stop can forget it.
            self.items.appendleft(item)
            self.current = None
            return self._hand_over()
        for handler in at_once:
            self._shared.delivery.deliver(handler, [ticket], error)
        if later:
            self._collect(ticket, later, item)
            # Behind slow handlers a lane may always have more, so that it never waits for the time to come.
            if self._pending and at_once and monotonic() >= self._due:
                self._hand_over()
        return None

    def _collect(self, ticket: Ticket, handlers: tuple[Handler, ...], item: Item) -> None:
        sizes = [handler.batch for handler in handlers if handler.batch is not None]
        if not self._pending:
            self._pending_for = handlers
            self._due = monotonic() + min(size.max_wait for size in sizes)
        self._pending.append(ticket)
        self._pending_last = item
        if len(self._pending) >= min(size.max_size for size in sizes):
            self._hand_over()

    def _hand_over(self) -> None:
        self.is_due = False
        tickets, self._pending = self._pending, []
        then, self.current = self.current, self._pending_last
        for handler in self._pending_for:
            for part in [tickets] if handler.batch is not None else [[ticket] for ticket in tickets]:
                self._shared.delivery.deliver(handler, part)
        self.current = then
        # Whoever waits for room need not wait until the rest of the lane is due.
        self._shared.progress()

    def _wait_for_batch(self) -> bool:
        """Wait for what may join the pending batch; True when there is something."""
        while self._pending and not self.items:
            self.current = None
            self.arrived.clear()
            left = self._due - monotonic()
            if self.is_due or self.is_ending or left <= 0:
                self._hand_over()
            else:
                self.is_waiting = True
                undisturbed(lambda: self.arrived.wait(max(0.0, self._due - monotonic())))
                self.is_waiting = False
        return bool(self.items)

    def _arrive(self, barrier: ItemBarrier) -> None:
        try:
            if self._pending:
                self._hand_over()
            self.current = None
            barrier.missing -= 1
            if barrier.missing == 0 and not barrier.is_open and not barrier.is_cancelled:
                self._open(barrier)
        except BaseException:
            # It is in no lane's queue any more, where others would look for it.
            barrier.cancel()
            raise
        self._shared.progress()
        undisturbed(barrier.passed.wait)
        if barrier.is_cancelled:
            raise GivenUp("the barrier is given up")

    def _open(self, barrier: ItemBarrier) -> None:
        barrier.is_open = True
        self.current = barrier.item
        self._handle(barrier.item)
        if self._pending:
            self._hand_over()
        self._shared.barriers.remove(barrier)
        barrier.passed.set()


def place(item: Item | ItemBarrier) -> Place:
    """Say where in the stream an event stands."""
    batch, index, _, _ = item.item if isinstance(item, Barrier) else item
    return batch.serial, index
