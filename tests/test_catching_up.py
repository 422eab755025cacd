"""A long way through changes that concern nobody: the server is silent, and must be neither hurried nor left alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import Program
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, Watcher, cursor
from rigatoni.mongod import ReplicaSet

FOREIGN = 2_000_000
AT_ONCE = 50_000


PATCHED = """
from rigatoni import ChangeStreamConfig, Watcher, cursor

cursor.PATIENCE, cursor.LOOKING = given["patience"]
watcher = Watcher(given["uri"], "shop", store=given["store"], config=ChangeStreamConfig(max_await_time=0.1))


@watcher.on("insert", collection="orders")
def see(event):
    say(seen=event.document_key["_id"])


watcher.start()
while not watcher.stats()["streams"]["shop"]["catching_up"]:
    time.sleep(0.01)
say(catching_up=True)
while not os.path.exists("stop"):
    time.sleep(0.01)
began = time.monotonic()
say(stopped=watcher.stop(), took=time.monotonic() - began)
# Its end would end what it left on the server.
time.sleep(600)
"""
#: Seconds of silence after which the server is asked whether it searches, and for which a start looks. The first is
#: shorter than the server needs for its scan on any machine; the second much shorter than that, so that no start is
#: silent for so long, however late the server is to give it up.
PATIENCE = 0.3, 0.01


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

    def assert_stops(self, stop: Callable[[], float]) -> float:
        """Stop a watcher amid its scan, which has to end too, and return the seconds that took."""
        (scan,) = self.scans()
        assert scan["op"] == "getmore" and scan["active"]
        took = stop()
        assert took < 1.0
        wait_until(lambda: not self.scans(), timeout=1.0)
        return took

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


def stop(watcher: Watcher) -> float:
    began = monotonic()
    assert watcher.stop()
    return monotonic() - began


def stop_program(program: Program, folder: Path) -> float:
    (folder / "stop").touch()
    assert program.wait_said("stopped") and program.said("seen") == []
    took: float = program.said("took")[0]
    return took


@pytest.mark.faults
def test_two_million_foreign_changes_are_one_long_get_more_that_can_be_stopped_and_is_not_hurried(
    store_path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "rigatoni")
    monkeypatch.setattr(cursor, "PATIENCE", PATIENCE[0])
    monkeypatch.setattr(cursor, "LOOKING", PATIENCE[1])
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
        took = server.assert_stops(lambda: stop(watcher))
        assert said(caplog) == 1 and seen == [1]

        given = {"uri": server.uri, "store": store_path, "patience": PATIENCE}
        with Program(PATCHED, tmp_path, patched=True, **given) as program:
            program.wait_said("catching_up")
            took_patched = server.assert_stops(lambda: stop_program(program, tmp_path))

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
    print(
        f"\n{FOREIGN} foreign changes: stopped amid them in {took:.2f} s, patched in {took_patched:.2f} s, "
        f"passed in {monotonic() - started:.1f} s"
    )
