"""Handlers on collections, databases and the deployment, and the cursors that feed them."""

from __future__ import annotations

import json
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest
from conftest import wait_until
from watchers import Make, collecting, places, watchers

from rigatoni import ChangeStreamConfig


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def operations_of(seen: list[tuple[Any, ...]]) -> list[str]:
    return [place[-1] for place in seen]


def cursors(database: Any, name: str) -> list[dict[str, Any]]:
    """List the server's change stream cursors of a consumer, idle ones and those that are waited for."""
    stages = [{"$currentOp": {"idleCursors": True, "localOps": True}}]
    found = list(database.client.admin.aggregate(stages))
    ours = [each for each in found if f'"{name}"' in json.dumps(each, default=str) and each.get("cursor")]
    return list({each["cursor"]["cursorId"]: each for each in ours}.values())


# -- levels


def test_handlers_of_a_collection_a_glob_the_database_and_the_rest_each_get_theirs(database: Any, make: Make) -> None:
    watcher = make()
    one = places(watcher, "insert", collection="orders")
    some = places(watcher, "insert", collection=["or*", "customer?"])
    every = places(watcher, "insert")
    deleted = places(watcher, "delete", collection="*")
    watcher.start()
    for name in ("orders", "order", "customers", "customer", "other"):
        database[name].insert_one({"_id": 1})
        database[name].delete_one({"_id": 1})
    wait_until(lambda: len(deleted) == len(every) == 5)
    inserted = [place[1] for place in every]
    assert sorted(inserted) == ["customer", "customers", "order", "orders", "other"]
    assert [place[1] for place in one] == ["orders"]
    assert sorted(place[1] for place in some) == ["customers", "order", "orders"]


def test_a_watcher_of_the_deployment_sees_every_database_and_a_handler_its_own(
    database: Any, make: Make, mongodb_database_name: str
) -> None:
    other = database.client[mongodb_database_name + "_other"]
    watcher = make(database=None)
    # Other tests may write into databases of their own.
    every = places(watcher, "insert", collection="orders")
    own = places(watcher, "insert", database=database.name)
    exact = places(watcher, "delete", database=other.name, collection="orders")
    try:
        watcher.start()
        assert list(watcher.stats()["streams"]) == [""]
        for each in (database, other):
            for name in ("orders", "customers"):
                each[name].insert_one({"_id": 1})
                each[name].delete_one({"_id": 1})
        wait_until(lambda: exact and len(every) == 2 and len(own) == 2)
        assert sorted(every) == sorted((each.name, "orders", "insert") for each in (database, other))
        assert sorted(place[:2] for place in own) == [(database.name, "customers"), (database.name, "orders")]
        assert exact == [(other.name, "orders", "delete")]
    finally:
        database.client.drop_database(other.name)


def test_four_hundred_collections_with_a_handler_each_share_one_cursor(database: Any, make: Make) -> None:
    watcher = make(name="parcels")
    seen = {f"c{number}": collecting(watcher, "insert", collection=f"c{number}") for number in range(400)}
    watcher.start()
    wait_until(lambda: len(cursors(database, "parcels")) == 1)
    for number, name in enumerate(seen):
        database[name].insert_one({"_id": number})
    wait_until(lambda: all(seen.values()))
    assert list(seen.values()) == [[number] for number in range(400)]
    wait_until(lambda: len(cursors(database, "parcels")) == 1)
    assert len(watcher.stats()["streams"]) == 1


def test_watch_gives_a_collection_a_stream_of_its_own_and_its_events_come_only_from_it(
    database: Any, make: Make
) -> None:
    watcher = make(name="parcels")
    watcher.watch("orders", full_document="updateLookup", concurrency=3)
    every, own = places(watcher, "insert", "update"), places(watcher, "update", collection="orders")
    documents: list[Any] = []

    @watcher.on("update")
    def look(event: Any) -> None:
        documents.append((event.collection, event.full_document))

    watcher.start()
    assert sorted(watcher.stats()["streams"]) == [database.name, f"{database.name}.orders"]
    # For a moment between two commands one is neither idle nor waited for.
    wait_until(lambda: len(cursors(database, "parcels")) == 2)
    for name in ("orders", "customers"):
        database[name].insert_one({"_id": 1})
        database[name].update_one({"_id": 1}, {"$set": {"a": 1}})
    wait_until(lambda: len(every) == 4 and own and len(documents) == 2)
    assert sorted(every) == sorted(
        (database.name, name, operation) for name in ("orders", "customers") for operation in ("insert", "update")
    )
    assert own == [(database.name, "orders", "update")]
    assert dict(documents) == {"orders": {"_id": 1, "a": 1}, "customers": None}
    received = {scope: stream["received"] for scope, stream in watcher.stats()["streams"].items()}
    assert received[f"{database.name}.orders"] == 2


def test_a_stuck_collection_with_a_stream_of_its_own_holds_no_other(database: Any, make: Make) -> None:
    watcher = make(max_in_flight=5)
    watcher.watch("stuck")
    kept: list[Any] = []
    watcher.on("insert", collection="stuck", ack="manual")(kept.append)
    seen = collecting(watcher, "insert", collection="orders")
    watcher.start()
    database.stuck.insert_many([{"_id": number} for number in range(20)])
    database.orders.insert_many([{"_id": number} for number in range(20)])
    wait_until(lambda: len(seen) == 20 and len(kept) == 5)
    wait_until(lambda: [event.ack() for event in kept] and len(kept) == 20)


