"""What the benchmarks share: a throw-away server with something to replay, and a watcher that counts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import gevent.event
from bson import Timestamp
from pymongo import MongoClient

from rigatoni import ChangeEvent, Watcher
from rigatoni.mongod import ReplicaSet

Register = Callable[[Watcher, Callable[[ChangeEvent], None]], None]


@contextmanager
def filled(documents: int, collections: Sequence[str]) -> Iterator[tuple[str, Any, Timestamp]]:
    """Give the URI, the database and the time before it was filled, round about over the collections."""
    with ReplicaSet() as replica_set, MongoClient(replica_set.uri) as client:
        database = client["shop"]
        begun: Timestamp = client.admin.command("ping")["operationTime"]
        made = [{"number": number, "item": "x" * 100, "price": 1.5, "paid": True} for number in range(documents)]
        for nth, name in enumerate(collections):
            database[name].insert_many(made[nth :: len(collections)])
        yield replica_set.uri, database, Timestamp(begun.time, begun.inc + 1)


def watched(uri: str, begun: Timestamp, expected: int, register: Register, *, check: bool = False) -> float:
    """Replay through a Watcher with tokens on disk; return events per second, from start() to the last event.

    :param check: keep the ids of the events and see that all are different, which a measured run has no time for.
    """
    done, count, ids = gevent.event.Event(), 0, set[str]()

    def handle(event: ChangeEvent) -> None:
        nonlocal count
        count += 1
        if check:
            ids.add(event.id)
        if count == expected:
            done.set()

    with TemporaryDirectory() as folder:
        watcher = Watcher(uri, "shop", store=Path(folder) / "tokens.db", start_at=begun)
        register(watcher, handle)
        before = perf_counter()
        watcher.start()
        done.wait()
        seconds = perf_counter() - before
        watcher.stop()
    assert count == expected, f"{count} events instead of {expected}"
    assert not check or len(ids) == expected, f"{len(ids)} different events instead of {expected}"
    return expected / seconds


def compared(title: str, ratios: Sequence[float]) -> None:
    """Print a ratio with its spread."""
    print(f"{title}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} pairs)")
