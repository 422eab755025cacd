"""The lanes of a stream: greenlets per collection, events of one document in one lane, in order.

An operation without a document is a barrier: every lane of its collection arrives at it before its handlers are called,
and none passes before they returned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bson import Decimal128, Int64, ObjectId

from .barrier import Barrier
from .events import ChangeEvent, namespace_of
from .hub import is_patched
from .lane import Group, Raw, Route, Shared, place
from .registration import Handler
from .selection import Namespace
from .watermark import UNWANTED, Batch, Place

logger = logging.getLogger(__name__)

Key = tuple[str | None, str | None, str]

#: Kinds of events that are remembered at most; names of collections can be without end.
MOST_ROUTES = 10_000

_NOT_A_NUMBER = 0
#: Kinds of _id that hash as they compare; nearly all are.
_PLAIN = frozenset({ObjectId, str, int, Int64})


class Lanes:
    """All lanes of one stream.

    :param lookup: database, collection, operation → the handlers of such an event, in order.
    :param width: database, collection → how many lanes the collection has.
    :param shared: what the lanes have in common.
    """

    def __init__(
        self,
        lookup: Callable[[str | None, str | None, str], Sequence[Handler]],
        width: Callable[[str | None, str | None], int],
        shared: Shared,
    ) -> None:
        self._lookup = lookup
        self._width = width
        self._shared = shared
        self._routes: dict[Key, Route] = {}
        self._groups: dict[Namespace, Group] = {}
        self.live = shared.live
        self.empty = shared.empty
        self.empty.set()

    def put(self, batch: Batch) -> None:
        """Put each event of a batch into its document's lane; one that nobody handles is done.

        Does not switch greenlets.
        """
        routes, done = self._routes, batch.done
        for index, raw in enumerate(batch.events):
            try:
                namespace = raw["ns"]
                route = routes[namespace["db"], namespace["coll"], raw["operationType"]]
                document_key = raw["documentKey"]
            except (KeyError, TypeError):
                route, document_key = self._find_route(raw)
            if not route.handlers and not route.is_barrier:
                done[index] = UNWANTED
                continue
            lane = route.lane
            if document_key is None or route.is_barrier:
                self._put_barrier(batch, index, raw, route)
                continue
            if lane is None:
                lane = route.group.lane(_slot(document_key, route.group.width))
            lane.items.append((batch, index, raw, route))
            if not lane.is_live:
                lane.begin()
            elif lane.is_waiting:
                lane.arrived.set()

    def flush(self) -> None:
        """Hand over what waits for its batch to fill."""
        for lane in self.live.copy():
            lane.is_due = True
            lane.arrived.set()

    def newest(self) -> Place | None:
        """Say where the newest event stands that a handler was called for and that is not finished."""
        return max((at for lane in self.live if (at := lane.newest()) is not None), default=None)

    def forget(self, horizon: Place | None) -> None:
        """Give up what waits in lanes and batch buffers, as far as it comes after `horizon`; all of it without one."""
        for lane in self.live.copy():
            lane.forget(horizon)
        for barrier in self._shared.barriers.copy():
            if not barrier.is_open and (horizon is None or place(barrier) > horizon):
                barrier.cancel()

    def unfinished(self) -> Iterator[tuple[str, ChangeEvent]]:
        """Name the handlers that are running, each with its event."""
        # Asked from other threads too, while lanes come and go.
        for _, _, raw, route in filter(None, [lane.current for lane in self.live.copy()]):
            yield " and ".join(handler.name for handler in route.handlers), ChangeEvent(raw)

    def _find_route(self, raw: Raw) -> tuple[Route, Any]:
        key = (*namespace_of(raw.get("ns")), str(raw.get("operationType", "")))
        route = self._routes.get(key)
        if route is None:
            if len(self._routes) >= MOST_ROUTES:
                self._forget()
            route = self._routes[key] = Route(self._shared, self._group(key[:2]), key[2], self._lookup(*key))
        return route, raw.get("documentKey")

    def _group(self, namespace: Namespace) -> Group:
        if namespace not in self._groups:
            self._groups[namespace] = Group(self._shared, namespace, self._width(*namespace))
        return self._groups[namespace]

    def _forget(self) -> None:
        self._routes.clear()
        self._groups = {
            name: group for name, group in self._groups.items() if not self.live.isdisjoint(group.lanes.values())
        }

    def _put_barrier(self, batch: Batch, index: int, raw: Raw, route: Route) -> None:
        barrier = Barrier((batch, index, raw, route), raw, route.group.namespace)
        if route.handlers:
            route.group.lane(0)
        groups = [group for group in self._groups.values() if barrier.covers(group.namespace)]
        lanes = [lane for group in groups for lane in group.lanes.values()]
        if not route.handlers and not any(lane.is_live for lane in lanes):
            # Nobody is to be called, and nobody is ahead of it.
            batch.done[index] = UNWANTED
            return
        self._shared.barriers.append(barrier)
        for lane in lanes:
            lane.stop_at(barrier)


def _slot(document_key: Any, width: int) -> int:
    # By _id alone: a shard key beside it may change with the document, and documents that share a lane by chance only
    # wait for each other. Without one the user's pipeline has changed the key.
    return _hash(document_key.get("_id") if isinstance(document_key, Mapping) else document_key) % width


def _hash(value: Any) -> int:
    """Hash as the server compares: 1, 1.0, Int64(1) and Decimal128("1") are one ``_id``, which may be a document."""
    if type(value) in _PLAIN:
        return hash(value)
    if isinstance(value, Decimal128):
        value = value.to_decimal()
        if value.is_nan():
            # Comparing a signaling one raises.
            return _NOT_A_NUMBER
    if isinstance(value, Mapping):
        return hash(tuple((field, _hash(part)) for field, part in value.items()))
    if isinstance(value, list):
        return hash(tuple(map(_hash, value)))
    try:
        # Not-a-numbers are one _id too, and Python hashes each differently.
        return hash(value) if value == value else _NOT_A_NUMBER
    except TypeError:
        return hash(repr(value))


def warn_of_lanes(handlers: Iterable[Handler], concurrency: Iterable[int | None]) -> None:
    """Say that lanes and timeouts have no effect where the process is not patched.

    :param concurrency: what is asked for beside the handlers.
    """
    lanes = [*concurrency, *(handler.concurrency for handler in handlers)]
    is_asked = any((each or 1) > 1 for each in lanes) or any(handler.timeout for handler in handlers)
    if is_asked and not is_patched():
        logger.warning(
            "this process is not patched by gevent: a handler that blocks holds all lanes, so concurrency and timeout= "
            "have no effect on it (gevent.monkey.patch_all(), or `rigatoni run`, before all other imports)"
        )
