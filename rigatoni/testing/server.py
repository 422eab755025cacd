"""The fake server: it answers the commands of a change stream, and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import count
from time import monotonic
from typing import Any

import bson
from bson import CodecOptions, DatetimeConversion, Int64, ObjectId, Timestamp
from pymongo.errors import AutoReconnect, PyMongoError

from rigatoni import ConfigurationError

from .cursor import Cursor
from .faults import Faults, failure
from .match import refusal
from .oplog import Event, Oplog

Document = Mapping[str, Any]
Codec = CodecOptions[Any]

#: As the server keeps values, whatever the options of a client.
PLAIN: Codec = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
#: The most that an event may weigh, so that a server can send it.
MOST_BYTES = 16 * 1024 * 1024 + 16 * 1024


def plain(document: Document, codec: Codec) -> dict[str, Any]:
    """Take a document over the wire, from a client with these options."""
    return bson.decode(bson.encode(document, codec_options=codec), PLAIN)


class Server:
    """One primary of a replica set, in memory; called from any greenlet or thread.

    Whoever waits for an event waits for the condition: of greenlets in a patched process, of threads in another.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._cursors: dict[int, Cursor] = {}
        self._numbers = count(1)
        self._identity = ObjectId()
        self._faults = Faults()
        self._answers: dict[str, Callable[[str, Document], dict[str, Any]]] = {
            "aggregate": self._aggregate,
            "getMore": self._get_more,
            "killCursors": self._kill_cursors,
            "hello": self._hello,
            "ping": lambda database, command: {},
            "replSetGetConfig": self._configuration,
        }
        self.oplog = Oplog()

    @contextmanager
    def changing(self) -> Iterator[Faults]:
        """Change something, and wake whoever waits for an event."""
        with self._changed:
            yield self._faults
            self._changed.notify_all()

    def write(self, events: list[Event]) -> list[Event]:
        """Append events together, so that one reply may carry them.

        :raises ConfigurationError: for what the server would never write, or never send whole.
        """
        for event in events:
            if len(bson.encode(event, codec_options=PLAIN)) > MOST_BYTES:
                raise refusal("an event over 16 MB")
        with self.changing():
            return self.oplog.write(events)

    def break_off(self) -> None:
        """Forget every cursor, as a server does that ends."""
        self._cursors.clear()

    def oldest(self) -> Timestamp:
        """Find the oldest entry of the oplog."""
        with self._changed:
            self._faults.strike("find")
            return self.oplog.oldest

    def answer(self, database: str, command: Document) -> bytes:
        """Answer a command as BSON.

        :raises PyMongoError: what pymongo would raise.
        :raises ConfigurationError: for what only a real server can do.
        """
        name = next(iter(command))
        if name not in self._answers:
            raise ConfigurationError(f"a FakeClient answers the commands of a change stream only, and not {name!r}")
        with self._changed:
            self._faults.strike(name)
            answer = self._answers[name](database, command)
            now = self.oplog.now
        signature = {"hash": bytes(20), "keyId": Int64(0)}
        times = {"$clusterTime": {"clusterTime": now, "signature": signature}, "operationTime": now}
        return bson.encode({**answer, "ok": 1.0, **times}, codec_options=PLAIN)

    def _aggregate(self, database: str, command: Document) -> dict[str, Any]:
        if "collation" in command:
            raise refusal("a collation")
        collection = command["aggregate"]
        is_deployment = command["pipeline"][0]["$changeStream"].get("allChangesForCluster", False)
        level = None if is_deployment else database, collection if isinstance(collection, str) else None
        cursor = Cursor(self.oplog, level, command["pipeline"])
        size = command["cursor"]["batchSize"]
        events = cursor.read(size) if size else []
        number = next(self._numbers)
        self._cursors[number] = cursor
        return self._reply(number, "firstBatch", events, f"{database}.{level[1] or '$cmd.aggregate'}")

    def _get_more(self, database: str, command: Document) -> dict[str, Any]:
        number = command["getMore"]
        if number not in self._cursors:
            raise failure(43, f"cursor id {number} not found")
        self._wait(number, command["maxTimeMS"] / 1000)
        try:
            events = self._cursors[number].read(command["batchSize"])
        except PyMongoError:
            del self._cursors[number]
            raise
        return self._reply(number, "nextBatch", events, f"{database}.{command['collection']}")

    def _wait(self, number: int, seconds: float) -> None:
        """Wait until a cursor can read on, or until nothing came for so long; what goes wrong meanwhile is raised."""
        deadline = monotonic() + seconds
        while not self._cursors[number].is_behind:
            left = deadline - monotonic()
            is_over = left <= 0 or not self._changed.wait(left)
            # Also when the time is over, because others may have come before this thread.
            if self._faults.is_down:
                raise AutoReconnect("the fake server went down: connection closed")
            self._faults.strike("getMore")
            if number not in self._cursors:
                raise failure(237, "the cursor was killed")
            if is_over:
                return

    def _reply(self, number: int, batch: str, events: list[Event], namespace: str) -> dict[str, Any]:
        cursor = self._cursors[number]
        if cursor.is_dead:
            del self._cursors[number]
        return {
            "cursor": {
                batch: events,
                "postBatchResumeToken": cursor.end,
                "id": Int64(0 if cursor.is_dead else number),
                "ns": namespace,
            }
        }

    def _kill_cursors(self, database: str, command: Document) -> dict[str, Any]:
        killed = [number for number in command["cursors"] if self._cursors.pop(number, None) is not None]
        missing = [number for number in command["cursors"] if number not in killed]
        self._changed.notify_all()
        return {"cursorsKilled": killed, "cursorsNotFound": missing, "cursorsAlive": [], "cursorsUnknown": []}

    def _hello(self, database: str, command: Document) -> dict[str, Any]:
        return {"isWritablePrimary": True, "setName": "fake", "localTime": datetime.now(timezone.utc)}

    def _configuration(self, database: str, command: Document) -> dict[str, Any]:
        return {"config": {"_id": "fake", "settings": {"replicaSetId": self._identity}}}
