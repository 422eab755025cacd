"""Servers that fail as they are told: failpoints, and what a watcher says of them.

https://github.com/mongodb/mongo/wiki/The-%22failCommand%22-fail-point
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from conftest import wait_until
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, Hooks, MemoryStore, Watcher
from rigatoni.mongod import ReplicaSet

#: Fails a getMore before its cursor is looked up, so that the server adds no label.
BEFORE = "failCommand"
#: Fails it afterwards, as a change stream, with the label that says whether it is resumable.
AFTER = "failGetMoreAfterCursorCheckout"


class Failing:
    """A database of a server that can be told to fail, and a client name that it fails for."""

    def __init__(self, replica_set: ReplicaSet, client: MongoClient[Any]) -> None:
        self.replica_set = replica_set
        self.name = f"test_{uuid4().hex}"
        self.database = client[self.name]
        self.orders = self.database.orders
        # A server that fails with "shutting down" is asked again only after the next heartbeat.
        self.uri = f"{replica_set.uri}&appName={self.name}&heartbeatFrequencyMS=500&serverSelectionTimeoutMS=3000"
        self._last = 0

    def insert(self, count: int = 1) -> None:
        """Insert documents with ascending numbers for an ``_id``."""
        self.orders.insert_many([{"_id": self._last + number} for number in range(1, count + 1)])
        self._last += count

    @property
    def inserted(self) -> list[int]:
        return list(range(1, self._last + 1))

    def fail(self, mode: Any, command: str = "getMore", *, point: str = BEFORE, **data: Any) -> None:
        """Let a command fail; only for clients of this name, so that nobody else is hit.

        :param mode: how often: "alwaysOn", "off" or {"times": n}.
        """
        commands = {"failCommands": [command]} if point == BEFORE else {}
        self.database.client.admin.command(
            {"configureFailPoint": point, "mode": mode, "data": {**commands, "appName": self.name, **data}}
        )

    def mend(self) -> None:
        """Let nothing fail any more."""
        for point in (BEFORE, AFTER):
            self.database.client.admin.command({"configureFailPoint": point, "mode": "off"})

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()
        self.database.client.drop_database(self.name)

    def operations(self) -> list[dict[str, Any]]:
        """List the getMore commands that run, and the cursors that wait for one, of the watched client."""
        found = self.database.client.admin.aggregate(
            [{"$currentOp": {"idleCursors": True}}, {"$match": {"cursor.originatingCommand.$db": self.name}}]
        )
        return list(found)


class Watched(Hooks):
    """A watcher of the orders that is told of its reconnections."""

    def __init__(self, failing: Failing, *, client: Any = None, start_at: Any = None, **config: Any) -> None:
        self.attempts: list[tuple[str, int, float]] = []
        self.openings = 0
        self.seen: list[int] = []
        self.config = ChangeStreamConfig(**{"max_await_time": 0.1, "initial_backoff": 0.001, **config})
        self.watcher = Watcher(
            client or failing.uri,
            failing.name,
            store=MemoryStore(),
            config=self.config,
            start_at=start_at,
            hooks=[self],
        )
        self.watcher.on("insert", collection="orders")(self._see)
        self._failing = failing

    def _see(self, event: Any) -> None:
        self.seen.append(event.document_key["_id"])

    def opened(self, stream: str) -> None:
        self.openings += 1

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        self.attempts.append((str(error), attempt, delay))

    @property
    def numbers(self) -> list[int]:
        return [number for _, number, _ in self.attempts]

    @property
    def stream(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.watcher.stats()["streams"][self._failing.name]
        return stats

    def wait_for_recovery(self, attempts: int) -> None:
        """Wait until so many attempts were made in all and the server replies again."""
        wait_until(lambda: len(self.attempts) >= attempts and self.stream["state"] == "active")
        assert len(self.attempts) == attempts

    def wait_for_all(self) -> None:
        """Wait until everything inserted was seen: once, in order."""
        wait_until(lambda: len(self.seen) >= len(self._failing.inserted) or self.watcher.error)
        assert self.watcher.error is None
        assert self.seen == self._failing.inserted

    def __enter__(self) -> Watched:
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.stop()
