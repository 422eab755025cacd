"""A long way through changes that concern nobody: the server is silent, and must be neither hurried nor left alone."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

import gevent
import pytest
from conftest import wait_until
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, Watcher, cursor
from rigatoni.mongod import ReplicaSet

FOREIGN = 2_000_000
AT_ONCE = 50_000


class Elsewhere:
    """A server on which very much happens, but hardly anything to the orders of the shop."""

    def __init__(self, uri: str, client: MongoClient[Any], store: str) -> None:
        self.uri = uri
        self.store = store
        self.orders = client.shop.orders
        self._client = client

    def change(self) -> None:
        """Make a great many small entries in the oplog."""
        counters = self._client.elsewhere.counters
        counters.insert_many([{"_id": number} for number in range(AT_ONCE)])
        for _ in range(FOREIGN // AT_ONCE):
            counters.update_many({}, {"$inc": {"n": 1}})

    def watcher(self, seen: list[Any]) -> Watcher:
        watcher = Watcher(self.uri, "shop", store=self.store, config=ChangeStreamConfig(max_await_time=0.1))
        watcher.on("insert", collection="orders")(lambda event: seen.append(event.document_key["_id"]))
        return watcher

    def scans(self) -> list[dict[str, Any]]:
        """List what runs on the server for watchers of the shop, and their cursors."""
        operations = self._client.admin.aggregate(
            [
                {"$currentOp": {"idleCursors": True}},
                {"$match": {"cursor.originatingCommand.$db": "shop"}},
            ]
        )
        return list(operations)


def said(caplog: pytest.LogCaptureFixture) -> int:
    return sum("catching up" in record.getMessage() for record in caplog.records)


@pytest.mark.faults
def test_two_million_foreign_changes_are_one_long_get_more_that_can_be_stopped_and_is_not_hurried(
    store_path: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "rigatoni")
    # Shorter than the server needs for its scan on any machine; a start looks for less than that.
    monkeypatch.setattr(cursor, "PATIENCE", 0.1)
    monkeypatch.setattr(cursor, "LOOKING", 0.05)
    seen: list[Any] = []
    with ReplicaSet() as replica_set, MongoClient(replica_set.uri) as client:
        server = Elsewhere(replica_set.uri, client, store_path)
        with server.watcher(seen):
            server.orders.insert_one({"_id": 1})
            wait_until(lambda: seen)
        server.change()
        server.orders.insert_one({"_id": 2})
        assert said(caplog) == 0 and server.scans() == []

        watcher = server.watcher(seen)
        watcher.start()
        wait_until(lambda: watcher.stats()["streams"]["shop"]["catching_up"])
        (scan,) = server.scans()
        assert scan["op"] == "getmore" and scan["active"]
        began = monotonic()
        assert watcher.stop()
        took = monotonic() - began
        assert took < 1.0 and seen == [1]
        wait_until(lambda: not server.scans(), timeout=1.0)
        assert said(caplog) == 1

        most = 0
        with server.watcher(seen) as watcher:
            started = monotonic()
            while len(seen) < 2:
                scans, stats = server.scans(), watcher.stats()
                most = max(most, len(scans))
                assert watcher.error is None and stats["reconnects"] == 0
                assert monotonic() - started < 120
                gevent.sleep(0.02)
            assert said(caplog) == 2
            wait_until(lambda: not watcher.stats()["streams"]["shop"]["catching_up"])
        assert seen == [1, 2] and most == 1
        wait_until(lambda: not server.scans(), timeout=1.0)
    print(f"\n{FOREIGN} foreign changes: stopped amid them in {took:.2f} s, passed in {monotonic() - started:.1f} s")