def test_a_handler_that_waits_holds_the_stream_by_what_is_in_flight_and_not_by_what_it_has_finished(
    database: Any, make: Make
) -> None:
    watcher, seen = make(max_in_flight=3), []

    def wait_for(condition: Callable[[], bool]) -> None:
        deadline = monotonic() + 20
        while not condition() and monotonic() < deadline:
            gevent.sleep(0.01)

    @watcher.on("insert", collection="orders")
    def order(event: Any) -> None:
        number = event.document_key["_id"]
        if number == 1:
            wait_for(lambda: watcher.stats()["received"] == 5)
        if number == 3:
            # One finished, three to go, one of them not in flight yet.
            wait_for(lambda: "parcel" in seen)
        seen.append(number)

    @watcher.on("insert", collection="parcels")
    def parcel(event: Any) -> None:
        seen.append("parcel")

    watcher.start()
    with database.client.start_session() as session, session.start_transaction():
        database.orders.insert_many([{"_id": number} for number in (1, 2, 3, 4)], session=session)
        database.parcels.insert_one({}, session=session)
    wait_until(lambda: len(seen) == 5)
    assert seen == [1, 2, "parcel", 3, 4]


# -- what events carry


def test_expanded_events_come_when_they_are_asked_for(database: Any, make: Make) -> None:
    watcher = make(config=ChangeStreamConfig(show_expanded_events=True))
    seen = places(watcher, "create", "createIndexes", "dropIndexes", collection="orders")
    watcher.start()
    database.create_collection("orders")
    database.orders.create_index("item")
    database.orders.drop_index("item_1")
    wait_until(lambda: len(seen) == 3)
    assert operations_of(seen) == ["create", "createIndexes", "dropIndexes"]


def test_the_looked_up_document_and_the_pre_image_are_in_the_event(database: Any, make: Make) -> None:
    database.create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
    config = ChangeStreamConfig(full_document="updateLookup", full_document_before_change="whenAvailable")
    watcher = make(config=config)
    seen: list[Any] = []
    watcher.on(collection="orders")(seen.append)
    watcher.start()
    database.orders.insert_one({"_id": 1, "a": 1})
    database.orders.update_one({"_id": 1}, {"$set": {"a": 2}})
    # The server looks the document up when it reads the event, which must be before the document is gone.
    wait_until(lambda: len(seen) == 2)
    database.orders.replace_one({"_id": 1}, {"a": 3})
    database.orders.delete_one({"_id": 1})
    wait_until(lambda: len(seen) == 4)
    images = [(event.operation, event.full_document_before_change) for event in seen]
    assert images == [
        ("insert", None),
        ("update", {"_id": 1, "a": 1}),
        ("replace", {"_id": 1, "a": 2}),
        ("delete", {"_id": 1, "a": 3}),
    ]
    assert seen[1].update_description.updated_fields == {"a": 2}
    assert seen[1].full_document["_id"] == 1 and seen[3].full_document is None


def test_a_users_pipeline_sees_events_behind_the_filter(database: Any, make: Make) -> None:
    pipeline = [{"$match": {"fullDocument.urgent": True}}, {"$unset": "fullDocument.secret"}]
    watcher = make(config=ChangeStreamConfig(pipeline=pipeline))
    seen: list[Any] = []
    watcher.on("insert", collection="orders")(lambda event: seen.append(event.full_document))
    watcher.start()
    database.orders.insert_many([{"_id": 1, "urgent": False}, {"_id": 2, "urgent": True, "secret": 5}])
    wait_until(lambda: seen)
    assert seen == [{"_id": 2, "urgent": True}]


def test_with_fields_only_updates_of_them_are_handled_and_the_others_are_done(database: Any, make: Make) -> None:
    watcher = make()
    seen: list[Any] = []

    @watcher.on("insert", "update", collection="orders", fields=["a.b", "list"])
    def keep(event: Any) -> None:
        description = event.update_description
        seen.append(event.operation if description is None else {**description.updated_fields})

    watcher.start()
    database.orders.insert_one({"_id": 1, "list": [1, 2, 3], "a": {"b": 1, "c": 1}})
    for change in (
        {"$set": {"x": 1}},
        {"$set": {"a.b": 2}},
        {"$set": {"a.c": 2}},
        {"$set": {"a": {"b": 3}}},
        {"$set": {"a.b": {"d": 1}}},
        {"$set": {"a.b.d": 2}},
        {"$unset": {"a.b": 1}},
        {"$push": {"list": 4}},
        {"$set": {"abc": 1}},
    ):
        database.orders.update_one({"_id": 1}, change)
    database.orders.insert_one({"_id": 2})
    wait_until(lambda: seen.count("insert") == 2 and watcher.stats()["in_flight"] == 0)
    expected = [{"a.b": 2}, {"a": {"b": 3}}, {"a.b": {"d": 1}}, {"a.b.d": 2}, {}, {"list.3": 4}]
    assert seen == ["insert", *expected, "insert"]
    assert watcher.stats()["handled"] == 8 and watcher.stats()["received"] == 11
