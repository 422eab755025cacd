"""Greenlets per collection: events of one document pass one lane, in order.

A lane is a queue and, only while there is something in it, a greenlet. Lanes are the greenlets that must be joined: they hold a half-done event.
Within a lane everything is sequential. An operation without a document is a barrier: every lane of its collection arrives at it before its
handlers are called, and none passes before they returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any

import gevent
from bson import Decimal128

from .delivery import Delivery, Ticket
from .errors import HandlerError, StreamError
from .events import ChangeEvent
from .hub import Flag, GivenUp, wait_for_any
from .registration import DOCUMENT_OPERATIONS, Function, Handler
from .watermark import Batch

Raw = Mapping[str, Any]
Key = tuple[str | None, str | None, str]

#: A lane lets the rest of the hub run at least this often, in seconds, as far as its handlers let it.
TURN = 0.005
#: Kinds of events that are remembered at most; names of collections can be without end.
MOST_ROUTES = 10_000


class Lanes:
    """All lanes of one stream.

    :param lookup: database, collection, operation → the handlers of such an event, in order.
    :param width: database, collection → how many lanes the collection has.
    :param delivery: calls the handlers.
    :param progress: called when events may have become done.
    :param fail: called with the error when a lane ends as it should not.
    :param stop: makes every lane end after the handler call that it is in, and forget the rest.
    """

    def __init__(
        self,
        *,
        lookup: Callable[[str | None, str | None, str], Sequence[Handler]],
        width: Callable[[str | None, str | None], int],
        delivery: Delivery,
        progress: Callable[[], None],
        fail: Callable[[BaseException], None],
        stop: Flag,
    ) -> None:
        self._lookup = lookup
        self._width = width
        self._routes: dict[Key, _Route] = {}
        self._groups: dict[tuple[str | None, str | None], _Group] = {}
        self.barriers: list[_Barrier] = []
        self.live: set[_Lane] = set()
        self.empty = Flag()
        self.empty.set()
        self.delivery = delivery
        self.progress = progress
        self.fail = fail
        self.stop = stop

    def put(self, batch: Batch) -> None:
        """Put each event of a batch into its document's lane; one that nobody handles is done. Does not switch greenlets."""
        routes, done = self._routes, batch.done
        for index, raw in enumerate(batch.events):
            try:
                namespace = raw["ns"]
                route = routes[namespace["db"], namespace["coll"], raw["operationType"]]
                document_key = raw["documentKey"]
            except (KeyError, TypeError):
                route, document_key = self._find_route(raw)
            if not route.handlers:
                done[index] = 1
                continue
            lane = route.lane
            if document_key is None or route.is_barrier:
                self._put_barrier(batch, index, raw, route)
                continue
            if lane is None:
                lane = route.group.lane(_slot(document_key, route.group.width))
            lane.items.append((batch, index, raw, route))
            if lane.greenlet is None:
                lane.begin()

    def flush(self) -> None:
        """Hand over what waits for its batch to fill."""
        for lane in tuple(self.live):
            lane.is_due = True
            lane.arrived.set()

    def unfinished(self) -> Iterator[tuple[str, ChangeEvent]]:
        """Name the handlers that are running, each with its event."""
        for lane in self.live:
            if lane.current is not None:
                yield " and ".join(handler.name for handler in lane.current[3].handlers), ChangeEvent(lane.current[2])

    def _find_route(self, raw: Raw) -> tuple[_Route, Any]:
        namespace = raw.get("ns")
        names = namespace if isinstance(namespace, Mapping) else {}
        key = (names.get("db"), names.get("coll"), str(raw.get("operationType", "")))
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= MOST_ROUTES:
                self._forget()
            route = self._routes[key] = _Route(self, self._group(key[:2]), key[2], self._lookup(*key))
        document_key = raw.get("documentKey")
        return route, document_key if isinstance(document_key, Mapping) else None

    def _group(self, namespace: tuple[str | None, str | None]) -> _Group:
        if namespace not in self._groups:
            self._groups[namespace] = _Group(self, namespace, self._width(*namespace))
        return self._groups[namespace]

    def _forget(self) -> None:
        self._routes.clear()
        busy = {lane.group for lane in self.live}
        self._groups = {namespace: group for namespace, group in self._groups.items() if group in busy}

    def _put_barrier(self, batch: Batch, index: int, raw: Raw, route: _Route) -> None:
        barrier = _Barrier((batch, index, raw, route), _reach(raw, route.group.namespace))
        route.group.lane(0)
        self.barriers.append(barrier)
        for group in self._groups.values():
            for lane in group.lanes.values() if barrier.covers(group.namespace) else ():
                lane.stop_at(barrier)


