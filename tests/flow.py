"""The part of a stream that needs no server: handlers, lanes and the finished prefix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import gevent

from rigatoni.config import ChangeStreamConfig, RetryPolicy
from rigatoni.delivery import Delivery
from rigatoni.events import DeadLetter
from rigatoni.handlers import Handlers
from rigatoni.hooks import HookChain, Hooks
from rigatoni.hub import Flag
from rigatoni.lane import Shared
from rigatoni.lanes import Lanes
from rigatoni.plan import plans
from rigatoni.watermark import Batch, Watermark

#: Seconds of patience; nothing here takes as long.
PATIENCE = 30.0


def at_once(attempts: int = 3, **options: Any) -> RetryPolicy:
    """Make a policy that hardly waits."""
    return RetryPolicy(max_attempts=attempts, initial_backoff=1e-6, max_backoff=1e-6, **options)


def event(operation: str, key: Any = 1, collection: str | None = "orders", **fields: Any) -> dict[str, Any]:
    """Make an event of one document."""
    return {
        "operationType": operation,
        "ns": {"db": "shop", "coll": collection},
        "documentKey": {"_id": key},
        **fields,
    }


def insert(key: Any = 1, collection: str = "orders", **fields: Any) -> dict[str, Any]:
    return event("insert", key, collection, **fields)


def barrier(operation: str, collection: str | None = "orders", to: str | None = None) -> dict[str, Any]:
    """Make an event without a document."""
    found: dict[str, Any] = {"operationType": operation}
    if operation != "invalidate":
        found["ns"] = {"db": "shop", **({"coll": collection} if collection else {})}
    if to:
        found["to"] = {"db": "shop", "coll": to}
    return found


class Flow(Handlers):
    """Register handlers, :meth:`put` events, and :meth:`settle`."""

    def __init__(
        self,
        *,
        concurrency: int = 1,
        retry: RetryPolicy | None = None,
        on_error: Any = "dead_letter",
        bury: Callable[[DeadLetter], None] | None = None,
        hooks: Sequence[Hooks] = (),
    ) -> None:
        super().__init__()
        self.stop = Flag()
        self.progressed = Flag()
        self.letters: list[DeadLetter] = []
        self.failures: list[BaseException] = []
        self.watermark = Watermark()
        self.last = 0
        self._concurrency = concurrency
        self.delivery = Delivery(
            retry=retry or at_once(),
            on_error=on_error,
            bury=bury or self.letters.append,
            progress=self.progressed.set,
            hooks=HookChain(hooks),
            stop=self.stop,
            left=Flag(),
        )

    @cached_property
    def lanes(self) -> Lanes:
        (plan,) = plans(
            self._handlers,
            {},
            database=None,
            config=ChangeStreamConfig(show_expanded_events=True),
            concurrency=self._concurrency,
            start_at=None,
            on_invalidate="stop",
        )
        return Lanes(plan.lookup, plan.width, Shared(self.delivery, self.progressed.set, self._fail))

    def put(self, *events: Mapping[str, Any]) -> Batch:
        """Put events into lanes; each gets the next place in the stream as its token."""
        first = self.last + 1
        self.last += len(events)
        made = [{"_id": {"_data": f"{place:06}"}, **raw} for place, raw in enumerate(events, first)]
        batch = Batch(made, {"_data": f"{self.last:06}"}, 0)
        self.watermark.track(batch)
        self.lanes.put(batch)
        return batch

    def settle(self) -> None:
        """Wait until no lane has anything to do."""
        assert self.lanes.empty.wait(PATIENCE), f"still at work: {list(self.lanes.unfinished())}"

    def play(self, *events: Mapping[str, Any]) -> Batch:
        """Put events, wait until they are handled, and fail if the watcher would have failed."""
        batch = self.put(*events)
        self.settle()
        assert self.failures == []
        return batch

    def end(self) -> None:
        """Stop as a watcher does: what handled events have overtaken is finished, the rest is forgotten."""
        self.stop.set()
        places = [place for place in (self.watermark.newest(), self.lanes.newest()) if place is not None]
        self.lanes.forget(max(places, default=None))

    def _fail(self, error: BaseException) -> None:
        # As a watcher does: the first failure is the end of it, unless it is ending already.
        self.failures.append(error)
        if not self.stop.is_set():
            self.stop.set()
            gevent.spawn(self.lanes.forget, None)
