"""Whatever ends a collection, a program handles the same events at whichever level its cursor is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import wait_until
from listening import Commands
from pymongo import MongoClient
from watchers import Make, collecting, level, messages, operations_of, places, watchers

from rigatoni import ChangeStreamConfig, Hooks, StreamInvalidatedError, Watcher

#: What ends the collection "orders", and what becomes of it is no concern of the one that is written next.
ENDS: dict[str, Callable[[Any], object]] = {
    "drop": lambda database: database.orders.drop(),
    "rename": lambda database: database.orders.rename("old"),
    "rename onto it": lambda database: database.other.rename("orders", dropTarget=True),
    "dropDatabase": lambda database: database.client.drop_database(database.name),
}
#: What a handler of "orders" is to see of each: a rename is its source's, which is not "orders" in the third case.
TOLD = {"drop": ["drop"], "rename": ["rename"], "rename onto it": [], "dropDatabase": ["drop"]}


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def on_the_collection(database: Any, make: Make, **options: Any) -> Watcher:
    return make(**options)


def on_the_database(database: Any, make: Make, **options: Any) -> Watcher:
    watcher = make(**options)
    collecting(watcher, "insert", collection="customers")
    return watcher


def on_the_deployment(database: Any, make: Make, **options: Any) -> Watcher:
    watcher = make(database=None, **options)
    collecting(watcher, "insert", collection="customers")
    return watcher


def on_a_watched_collection(database: Any, make: Make, **options: Any) -> Watcher:
    watcher = make(**options)
    watcher.watch("orders")
    return watcher


OPENED = {
    on_the_collection: lambda name: (name, "orders"),
    on_a_watched_collection: lambda name: (name, "orders"),
    on_the_database: lambda name: (name, None),
    on_the_deployment: lambda name: (None, None),
}


#: How many of the ends close a cursor: for a collection all of them, for a database its own alone.
CLOSED = {on_the_collection: 4, on_a_watched_collection: 4, on_the_database: 1, on_the_deployment: 0}


class Openings(Hooks):
    def __init__(self) -> None:
        self.count = 0

    def opened(self, stream: str) -> None:
        self.count += 1


@pytest.fixture
def sent() -> Commands:
    """What watchers send that :func:`client` is given to."""
    return Commands()


@pytest.fixture
def client(mongodb_replica_set: Any, sent: Commands) -> Iterator[MongoClient[Any]]:
    with MongoClient(mongodb_replica_set.uri, event_listeners=[sent]) as client:
        yield client


@pytest.mark.parametrize("operations", [("insert",), ()], ids=["inserts", "all operations"])
@pytest.mark.parametrize("opened", OPENED)
def test_after_every_end_the_next_collection_of_that_name_is_handled_now_and_after_a_restart(
    database: Any,
    make: Make,
    client: Any,
    sent: Commands,
    opened: Any,
    operations: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    openings = Openings()
    watcher = opened(database, make, client=client, config=ChangeStreamConfig(max_await_time=0.05), hooks=[openings])
    seen = places(watcher, *operations, collection="orders")
    due = 0
    for is_running in (True, False):
        openings.count = 0
        if is_running:
            watcher.start()
            assert level(watcher) == OPENED[opened](database.name)
        expected = []
        for name, end in ENDS.items():
            database.other.insert_one({})
            database.orders.insert_one({})
            end(database)
            expected += ["insert", *(TOLD[name] if not operations else [])]
        database.orders.insert_one({})
        expected.append("insert")
        if not is_running:
            watcher.start()
        due += len(expected)
        wait_until(lambda n=due: len(seen) >= n)
        assert operations_of(seen[-len(expected) :]) == expected
        # A cursor that the server closed with an invalidate is opened again once, and not again and again, also when
        # it has nothing more to say.
        asked = len(sent.named("getMore"))
        wait_until(lambda n=asked: len(sent.named("getMore")) > n + 3)
        assert openings.count == 1 + CLOSED[opened]
        assert watcher.state == "running" and watcher.stats()["reconnects"] == 0 and not messages(caplog)
        assert watcher.stop()
        database.other.drop()
    assert len(seen) == due


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("opened", OPENED)
def test_with_stop_only_the_end_of_what_was_declared_is_the_end(
    database: Any, make: Make, opened: Any, end: str
) -> None:
    watcher = opened(database, make, on_invalidate="stop")
    seen = collecting(watcher, "insert", collection="orders")
    database.other.insert_one({})
    watcher.start()
    database.orders.insert_one({"_id": 1})
    ENDS[end](database)
    database.orders.insert_one({"_id": 2})
    is_the_end = opened is on_a_watched_collection or (
        end == "dropDatabase" and opened in (on_the_collection, on_the_database)
    )
    if is_the_end:
        with pytest.raises(StreamInvalidatedError):
            watcher.join(60)
        assert watcher.state == "failed" and seen == [1]
        watcher.start()
    wait_until(lambda: len(seen) >= 2)
    assert watcher.state == "running" and seen == [1, 2]
