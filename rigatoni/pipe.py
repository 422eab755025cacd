"""The only file that knows the order of the stages.

For each batch that was read ahead, put each event in its document's lane; the lane calls the handlers and marks the
event done; the position of the finished prefix goes to the saver.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import gevent
from bson import Timestamp

from .delivery import Counts
from .errors import StreamInvalidatedError
from .events import ChangeEvent, namespace_of
from .hooks import Hooks
from .hub import Flag, GivenUp, let_others_run, wait_for_any
from .lanes import Lanes
from .position import Position, Resumption
from .registration import ENDING_OPERATIONS
from .reply import Event, Reply
from .stream import Stream
from .watermark import Batch, Token, Watermark

logger = logging.getLogger(__name__)

#: Replies that are read ahead at most.
AHEAD = 2
#: Bytes of a reply that is decoded sooner than the next getMore is sent.
FEW = 4096
#: Bytes of BSON in flight at most; decoded they take several times as much.
MOST_BYTES = 16 * 1024 * 1024
#: Seconds after which a held stream says which event holds it.
HELD = 30.0


class Pipe:
    """One stream, read ahead → lanes → watermark → saver.

    In flight is what was put into lanes and is not covered by the finished prefix. When `max_in_flight` events or about
    16 MiB are, the stream is held until the oldest of them is done.

    :param room: set by the lanes when events may have become done.
    :param resumption: which stored positions the stream goes on from.
    :param ends_when_invalidated: whether an invalidate of the declared scope is the end.
    """

    def __init__(
        self,
        stream: Stream,
        lanes: Lanes,
        *,
        room: Flag,
        resumption: Resumption,
        counts: Counts,
        hooks: Hooks,
        max_in_flight: int,
        ends_when_invalidated: bool,
        stop: Flag,
    ) -> None:
        self._stream = stream
        self._room = room
        self.resumption = resumption
        self._counts = counts
        self._hooks = hooks
        self._max_in_flight = max_in_flight
        self._ends_when_invalidated = ends_when_invalidated
        self._stop = stop
        self._ahead: deque[Reply] = deque()
        self._arrived = Flag()
        self._taken = Flag()
        self._watermark = Watermark()
        self._prefix: Position | None = None
        self._token: Token | None = None
        self._saved: Position | None = None
        self._received = 0
        self._ending = ""
        self._reached: Timestamp | None = None
        self._reached_at = monotonic()
        self._caught_up = False
        self._is_putting = False
        self.lanes = lanes
        self.scope = stream.scope

    def open(self, position: Position | None) -> None:
        """Open the stream; from then on a change is seen.

        :param position: where to start, None for now. A token that a stream of another level, pipeline or options saved
            may not be known to this one: then by its cluster time, and what was done at that time is dropped.
        """
        if position is not None and position.fingerprint not in ("", self._stream.fingerprint):
            position = replace(position, token=None)
        self._prefix = self._stream.open(position, check=True)
        self._reach(self._prefix.cluster_time)

    def read(self) -> None:
        """Read ahead until told to stop; the first of the two greenlets of a pipe."""
        while True:
            while len(self._ahead) >= AHEAD:
                self._taken.clear()
                self._wait(self._taken)
            reply = self._stream.pull()
            self._ahead.append(reply)
            if len(reply.cursor) <= FEW:
                # Handlers are entered before the next getMore is sent, which takes longer than to decode this.
                self._arrived.set()
                gevent.sleep(0)
            else:
                # By a detour through the hub, so that the next getMore is on its way before this reply is decoded.
                gevent.spawn(self._arrived.set)
            if self._is_end(reply):
                self._wait(Flag())

    def feed(self) -> None:
        """Put what was read into lanes until told to stop; the second greenlet of a pipe."""
        while True:
            while not self._ahead:
                self._arrived.clear()
                self._wait(self._arrived)
            reply = self._ahead.popleft()
            self._taken.set()
            self._is_putting = not reply.is_empty
            if not reply.is_empty:
                self._hooks.received(self.scope, *reply.size())
            for events, end, size in reply.slices():
                self._put(events, end, size)
                let_others_run()
            self._reach(reply.operation_time if end is None else self._stream.position(end).cluster_time, reply)
            self._is_putting = False
            if self._is_end(reply):
                self._end()

    def rows(self) -> tuple[Position | None, dict[str, Position | None]]:
        """Return the position of the finished prefix, and what to save for it; nothing when all of it is saved."""
        token = self._watermark.advance()
        if token is not None and token is not self._token:
            self._token = token
            self._prefix = self._stream.position(token)
            # A lane whose handler waits does not tell what it did before.
            self._room.set()
        if self._prefix is None or self._prefix == self._saved:
            return self._prefix, {}
        return self._prefix, self.resumption.rows(self._prefix)

    def saved(self, position: Position | None) -> None:
        """Take note that what :meth:`rows` gave is in the store."""
        self._saved = position
        self._hooks.saved(self.scope, None if position is None else position.token)

    def forget(self, *, everything: bool = False) -> None:
        """Give up what waits in lanes, except what handled events have overtaken: left undone, it would repeat them."""
        places = [place for place in (self._watermark.newest(), self.lanes.newest()) if place is not None]
        self.lanes.forget(max(places) if places and not everything else None)

    def close(self, error: BaseException | None) -> None:
        """Free the server's cursor."""
        self._stream.close(error)

    def stats(self) -> dict[str, Any]:
        """Say how it goes; lag in seconds, 0 only when everything that the server has is read and finished."""
        counts = self._counts
        return {
            "state": self._stream.state,
            "received": self._received,
            "handled": counts.handled,
            "failed": counts.failed,
            "retried": counts.retried,
            "dead_lettered": counts.dead_lettered,
            "reconnects": self._stream.reconnects,
            "in_flight": self._watermark.in_flight,
            "lag": self._lag(),
            "headroom": None,
            "catching_up": self._stream.catching_up,
        }

    def since(self) -> int | None:
        """Return the time of the position, in seconds since the epoch, for what concerns the oplog."""
        return None if self._prefix is None else self._prefix.cluster_time.time

    def _reach(self, reached: Timestamp | None, reply: Reply | None = None) -> None:
        """Take note up to which time everything was read, and whether the server had more at that moment.

        :param reply: the last one that was read; None when only the cursor was opened.
        """
        now = self._stream.clock.operation_time if reply is None else reply.operation_time
        self._reached, self._reached_at, self._caught_up = reached, monotonic(), False
        if now is not None and reached is not None:
            # The two times of a reply without events are not always of the same moment.
            tolerance = 1 if reply is not None and reply.is_empty else -1
            self._caught_up = reached >= now or now.time - reached.time <= tolerance

    def _lag(self) -> float | None:
        """Measure from the server's time back to the oldest change that is not finished, or may not have been read."""
        stream, clock, undone = self._stream, self._stream.clock, self._watermark.undone()
        now, reached = clock.now(), self._reached
        if now is None or reached is None or stream.state == "closed":
            return None
        if undone is not None:
            return max(0.0, now - stream.position(undone).cluster_time.time)
        if not self._caught_up:
            return max(0.0, now - reached.time)
        has_more = self._is_putting or not all(reply.is_empty for reply in self._ahead.copy())
        is_heard = stream.state == "active" and not clock.is_late
        return 0.0 if is_heard and not has_more else max(clock.silence, monotonic() - self._reached_at)

    def _put(self, events: list[Event], end: Mapping[str, Any] | None, size: int) -> None:
        self._stream.sized(len(events), size)
        if self.resumption.catching_up:
            events = [event for event in events if not self._drops(event)]
        if events:
            self._received += len(events)
            self._remember_ending(events)
        begin = 0
        while begin < len(events):
            share = events[begin : begin + self._wait_for_room(size)]
            begin += len(share)
            is_last = begin == len(events) and end is not None
            batch = Batch(
                share, end if is_last and end is not None else share[-1]["_id"], size * len(share) // len(events)
            )
            if self._stop.is_set():
                raise GivenUp("stopped before this batch")
            self._watermark.track(batch)
            self.lanes.put(batch)
        if not events and end is not None:
            self._watermark.extend(end)

    def _remember_ending(self, events: list[Event]) -> None:
        for event in events[-2:]:
            if event.get("operationType") in ENDING_OPERATIONS and event["operationType"] != "invalidate":
                self._ending = event["operationType"]

    def _drops(self, event: Event) -> bool:
        return self.resumption.drops(*namespace_of(event.get("ns")), event["_id"])

    def _wait_for_room(self, size: int) -> int:
        """Wait until something may be put into lanes, and say how many events."""
        watermark, since, told = self._watermark, monotonic(), False
        while True:
            # Cleared before it is looked, so that an event that becomes done meanwhile is not missed.
            self._room.clear()
            watermark.advance()
            room = self._max_in_flight - watermark.in_flight
            if not watermark.in_flight or (room > 0 and watermark.size + size <= MOST_BYTES):
                return room
            # What waits for its batch to fill would wait for ever now.
            self.lanes.flush()
            wait_for_any((self._room, self._stop), HELD)
            if self._stop.is_set():
                raise GivenUp("stopped while the stream was held")
            if not told and monotonic() - since > HELD:
                told = True
                self._tell_who_holds()

    def _tell_who_holds(self) -> None:
        oldest = self._watermark.oldest()
        if oldest is not None:
            logger.warning(
                "stream %r is held for %.0f s: %d events are in flight, the oldest is %r",
                self.scope,
                HELD,
                self._watermark.in_flight,
                ChangeEvent(oldest),
            )

    def _is_end(self, reply: Reply) -> bool:
        if reply.cursor_id or not self._ends_when_invalidated:
            return False
        # A cursor that is opened by time meets the invalidate that an earlier run ended with once more.
        return reply.end is None or not self.resumption.drops(None, None, reply.end)

    def _end(self) -> None:
        """Let what is in flight become done, so that the position passes the invalidate event, and end."""
        while True:
            self._room.clear()
            self._watermark.advance()
            if not self._watermark.in_flight:
                break
            self._wait(self._room)
        reason = self._ending or "invalidated"
        raise StreamInvalidatedError(
            f"stream {self.scope!r} is invalidated ({reason}): start again to go on with what comes after",
            reason=reason,
        )

    def _wait(self, flag: Flag) -> None:
        wait_for_any((flag, self._stop))
        if self._stop.is_set():
            raise GivenUp("stopped")
