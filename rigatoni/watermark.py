"""Batches in order, acknowledgements in any order: the position up to which everything is finished. Pure.

The bookkeeping is per batch: a ``bytearray`` with one flag an event. Setting a flag is one assignment, atomic in
CPython, so that it may come from any greenlet or native thread; looking for the finished prefix is one ``find``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

Token = Mapping[str, Any]
#: Where an event stands in its stream: the number of its batch, and its own in it.
Place = tuple[int, int]

#: How an event can be done: its handlers are finished with it, or it has none. 0 is not done.
HANDLED = 1
UNWANTED = 2


class Batch:
    """Events that were read together; each is done or not.

    :param events: the raw events, in the server's order.
    :param end: the resume token once all of them are done (postBatchResumeToken, else the last event's own).
    :param size: their size on the wire, in bytes.
    """

    __slots__ = ("done", "end", "events", "passed", "serial", "size", "tokens")

    def __init__(self, events: Sequence[Mapping[str, Any]], end: Token, size: int) -> None:
        self.events = events
        # Copied now, so that a handler that changes its event cannot change a position.
        self.tokens: list[Token] = [dict(event["_id"]) for event in events]
        self.end: Token = dict(end)
        self.size = size
        self.done = bytearray(len(self.tokens))
        self.passed = 0
        self.serial = 0


class Watermark:
    """The finished prefix of one stream."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._token: Token | None = None
        self._serial = 0
        self.in_flight = 0
        self.size = 0

    def track(self, batch: Batch) -> None:
        """Take a batch in, behind all earlier ones."""
        self._serial += 1
        batch.serial = self._serial
        self._batches.append(batch)
        self.in_flight += len(batch.done)
        self.size += batch.size

    def extend(self, token: Token) -> None:
        """Take in that the stream has gone on to this token without an event (the end of an empty reply)."""
        if self._batches:
            self._batches[-1].end = token
        else:
            self._token = token

    def advance(self) -> Token | None:
        """Return the resume token of the finished prefix, None before anything has been finished.

        Every event up to it is done, and no later call returns an earlier one. :attr:`in_flight` (events) and
        :attr:`size` (bytes of the batches that hold them) are brought up to date.
        """
        while self._batches:
            batch = self._batches[0]
            undone = batch.done.find(0, batch.passed)
            reached = len(batch.done) if undone < 0 else undone
            self.in_flight -= reached - batch.passed
            if undone >= 0:
                if undone > batch.passed:
                    self._token = batch.tokens[undone - 1]
                batch.passed = undone
                break
            self._token = batch.end
            self.size -= batch.size
            self._batches.popleft()
        return self._token

    def oldest(self) -> Mapping[str, Any] | None:
        """Return the oldest event that is not done, None when all are."""
        self.advance()
        for batch in self._batches:
            return batch.events[batch.passed]
        return None

    def undone(self) -> Token | None:
        """Return the resume token of the oldest event that is not done, None when all are.

        Changes nothing, so that it may be called from any thread.
        """
        for batch in self._batches.copy():
            index = batch.done.find(0)
            if index >= 0:
                return batch.tokens[index]
        return None

    def newest(self) -> Place | None:
        """Say where the newest handled event of those in flight stands."""
        for batch in reversed(self._batches):
            index = batch.done.rfind(HANDLED)
            if index >= 0:
                return batch.serial, index
        return None
