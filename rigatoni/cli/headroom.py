"""How long the oplog will still have positions, as far as somebody knows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .consumer import Consumer
from .exits import say
from .server import connected

if TYPE_CHECKING:
    from rigatoni import Position

#: Seconds for which what a watcher wrote of itself is believed.
FRESH = 10.0


def headrooms(consumer: Consumer, name: str, positions: Mapping[str, Position]) -> dict[str, float]:
    """Give the seconds between each position and the oldest change in the oplog; unknown ones are left out.

    The server is asked, where it is known and permits it; else the watcher's own word counts while it is fresh.
    """
    from rigatoni import StreamError
    from rigatoni.client import oldest

    if consumer.client is not None:
        try:
            with connected(consumer.client) as client:
                begin = oldest(client).time
        except StreamError as error:
            say(f"the oplog window is unknown: {error}")
        else:
            return {scope: float(max(0, at.cluster_time.time - begin)) for scope, at in positions.items()}
    return _told_by_watcher(consumer.store.status(name) or {})


def _told_by_watcher(status: Mapping[str, Any]) -> dict[str, float]:
    if time.time() - status.get("saved_at", 0.0) > FRESH:
        return {}
    streams = status.get("streams", {})
    return {scope: stream["headroom"] for scope, stream in streams.items() if stream.get("headroom") is not None}