class _Group:
    """The lanes of one collection."""

    def __init__(self, lanes: Lanes, namespace: tuple[str | None, str | None], width: int) -> None:
        self._all = lanes
        self.namespace = namespace
        self.width = width
        self.lanes: dict[int, _Lane] = {}

    def lane(self, slot: int) -> _Lane:
        lane = self.lanes.get(slot)
        if lane is None:
            lane = self.lanes[slot] = _Lane(self._all, self)
            # It is new, but what comes before its first event is not: barriers that are not passed yet hold it back as well.
            for barrier in self._all.barriers:
                if barrier.covers(self.namespace):
                    lane.stop_at(barrier)
        return lane


class _Route:
    """Where events of one kind go."""

    __slots__ = ("group", "handlers", "is_barrier", "is_picky", "lane", "plain")

    def __init__(self, lanes: Lanes, group: _Group, operation: str, handlers: Sequence[Handler]) -> None:
        self.group = group
        self.handlers = tuple(handlers)
        self.is_barrier = operation not in DOCUMENT_OPERATIONS
        self.is_picky = any(handler.fields for handler in handlers)
        self.lane = group.lane(0) if self.handlers and group.width == 1 else None
        #: The function, where nothing but a call and an acknowledgement is asked for.
        self.plain: Function | None = None
        if len(self.handlers) == 1 and not self.is_barrier and not self.is_picky and not lanes.delivery.times_calls:
            (handler,) = self.handlers
            if not handler.manual and handler.batch is None and handler.timeout is None:
                self.plain = handler.function


Item = tuple[Batch, int, Raw, _Route]


class _Barrier:
    """An event that waits for all earlier ones of its reach, and holds back all later ones."""

    def __init__(self, item: Item, reach: tuple[tuple[str | None, str | None], ...] | None) -> None:
        self.item = item
        self.missing = 0
        self.is_open = False
        self.passed = Flag()
        self._reach = reach

    def covers(self, namespace: tuple[str | None, str | None]) -> bool:
        """Tell whether this collection is held: None reaches everything, (database, None) a database."""
        return self._reach is None or namespace in self._reach or (namespace[0], None) in self._reach


