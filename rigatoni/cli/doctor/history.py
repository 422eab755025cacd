"""How far back the server's oplog goes: so long may a watcher be away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..moments import span
from .finding import UNKNOWN, Finding, note, ok, warning

if TYPE_CHECKING:
    from rigatoni.client import Client

#: Seconds below which the oplog forgets what a night's outage left to do.
SHORT = 24 * 3600
#: Share of its size from which an oplog counts as full; before, it forgets nothing more.
_FULL = 0.9
#: What the first entry of an oplog says that has never forgotten anything.
_FIRST = "initiating set"
#: Megabytes that are proposed at least; the server takes none below 990.
_LEAST = 16000
_RESIZE = "db.adminCommand({replSetResizeOplog: 1, size: %d, minRetentionHours: 72}) on each member, in mongosh"


def examine_history(client: Client) -> Iterator[Finding]:
    """Measure the time between the first and the last entry of the oplog."""
    from pymongo.errors import OperationFailure

    from rigatoni.client import oplog_entry

    try:
        first, last = oplog_entry(client), oplog_entry(client, -1)
    except OperationFailure:
        first = last = None
    if first is None or last is None:
        grant = '{resource: {db: "local", collection: "oplog.rs"}, actions: ["find"]}'
        text = f'{UNKNOWN} (find on local.oplog.rs); headroom is unknown, too, and start_at="earliest" not possible'
        yield note("oplog", text, f"add the privilege {grant}, on a replica set")
        return
    window, [size, most] = last["ts"].time - first["ts"].time, _sizes(client)
    if first.get("o", {}).get("msg") == _FIRST:
        yield ok("oplog", f"it goes back {span(window)}, to its beginning: it has forgotten nothing yet")
    elif size < _FULL * most:
        yield ok("oplog", f"it goes back {span(window)}, and has room for more")
    elif window >= SHORT:
        yield ok("oplog", f"it goes back {span(window)}: so long may a watcher be away")
    else:
        yield warning(
            "oplog",
            f"it goes back only {span(window)}: a watcher that is away, or behind, for longer loses its position "
            f"(error 286); less than {span(SHORT)} does not cover a night and the day after",
            _RESIZE % max(8 * most // 2**20, _LEAST),
        )


def _sizes(client: Client) -> tuple[int, int]:
    """Give the bytes that the oplog has and those that it may have; (0, 0) where that is not permitted."""
    from pymongo.errors import OperationFailure

    try:
        found = client.local.command("collStats", "oplog.rs")
    except OperationFailure:
        return 0, 0
    return int(found["size"]), int(found["maxSize"])
