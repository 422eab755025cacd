"""What several tests need."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from pymongo import MongoClient

# A shell has what it runs in the background ignore SIGINT, and programs inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def database(mongodb_replica_set: Any, mongodb_database_name: str) -> Iterator[Any]:
    """A fresh database on a real replica set."""
    with MongoClient(mongodb_replica_set.uri) as client:
        yield client[mongodb_database_name]
        client.drop_database(mongodb_database_name)


@pytest.fixture
def shop(mongodb_replica_set: Any) -> Iterator[Any]:
    """The database that the manual and the examples name, empty, with the others that they write into."""
    with MongoClient(mongodb_replica_set.uri) as client:
        yield client["shop"]
        for name in ("shop", "accounts", "audit"):
            client.drop_database(name)


@pytest.fixture
def store_path(tmp_path: Path) -> str:
    return str(tmp_path / "tokens.db")


@pytest.fixture(scope="module")
def failing_server() -> Iterator[Any]:
    """A server that can be told to fail, and a client of it."""
    from rigatoni.mongod import ReplicaSet

    with ReplicaSet(parameters={"enableTestCommands": True}) as replica_set, MongoClient(replica_set.uri) as client:
        yield replica_set, client


@pytest.fixture
def failing(failing_server: Any) -> Iterator[Any]:
    """A server that fails for one client, and recovers after the test."""
    from failing import Failing

    with Failing(*failing_server) as failing:
        yield failing


@pytest.fixture(scope="module")
def short_oplog() -> Iterator[str]:
    """The URI of a server that has forgotten the beginning of its oplog."""
    from short_oplog import forgetful

    with forgetful() as uri:
        yield uri


def wait_until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Wait cooperatively for a condition; the time is only the end of patience."""
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, f"waited {timeout} s in vain for {condition}"
        gevent.sleep(0.01)


PYTHON = sys.executable
