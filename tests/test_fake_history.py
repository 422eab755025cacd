"""A fake server forgets as a real one does: each of these tests runs against both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from servers import Cursor, Fake, Real, Server
from test_lost_history import Forgetful

from rigatoni.client import oldest
from rigatoni.mongod import ReplicaSet


class RealForgetful(Real):
    def forget(self) -> None:
        Forgetful("", self.client, self.name, "").forget()


class FakeForgetful(Fake):
    def forget(self) -> None:
        self.client.lose_history()


@pytest.fixture(scope="module")
def short_oplog() -> Iterator[Any]:
    with ReplicaSet(oplog_size=1, arguments=["--syncdelay", "1"]) as replica_set:
        with MongoClient[Any](replica_set.uri) as client:
            yield client


@pytest.fixture(params=["real", "fake"])
def server(request: pytest.FixtureRequest, mongodb_database_name: str) -> Iterator[Server]:
    if request.param == "fake":
        yield FakeForgetful(mongodb_database_name)
        return
    client = request.getfixturevalue("short_oplog")
    yield RealForgetful(client, mongodb_database_name)
    client.drop_database(mongodb_database_name)


def fill(server: Server, *ids: int) -> None:
    for each in ids:
        server.insert("orders", {"_id": each})


def test_what_was_forgotten_is_missed_by_whoever_asks_for_events(server: Any) -> None:
    first = Cursor(server, "orders")
    begin = first.end
    fill(server, 1, 2)
    (event, _) = first.rest()
    server.forget()

    for how in ({"startAfter": event["_id"]}, {"startAfter": begin}, {"startAtOperationTime": event["clusterTime"]}):
        cursor = Cursor(server, "orders", **how)
        for ask in (cursor.more, lambda how=how: Cursor(server, "orders", batch=1, **how)):
            with pytest.raises(OperationFailure) as lost:
                ask()
            assert lost.value.code == 286
            assert lost.value.details is not None
            assert lost.value.details["errorLabels"] == ["NonResumableChangeStreamError"]


def test_a_cursor_that_is_open_and_behind_is_overtaken(server: Any) -> None:
    cursor = Cursor(server, "orders")
    fill(server, *range(10))
    assert len(cursor.more(2)) == 2
    server.forget()

    with pytest.raises(OperationFailure) as overtaken:
        while True:
            cursor.more(2)

    assert overtaken.value.code == 136


def test_the_oldest_change_that_is_left_can_be_started_from(server: Any) -> None:
    fill(server, 1)
    server.forget()
    begin = oldest(server.client)
    fill(server, 2)

    cursor = Cursor(server, "orders", {"$match": {"operationType": "insert"}}, startAtOperationTime=begin)

    assert [event["documentKey"]["_id"] for event in cursor.rest()] == [2]
