"""What is counted where events are handled, and put into the status row as plain numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from typing import Any

from rigatoni import ChangeEvent, ConfigurationError, Hooks, Position

#: Upper ends of the buckets for the seconds of handlers.
BUCKETS = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
#: Likewise for the events of a reply.
SIZES = (1, 10, 50, 100, 250, 500, 1000, 5000)
#: Stands for whatever is beyond the number of label sets; no collection can be called so.
OTHER = "$other"

#: Database, collection, and operation or type of error.
Key = tuple[str | None, str | None, str]
#: A sum, and how often each bucket was hit, the last one without an upper end.
Series = list[float]


class PrometheusHooks(Hooks):
    """Count events, the seconds of handlers and the sizes of replies, and put them into the status row.

    Give each watcher one of its own. The numbers begin at 0 with this object, and so do they after a take-over by
    another process: to Prometheus both are resets of a counter, which ``rate()`` and ``increase()`` understand.

    :param buckets: upper ends of the buckets for the seconds of handlers, ascending; default from 0.1 ms to a minute.
    :param most: label sets (database, collection, operation or error) that are told apart, the first ones that come;
        the rest is counted under "$other"; default 100. It bounds the status row, and what Prometheus has to keep.
    :raises ConfigurationError: for buckets that are none, or a number below 1.
    """

    def __init__(self, *, buckets: Sequence[float] = BUCKETS, most: int = 100) -> None:
        self._buckets = _checked(buckets)
        if not isinstance(most, int) or isinstance(most, bool) or most < 1:
            raise ConfigurationError(f"most must be a whole number from 1, not {most!r}")
        self._most = most
        self._handled: dict[Key, Series] = {}
        self._failed: dict[Key, Series] = {}
        self._sizes: dict[str, Series] = {}
        self._bytes: dict[str, int] = {}
        self._saved: dict[str, int] = {}

    def received(self, stream: str, count: int, size: int) -> None:
        """Count the events and bytes of a reply."""
        if stream not in self._sizes:
            self._sizes[stream] = [0.0] * (len(SIZES) + 2)
        _observe(self._sizes[stream], SIZES, count)
        self._bytes[stream] = self._bytes.get(stream, 0) + size

    def handled(self, event: ChangeEvent, seconds: float) -> None:
        """Count a handler that returned, and its seconds."""
        key = (event.database, event.collection, event.operation)
        series = self._handled.get(key)
        if series is None:
            series = self._new(self._handled, key, len(self._buckets) + 2)
        _observe(series, self._buckets, seconds)

    def failed(self, event: ChangeEvent, error: BaseException, attempt: int) -> None:
        """Count an attempt that failed."""
        key = (event.database, event.collection, type(error).__name__)
        (self._failed.get(key) or self._new(self._failed, key, 1))[0] += 1

    def saved(self, stream: str, token: Mapping[str, Any] | None) -> None:
        """Note the time of the position that is in the store."""
        if token is not None:
            self._saved[stream] = Position.of(token).cluster_time.time

    def status(self) -> Mapping[str, Any]:
        """Give all numbers under one key."""
        return {
            "metrics": {
                "buckets": self._buckets,
                "handled": [[*key, series] for key, series in self._handled.items()],
                "failed": [[*key, series[0]] for key, series in self._failed.items()],
                "sizes": self._sizes,
                "bytes": self._bytes,
                "saved": self._saved,
            }
        }

    def _new(self, found: dict[Key, Series], key: Key, length: int) -> Series:
        if len(found) >= self._most:
            key = (OTHER, OTHER, OTHER)
        return found.setdefault(key, [0.0] * length)


def _observe(series: Series, buckets: Sequence[float], value: float) -> None:
    series[0] += value
    series[bisect_left(buckets, value) + 1] += 1


def _checked(buckets: Sequence[float]) -> tuple[float, ...]:
    found = tuple(buckets) if isinstance(buckets, Iterable) else ()
    are_numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) and isfinite(end) for end in found)
    if not found or not are_numbers or any(before >= after for before, after in pairwise(found)):
        raise ConfigurationError(f"buckets must be numbers of seconds in ascending order, not {buckets!r}")
    return found
