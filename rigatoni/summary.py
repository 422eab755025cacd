"""What the streams of a watcher say of themselves, summed up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SUMMED = "received", "handled", "failed", "retried", "dead_lettered", "reconnects", "in_flight"


def summed_up(state: str, streams: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Give the counts of all streams together, their largest lag and their smallest headroom, and each by itself."""
    total: dict[str, Any] = {"state": state}
    total.update({name: sum(stream[name] for stream in streams.values()) for name in _SUMMED})
    lags = [stream["lag"] for stream in streams.values()]
    headrooms = [stream["headroom"] for stream in streams.values()]
    total["lag"] = max(lags) if lags and None not in lags else None
    total["headroom"] = min(headrooms) if headrooms and None not in headrooms else None
    total["streams"] = streams
    return total
