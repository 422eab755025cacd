"""Fixtures for tests on a real replica set, and on a fake one; pytest finds this plugin by itself once rigatoni is
installed.

::

    def test_an_order_is_shipped(mongodb_replica_set, mongodb_database_name):
        watcher = Watcher(mongodb_replica_set.uri, mongodb_database_name, store=MemoryStore())

    def test_an_order_is_shipped_within_milliseconds(fake_mongodb):
        with watcher.rehearsal(fake_mongodb) as rehearsed:

Loading it imports neither gevent nor pymongo, so that a test run may still patch the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

if TYPE_CHECKING:
    from rigatoni import mongod, testing


@pytest.fixture(scope="session")
def mongodb_replica_set() -> Iterator[mongod.ReplicaSet]:
    """Give a started replica set of one member, shared by all tests of the session.

    Where no ``mongod`` can be had the test is skipped; it fails if the environment variable ``CI`` is set, or
    ``RIGATONI_MONGOD``, which asks for one.
    """
    from rigatoni import ConfigurationError, mongod

    try:
        mongod.find_mongod()
    except ConfigurationError as error:
        if os.environ.get("CI") or os.environ.get("RIGATONI_MONGOD"):
            raise
        pytest.skip(str(error))
    with mongod.ReplicaSet() as replica_set:
        yield replica_set


@pytest.fixture
def mongodb_database_name() -> str:
    """Give the name of a database that no other test uses."""
    return f"test_{uuid4().hex}"


@pytest.fixture
def fake_mongodb() -> Iterator[testing.FakeClient]:
    """Give a server in memory, and close it after the test; see :mod:`rigatoni.testing`."""
    from rigatoni import testing

    client = testing.FakeClient()
    yield client
    client.close()
