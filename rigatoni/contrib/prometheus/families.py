"""Which metrics there are, and how a status row fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import Any, NamedTuple

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.utils import floatToGoString

from rigatoni.contrib.health import is_fresh, problems

from .hooks import SIZES, Series


class _Family(NamedTuple):
    kind: Any
    name: str
    text: str
    labels: tuple[str, ...] = ()


_STREAM = ("stream",)
_COLLECTION = ("database", "collection")

#: By a short name; where it is a key of a stream in the row, that is where the value comes from.
_FAMILIES = {
    "up": _Family(GaugeMetricFamily, "up", "1 when the watcher is well, as the health page has it; else 0."),
    "pipeline_status": _Family(GaugeMetricFamily, "pipeline_status", "0 stopped, 1 running, 2 failed or dead."),
    "active": _Family(InfoMetricFamily, "active", "Which process is the active one; absent when none is."),
    "standby": _Family(GaugeMetricFamily, "standby", "1 when the watcher of this process stands by; else 0."),
    "since": _Family(
        GaugeMetricFamily, "start_timestamp_seconds", "When the active process started its watcher; absent without one."
    ),
    "saved_at": _Family(GaugeMetricFamily, "status_timestamp_seconds", "When the status row was written."),
    "state": _Family(GaugeMetricFamily, "stream_active", "1 when the stream is open, 0 while it reconnects.", _STREAM),
    "catching_up": _Family(
        GaugeMetricFamily, "stream_catching_up", "1 while the server is silent because it scans its oplog.", _STREAM
    ),
    "lag": _Family(
        GaugeMetricFamily,
        "change_stream_lag_seconds",
        "Age of the oldest change that is not finished: 0 only when there is none; absent while unknown.",
        _STREAM,
    ),
    "headroom": _Family(
        GaugeMetricFamily,
        "oplog_headroom_seconds",
        "From the oldest change in the oplog to the position; absent while unknown.",
        _STREAM,
    ),
    "in_flight": _Family(GaugeMetricFamily, "in_flight", "Events that were read and are not finished.", _STREAM),
    "received": _Family(CounterMetricFamily, "events_received", "Events that were read.", _STREAM),
    "retried": _Family(CounterMetricFamily, "retries", "Calls of handlers after one that failed.", _STREAM),
    "dead_lettered": _Family(CounterMetricFamily, "dead_letters", "Events that became dead letters.", _STREAM),
    "reconnects": _Family(CounterMetricFamily, "reconnects", "Attempts to open a lost cursor again.", _STREAM),
    "bytes": _Family(CounterMetricFamily, "received_bytes", "Bytes of BSON that were read.", _STREAM),
    "sizes": _Family(
        HistogramMetricFamily, "batch_size", "Events of a reply of the server, empty ones apart.", _STREAM
    ),
    "saved": _Family(
        GaugeMetricFamily, "saved_position_timestamp_seconds", "Up to when changes are finished and saved.", _STREAM
    ),
    "processed": _Family(
        CounterMetricFamily,
        "events_processed",
        "Handlers that returned: an event counts once for each of its handlers.",
        (*_COLLECTION, "operation"),
    ),
    "failed": _Family(
        CounterMetricFamily, "events_failed", "Attempts of handlers that failed.", (*_COLLECTION, "error_type")
    ),
    "seconds": _Family(
        HistogramMetricFamily,
        "handler_seconds",
        "How long handlers took; each event of a batch counts with the time of the whole call.",
        _COLLECTION,
    ),
}

#: Those whose value is told by the row of a process that lives, and by no other.
_MOMENTARY = ("catching_up", "lag", "headroom", "in_flight")
_LASTING = ("received", "retried", "dead_lettered", "reconnects")


def families() -> dict[str, Any]:
    """Make all metrics, without a sample, by their short names."""
    return {
        short: family.kind(f"rigatoni_{family.name}", family.text, labels=("watcher", *family.labels))
        for short, family in _FAMILIES.items()
    }


def fill(found: Mapping[str, Any], name: str, status: Mapping[str, Any] | None, now: float | None = None) -> None:
    """Add what a row tells. Of a process that is dead or has stopped only what stays true: counters and times.

    :param found: what :func:`families` made.
    :param name: of the consumer.
    :param now: seconds since the epoch; default the time of this call.
    """
    found["up"].add_metric([name], not problems(status, now))
    found["pipeline_status"].add_metric([name], _pipeline_status(status, now))
    if status is None:
        return
    found["saved_at"].add_metric([name], status["saved_at"])
    lives = is_fresh(status, now) and status["state"] not in ("stopped", "failed")
    if lives:
        found["active"].add_metric([name], {"host": _label(status["host"]), "pid": _label(status["pid"])})
        found["since"].add_metric([name], status["since"])
    for scope, stream in status["streams"].items():
        _fill_stream(found, [name, _label(scope)], stream, lives)
    if "metrics" in status:
        _fill_metrics(found, name, status["metrics"])


def _pipeline_status(status: Mapping[str, Any] | None, now: float | None) -> int:
    if status is None or status["state"] == "stopped":
        return 0
    if status["state"] == "failed" or not is_fresh(status, now):
        return 2
    return 1 if status["state"] == "running" else 0


def _fill_stream(found: Mapping[str, Any], labels: Sequence[str], stream: Mapping[str, Any], lives: bool) -> None:
    for short in _LASTING:
        found[short].add_metric(labels, stream[short])
    if lives:
        found["state"].add_metric(labels, stream["state"] == "active")
        for short in _MOMENTARY:
            if stream[short] is not None:
                found[short].add_metric(labels, stream[short])


def _fill_metrics(found: Mapping[str, Any], name: str, metrics: Mapping[str, Any]) -> None:
    for short in ("bytes", "saved"):
        for scope, value in metrics[short].items():
            found[short].add_metric([name, _label(scope)], value)
    for scope, series in metrics["sizes"].items():
        _add_histogram(found["sizes"], [name, _label(scope)], SIZES, series)
    for database, collection, error_type, count in metrics["failed"]:
        found["failed"].add_metric([name, *map(_label, (database, collection, error_type))], count)
    seconds: dict[tuple[str, str], Series] = {}
    for database, collection, operation, series in metrics["handled"]:
        where = _label(database), _label(collection)
        found["processed"].add_metric([name, *where, _label(operation)], sum(series[1:]))
        seconds[where] = [sum(pair) for pair in zip(seconds.get(where, [0.0] * len(series)), series, strict=True)]
    for where, series in seconds.items():
        _add_histogram(found["seconds"], [name, *where], metrics["buckets"], series)


def _add_histogram(found: Any, labels: Sequence[str], buckets: Sequence[float], series: Series) -> None:
    ends = map(floatToGoString, [*buckets, inf])
    found.add_metric(labels, [*zip(ends, accumulate(series[1:]), strict=True)], sum_value=series[0])


def _label(value: object) -> str:
    # A name may hold what has no UTF-8, where the client decodes it so.
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode()