class _Lane:
    def __init__(self, lanes: Lanes, group: _Group) -> None:
        self._all = lanes
        self.group = group
        self.items: deque[Item | _Barrier] = deque()
        self.greenlet: gevent.Greenlet | None = None
        self.current: Item | None = None
        self.arrived = Flag()
        self.is_due = False
        self._pending: list[Ticket] = []
        self._pending_for: tuple[Handler, ...] = ()
        self._due = 0.0

    def begin(self) -> None:
        self._all.live.add(self)
        self._all.empty.clear()
        self.greenlet = gevent.spawn(self._run)
        self.greenlet.rawlink(self._ended)

    def stop_at(self, barrier: _Barrier) -> None:
        barrier.missing += 1
        self.items.append(barrier)
        if self.greenlet is None:
            self.begin()

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        """Notice a greenlet that somebody killed before it ran even once."""
        if self.greenlet is greenlet:
            self._leave()
            self._all.fail(HandlerError("a lane was killed from outside", event=None))

    def _run(self) -> None:
        try:
            self._work()
        except GivenUp:
            pass
        except StreamError as error:
            self._all.fail(error)
        except BaseException as error:
            # GreenletExit, SystemExit, KeyboardInterrupt: nothing that a handler may survive, and no acknowledgement.
            event = ChangeEvent(self.current[2]) if self.current else None
            failure = HandlerError(f"a handler was ended by {type(error).__name__} at {event!r}", event=event)
            failure.__cause__ = error
            self._all.fail(failure)
        finally:
            self._leave()

    def _leave(self) -> None:
        self.greenlet = self.current = None
        self._all.live.discard(self)
        self._all.progress()
        if not self._all.live:
            self._all.empty.set()

    def _work(self) -> None:
        items, stop, counts = self.items, self._all.stop, self._all.delivery.counts
        handled = 0
        turn = monotonic() + TURN
        while (items or self._wait_for_batch()) and not stop.is_set():
            item = items.popleft()
            if isinstance(item, _Barrier):
                self._arrive(item)
                continue
            self.current = item
            batch, index, raw, route = item
            if route.plain is None or self._pending:
                self._handle(item)
            else:
                try:
                    route.plain(ChangeEvent(raw))
                except (Exception, gevent.Timeout) as error:
                    self._handle(item, error)
                else:
                    batch.done[index] = 1
                    handled += 1
            if monotonic() > turn:
                counts.handled += handled
                handled = 0
                self._all.progress()
                gevent.sleep(0)
                turn = monotonic() + TURN
        counts.handled += handled

    def _handle(self, item: Item, error: BaseException | None = None) -> None:
        batch, index, raw, route = item
        handlers = route.handlers if not route.is_picky else tuple(handler for handler in route.handlers if handler.wants(raw))
        ticket = Ticket(batch, index, raw, handlers)
        if not handlers:
            batch.done[index] = 1
        first = next((place for place, handler in enumerate(handlers) if handler.batch is not None), len(handlers))
        at_once, later = handlers[:first], handlers[first:]
        if self._pending and self._pending_for != later:
            self._hand_over()
        for handler in at_once:
            self._all.delivery.deliver(handler, [ticket], error)
        if later:
            self._collect(ticket, later)

    def _collect(self, ticket: Ticket, handlers: tuple[Handler, ...]) -> None:
        sizes = [handler.batch for handler in handlers if handler.batch is not None]
        if not self._pending:
            self._pending_for = handlers
            self._due = monotonic() + min(size.max_wait for size in sizes)
            self.is_due = False
        self._pending.append(ticket)
        if len(self._pending) >= min(size.max_size for size in sizes):
            self._hand_over()

    def _hand_over(self) -> None:
        tickets, self._pending = self._pending, []
        for handler in self._pending_for:
            for part in [tickets] if handler.batch is not None else [[ticket] for ticket in tickets]:
                self._all.delivery.deliver(handler, part)

    def _wait_for_batch(self) -> bool:
        """Wait for what may join the pending batch; True when there is something."""
        while self._pending and not self.items and not self._all.stop.is_set():
            self.arrived.clear()
            left = self._due - monotonic()
            if self.is_due or left <= 0:
                self._hand_over()
            else:
                wait_for_any((self.arrived, self._all.stop), left)
        return bool(self.items)

    def _arrive(self, barrier: _Barrier) -> None:
        if self._pending:
            self._hand_over()
        self.current = None
        barrier.missing -= 1
        if barrier.missing == 0 and not barrier.is_open:
            barrier.is_open = True
            self.current = barrier.item
            self._handle(barrier.item)
            if self._pending:
                self._hand_over()
            self._all.barriers.remove(barrier)
            barrier.passed.set()
        else:
            wait_for_any((barrier.passed, self._all.stop))


def _reach(raw: Raw, namespace: tuple[str | None, str | None]) -> tuple[tuple[str | None, str | None], ...] | None:
    operation = raw.get("operationType")
    if operation == "invalidate":
        return None
    if operation == "rename":
        target = raw.get("to") or {}
        return namespace, (target.get("db"), target.get("coll"))
    return (namespace,)


def _slot(document_key: Mapping[str, Any], width: int) -> int:
    # By _id alone: a shard key beside it may change with the document, and documents that share a lane by chance only wait for each other.
    return _hash(document_key.get("_id")) % width


def _hash(value: Any) -> int:
    """Hash as the server compares: 1, 1.0, Int64(1) and Decimal128("1") are one ``_id``, and an ``_id`` may be a document."""
    if isinstance(value, Decimal128):
        value = value.to_decimal()
    if isinstance(value, Mapping):
        return hash(tuple((field, _hash(part)) for field, part in value.items()))
    if isinstance(value, list):
        return hash(tuple(map(_hash, value)))
    try:
        # Not-a-numbers are one _id too, and Python hashes each differently.
        return hash(value) if value == value else 0
    except TypeError:
        return hash(repr(value))
