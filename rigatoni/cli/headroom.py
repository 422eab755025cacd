"""How long the oplog will still have positions, as far as somebody knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .exits import say
from .server import connected

if TYPE_CHECKING:
    from rigatoni import Position
    from rigatoni.client import Client
    from rigatoni.config import URI


def oplog_begin(where: str | URI | Client | None) -> int | None:
    """Ask a server for the time of its oldest change, in seconds since the epoch.

    None where nobody said which server, it does not answer, or this is not permitted.
    """
    from rigatoni import StreamError
    from rigatoni.client import oldest

    if where is None:
        return None
    try:
        with connected(where) as client:
            return int(oldest(client).time)
    except StreamError as error:
        say(f"the oplog window is unknown: {error}")
        return None


def headrooms(
    positions: Mapping[str, Position], begin: int | None, status: Mapping[str, Any] | None
) -> dict[str, float]:
    """Give the seconds between each position and the oldest change in the oplog, by scope; unknown ones are left out.

    :param begin: of the oplog; None: what the watcher says of itself counts, while it is fresh.
    :param status: the watcher's status row.
    """
    from rigatoni.contrib.health import is_fresh

    if begin is not None:
        return {scope: float(max(0, position.cluster_time.time - begin)) for scope, position in positions.items()}
    if status is None or not is_fresh(status):
        return {}
    streams = status.get("streams", {})
    return {scope: stream["headroom"] for scope, stream in streams.items() if stream.get("headroom") is not None}
