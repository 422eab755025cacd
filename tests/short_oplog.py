"""A server that has forgotten the beginning of its oplog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from conftest import wait_until
from pymongo import MongoClient

from rigatoni.client import oplog_entry
from rigatoni.mongod import ReplicaSet


@contextmanager
def forgetful() -> Iterator[str]:
    """Give the URI of a set whose oplog holds a megabyte, after more than that was written."""
    with ReplicaSet(oplog_size=1, arguments=["--syncdelay", "1"]) as replica_set:
        with MongoClient[Any](replica_set.uri) as client:
            text = "x" * 1_000_000

            def is_forgotten() -> bool:
                client.shop.filling.insert_many([{"text": text} for _ in range(10)])
                first = oplog_entry(client)
                return first is not None and first.get("o", {}).get("msg") != "initiating set"

            wait_until(is_forgotten)
        yield replica_set.uri
