"""Metrics of status rows, for registries of ``prometheus_client`` and as text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rigatoni import ConfigurationError, StreamError, TokenStore, Watcher

from .families import families, fill

logger = logging.getLogger(__name__)


class StatusCollector(Collector):
    """Read status rows whenever metrics are asked for; to be registered with a registry of ``prometheus_client``.

    A row that cannot be read is logged and counts as none: ``rigatoni_up`` is 0, and the other metrics of the process
    are not lost with it.

    :param watchers: of whom: watchers of this process, or pairs (store, name). Of a watcher it also tells whether it
        stands by.
    :raises ConfigurationError: for anything else, none, or two of one name.
    """

    def __init__(self, *watchers: Watcher | tuple[TokenStore, str]) -> None:
        self._sources = [_source(each) for each in watchers]
        names = [name for _, name, _ in self._sources]
        if not names:
            raise ConfigurationError("StatusCollector needs a watcher, or a pair (store, name)")
        if len({*names}) < len(names):
            raise ConfigurationError(f"two watchers have one name among {sorted(names)}: give them names of their own")

    def describe(self) -> Iterable[Metric]:
        """Say which metrics there may be, without a look into a store."""
        return families().values()

    def collect(self) -> Iterable[Metric]:
        """Read the rows."""
        found = families()
        for store, name, watcher in self._sources:
            fill(found, name, _read(store, name))
            if watcher is not None:
                found["standby"].add_metric([name], watcher.state == "standby")
        return found.values()


class _Row(Collector):
    """The metrics of one row that was read before."""

    def __init__(self, name: str, status: Mapping[str, Any] | None, now: float | None) -> None:
        self._row = name, status, now

    def collect(self) -> Iterable[Metric]:
        found = families()
        fill(found, *self._row)
        return found.values()


def exposition(
    name: str, status: Mapping[str, Any] | None, accept: str = "", now: float | None = None
) -> tuple[bytes, str]:
    """Write the metrics of one status row for Prometheus, and say of what content type that is.

    :param name: of the consumer.
    :param status: its row, as :meth:`rigatoni.TokenStore.status` gives it; None when there is none.
    :param accept: the ``Accept`` header of the request: with it newer Prometheus servers ask for OpenMetrics.
    :param now: seconds since the epoch; default the time of this call.
    """
    encode, content_type = choose_encoder(accept)
    return encode(_Row(name, status, now)), content_type


def _source(watcher: Watcher | tuple[TokenStore, str]) -> tuple[TokenStore, str, Watcher | None]:
    if isinstance(watcher, Watcher):
        return watcher.store, watcher.name, watcher
    if isinstance(watcher, tuple) and len(watcher) == 2:
        store, name = watcher
        if isinstance(store, TokenStore) and isinstance(name, str):
            return store, name, None
    raise ConfigurationError(f"StatusCollector takes watchers, or pairs (store, name), not {watcher!r}")


def _read(store: TokenStore, name: str) -> Mapping[str, Any] | None:
    try:
        return store.status(name)
    except StreamError as error:
        logger.error("the status row of %r cannot be read: %s", name, error)
        return None
