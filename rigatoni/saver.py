"""Every ``save_interval``, what moved: the positions of all streams and, once a second, the status row, in one
transaction.

May be killed at any moment: it holds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

from .hub import Flag
from .position import Position
from .stores import TokenStore

#: Seconds between two status rows.
STATUS_INTERVAL = 1.0


class Moving(Protocol):
    """What has a position that moves: a pipe."""

    def rows(self) -> tuple[Position | None, Mapping[str, Position | None]]:
        """Return how far it is, and the rows that say so; none when they are saved."""

    def saved(self, position: Position | None) -> None:
        """Take note that the rows are in the store."""


class Saver:
    """Save how far the streams of one watcher are.

    :param interval: seconds between two saves.
    :param status: makes the status row.
    """

    def __init__(
        self,
        store: TokenStore,
        name: str,
        streams: Sequence[Moving],
        interval: float,
        status: Callable[[], Mapping[str, Any]],
        stop: Flag,
    ) -> None:
        self._store = store
        self._name = name
        self._streams = streams
        self._interval = interval
        self._status = status
        self._stop = stop
        self._status_due = 0.0

    def run(self) -> None:
        """Save until told to stop.

        :raises ResumeTokenPersistenceError: when the store refuses for too long; going on would only make duplicates
            grow.
        """
        while not self._stop.wait(min(self._interval, STATUS_INTERVAL)):
            self.save()

    def save(self, at_once: bool = False) -> None:
        """Save what moved since the last time, all or nothing.

        :param at_once: with the status row, whether it is due or not.
        """
        moved = [(stream, *stream.rows()) for stream in self._streams]
        rows: dict[str, Position | None] = {}
        for _, _, stream_rows in moved:
            rows.update(stream_rows)
        is_due = at_once or monotonic() >= self._status_due
        if not rows and not is_due:
            return
        self._store.save(self._name, rows, self._status() if is_due else None)
        if is_due:
            self._status_due = monotonic() + STATUS_INTERVAL
        for stream, position, stream_rows in moved:
            if stream_rows:
                stream.saved(position)
