"""Drops, renames and invalidations: who hears of them, and what goes on afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import wait_until
from watchers import Make, collecting, level, messages, operations_of, places, watchers

from rigatoni import MemoryStore, StreamInvalidatedError


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


# -- going on


def test_a_drop_is_invisible_to_who_only_handles_inserts_of_one_collection(
    database: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = make()
    seen = collecting(watcher, "insert", collection="orders")
    invalid = places(watcher, "invalidate")
    assert watcher.start() == "running"
    for number in range(3):
        database.orders.insert_one({"_id": number})
        database.orders.drop()
    database.orders.insert_one({"_id": 3})
    wait_until(lambda: 3 in seen)
    assert seen == [0, 1, 2, 3] and invalid == []
    assert watcher.state == "running" and messages(caplog) == []


def test_a_cursor_on_one_collection_goes_on_after_drops_and_renames(
    database: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = make()
    seen = collecting(watcher, "insert", collection="orders")
    watcher.start()
    assert level(watcher) == (database.name, "orders")
    database.orders.insert_one({"_id": 0})
    database.orders.drop()
    database.orders.insert_one({"_id": 1})
    database.orders.rename("old")
    database.orders.insert_one({"_id": 2})
    database.other.insert_one({"_id": "never"})
    database.other.rename("orders", dropTarget=True)
    database.orders.insert_one({"_id": 3})
    database.client.drop_database(database.name)
    database.orders.insert_one({"_id": 4})
    wait_until(lambda: 4 in seen)
    assert seen == [0, 1, 2, 3, 4]
    assert watcher.state == "running" and messages(caplog) == []
    assert watcher.stats()["reconnects"] == 0


@pytest.mark.parametrize("operations", [("insert", "drop"), ()], ids=["insert and drop", "all"])
def test_on_one_collection_a_drop_is_handled_where_it_is_asked_for_and_its_invalidate_is_not(
    database: Any, make: Make, operations: Any
) -> None:
    watcher = make()
    seen = places(watcher, *operations, collection="orders")
    watcher.start()
    for _ in range(2):
        database.orders.insert_one({})
        database.orders.drop()
    wait_until(lambda: len(seen) == 4)
    database.orders.insert_one({})
    wait_until(lambda: len(seen) > 4)
    assert operations_of(seen) == ["insert", "drop", "insert", "drop", "insert"]


def test_on_the_database_drops_and_renames_invalidate_nothing(database: Any, make: Make) -> None:
    watcher = make()
    seen = places(watcher)
    watcher.start()
    assert level(watcher) == (database.name, None)
    database.orders.insert_one({})
    database.orders.rename("old")
    database.old.drop()
    database.orders.insert_one({})
    wait_until(lambda: len(seen) == 4)
    assert seen == [
        (database.name, "orders", "insert"),
        (database.name, "orders", "rename"),
        (database.name, "old", "drop"),
        (database.name, "orders", "insert"),
    ]


def test_a_rename_is_handled_by_its_source_and_says_its_target(database: Any, make: Make) -> None:
    watcher, targets = make(), []
    watcher.on("rename", collection="orders")(lambda event: targets.append(event["to"]["coll"]))
    by_target = places(watcher, "rename", "insert", collection="old")
    watcher.start()
    database.orders.insert_one({})
    database.orders.rename("old")
    database.old.insert_one({})
    wait_until(lambda: targets and by_target)
    assert targets == ["old"] and operations_of(by_target) == ["insert"]


def test_a_dropped_database_is_handled_with_its_invalidate_and_the_watcher_goes_on(database: Any, make: Make) -> None:
    watcher = make()
    seen = places(watcher)
    named = places(watcher, collection="*")
    watcher.start()
    database.orders.insert_one({"_id": 1})
    database.client.drop_database(database.name)
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: len(seen) == 5)
    assert operations_of(seen) == ["insert", "drop", "dropDatabase", "invalidate", "insert"]
    wait_until(lambda: len(named) == 3)
    # What has no collection is not for who asked for collections.
    assert operations_of(named) == ["insert", "drop", "insert"]
    assert watcher.state == "running" and watcher.stop()
    database.orders.insert_one({"_id": 3})
    watcher.start()
    wait_until(lambda: len(seen) == 6)
    assert operations_of(seen)[5:] == ["insert"]


def test_a_deployment_goes_on_after_a_dropped_database(database: Any, make: Make) -> None:
    watcher = make(database=None)
    seen = places(watcher, database=database.name)
    watcher.start()
    database.orders.insert_one({})
    database.client.drop_database(database.name)
    database.orders.insert_one({})
    wait_until(lambda: len(seen) == 4)
    assert operations_of(seen) == ["insert", "drop", "dropDatabase", "insert"]


def test_a_watched_collection_that_is_dropped_is_invalidated_and_goes_on(database: Any, make: Make) -> None:
    watcher = make()
    watcher.watch("orders")
    seen, inserted = places(watcher), places(watcher, "insert", collection="customers")
    watcher.start()
    database.orders.insert_one({})
    database.orders.drop()
    database.orders.insert_one({})
    database.customers.insert_one({})
    wait_until(lambda: len(seen) == 5 and inserted)
    assert operations_of([place for place in seen if place[1] != "customers"]) == [
        "insert",
        "drop",
        "invalidate",
        "insert",
    ]


def test_a_barrier_waits_for_what_comes_before_it_and_holds_what_comes_after(database: Any, make: Make) -> None:
    watcher = make(concurrency=5)
    seen = places(watcher, collection="orders")
    watcher.start()
    for _ in range(3):
        database.orders.insert_many([{} for _ in range(30)])
        database.orders.drop()
    wait_until(lambda: len(seen) == 93)
    assert operations_of(seen) == (["insert"] * 30 + ["drop"]) * 3


# -- stopping


def dropping_the_database(database: Any) -> None:
    database.client.drop_database(database.name)


def dropping(database: Any) -> None:
    database.orders.drop()


def renaming(database: Any) -> None:
    database.orders.rename("old")


@pytest.mark.parametrize(
    ("end", "reason"),
    [(dropping, "drop"), (renaming, "rename"), (dropping_the_database, "drop")],
)
def test_with_stop_a_watched_collection_that_ends_is_the_end_and_the_next_start_goes_on(
    database: Any, make: Make, end: Callable[[Any], None], reason: str
) -> None:
    watcher = make(on_invalidate="stop")
    watcher.watch("orders")
    seen = collecting(watcher, "insert", collection="orders")
    watcher.start()
    database.orders.insert_one({"_id": 1})
    end(database)
    database.orders.insert_one({"_id": 2})
    with pytest.raises(StreamInvalidatedError) as caught:
        watcher.join(60)
    assert caught.value.reason == reason and caught.value.category == "invalidated"
    assert watcher.state == "failed" and seen == [1]
    watcher.start()
    wait_until(lambda: len(seen) > 1)
    assert seen == [1, 2] and watcher.state == "running"


def test_with_stop_a_dropped_database_is_the_end_once_all_before_it_is_done(database: Any, make: Make) -> None:
    store = MemoryStore()
    watcher = make(on_invalidate="stop", store=store)
    kept: list[Any] = []
    watcher.on("insert", collection="orders", ack="manual")(kept.append)
    watcher.start()
    database.orders.insert_one({"_id": 1})
    database.client.drop_database(database.name)
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: kept)
    # Its event is not done yet, so that the position must not pass it.
    assert watcher.join(0.3) is False
    kept[0].ack()
    with pytest.raises(StreamInvalidatedError) as caught:
        watcher.join(60)
    assert caught.value.reason == "dropDatabase"
    # With another filter it starts by time, and meets that invalidate once more.
    again = make(on_invalidate="stop", store=store)
    seen = collecting(again, "insert")
    again.start()
    wait_until(lambda: seen)
    assert seen == [2]
    database.client.drop_database(database.name)
    with pytest.raises(StreamInvalidatedError):
        again.join(60)


@pytest.mark.parametrize("end", [dropping, renaming])
def test_with_stop_a_collection_that_ends_is_no_end_for_a_watcher_of_the_database(
    database: Any, make: Make, end: Callable[[Any], None]
) -> None:
    watcher = make(on_invalidate="stop")
    seen = collecting(watcher, "insert", collection="orders")
    watcher.start()
    database.orders.insert_one({"_id": 1})
    end(database)
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: len(seen) == 2)
    assert watcher.state == "running"


def test_what_was_dropped_while_nobody_watched_is_caught_up(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert", collection="orders")
    watcher.start()
    watcher.stop()
    for number in range(3):
        database.orders.insert_one({"_id": number})
        database.orders.drop()
    watcher.start()
    wait_until(lambda: len(seen) == 3)
    assert seen == [0, 1, 2] and watcher.stop()
    database.orders.insert_one({"_id": 3})
    watcher.start()
    wait_until(lambda: len(seen) == 4)
    assert seen == [0, 1, 2, 3]
