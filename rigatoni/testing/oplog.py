"""What the fake server remembers: every change in order, as its oplog would hold it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bson import Timestamp
from bson.datetime_ms import DatetimeMS

from rigatoni import ConfigurationError

from .clock import Clock

Event = Mapping[str, Any]

#: What follows the cluster time in the ``_data`` of a token: of an event, and of a place before all events of its time.
_VERSION = "2B022C0100296E"
_HIGH_WATER_MARK = "2B0229296E04"
#: Where the operation's own part of ``_data`` begins.
_OWN = 32


class Entry(NamedTuple):
    """One change, or a mere sign of life."""

    time: Timestamp
    event: Event | None


def high_water_mark(at: Timestamp) -> dict[str, str]:
    """Give the resume token of a cluster time, before all its events."""
    return {"_data": f"82{at.time:08X}{at.inc:08X}{_HIGH_WATER_MARK}"}


class Oplog:
    """Every change since the server began, or since its history was lost.

    Entries are counted from the beginning, whatever was forgotten since.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._entries = [Entry(self._clock.tick(), None)]
        self._collections: dict[str, set[str]] = {}
        self.begin = 0

    @property
    def end(self) -> int:
        """Count all entries that there ever were."""
        return self.begin + len(self._entries)

    @property
    def now(self) -> Timestamp:
        """Say when the newest entry was written."""
        return self._entries[-1].time

    @property
    def oldest(self) -> Timestamp:
        """Say when the oldest entry was written that is not forgotten."""
        return self._entries[0].time

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number - self.begin]

    def since(self, at: Timestamp) -> int:
        """Count the entries before a cluster time."""
        return next((self.begin + index for index, entry in enumerate(self._entries) if entry.time >= at), self.end)

    def write(self, events: Sequence[Event]) -> list[Event]:
        """Append events, as old as this moment: their ids and times are made anew.

        :raises ConfigurationError: for what the server would never write; then none is appended.
        """
        for event in events:
            _check(event)
        return [self._written(event) for event in events]

    def live(self) -> Timestamp:
        """Append a sign of life, which brings every cursor past all that was written before."""
        self._entries.append(Entry(self._clock.tick(), None))
        return self.now

    def forget(self) -> None:
        """Lose everything that was written so far."""
        self.begin = self.end
        self._entries = [Entry(self._clock.tick(), None)]

    def collections(self, database: str) -> list[str]:
        """Name the collections that there are, as far as the changes tell."""
        return sorted(self._collections.get(database, ()))

    def _written(self, event: Event) -> Event:
        now, data = self._clock.tick(), event["_id"]["_data"]
        # One version for all, because tokens of different ones have no order.
        token = {**event["_id"], "_data": f"82{now.time:08X}{now.inc:08X}{_VERSION}{data[_OWN:]}"}
        times = {"clusterTime": now, "wallTime": DatetimeMS(int(1000 * time.time()))}
        written = {**event, "_id": token, **times}
        self._entries.append(Entry(now, written))
        self._note(written)
        return written

    def _note(self, event: Event) -> None:
        operation, namespace = event["operationType"], event["ns"]
        known = self._collections.setdefault(namespace["db"], set())
        if operation == "dropDatabase":
            known.clear()
        elif operation == "drop":
            known.discard(namespace["coll"])
        elif operation == "rename":
            known.discard(namespace["coll"])
            self._collections.setdefault(event["to"]["db"], set()).add(event["to"]["coll"])
        else:
            known.add(namespace["coll"])


def _check(event: Event) -> None:
    operation, namespace, token = (event.get(name) for name in ("operationType", "ns", "_id"))
    if operation == "invalidate":
        raise ConfigurationError(
            "the server makes 'invalidate' itself, for each cursor that a drop, rename or dropDatabase ends: play these"
        )
    names = {"db"} if operation == "dropDatabase" else {"db", "coll"}
    is_whole = isinstance(token, Mapping) and isinstance(token.get("_data"), str) and isinstance(operation, str)
    if not is_whole or not isinstance(namespace, Mapping) or not names <= namespace.keys():
        raise ConfigurationError(
            "what is played must be a whole change event, with _id, operationType and ns: make it with make_event()"
        )
    if operation == "rename" and not isinstance(event.get("to"), Mapping):
        raise ConfigurationError("a rename says in 'to' where it goes: make it with make_event('rename', to=…)")
