"""Events made for tests: what the server would send, and nothing else."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest
from bson import Binary, ObjectId, tz_util
from bson.codec_options import CodecOptions, UuidRepresentation
from pymongo import MongoClient

from rigatoni import AckableEvent, ChangeEvent, ConfigurationError, Watcher
from rigatoni.registration import OPERATIONS
from rigatoni.testing import make_event


def shape(raw: Any) -> Any:
    """What an event is made of: its fields, and the types of their values."""
    if isinstance(raw, dict):
        return {name: shape(value) for name, value in raw.items()}
    return type(raw)


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_can_be_made_with_nothing_else_said(operation: str) -> None:
    event = make_event(operation)

    assert event.operation == operation
    assert event.collection == (None if operation in ("dropDatabase", "invalidate") else "orders")
    assert event.database == (None if operation == "invalidate" else "shop")


def test_events_have_the_fields_and_types_that_the_server_sends(mongodb_replica_set: Any) -> None:
    with MongoClient(mongodb_replica_set.uri) as client:
        database = client[f"test_{uuid4().hex}"]
        database.create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
        images = {"full_document": "whenAvailable", "full_document_before_change": "whenAvailable"}
        with client.watch([{"$match": {"ns.db": database.name}}], **images) as stream:
            database.orders.insert_one({"_id": ObjectId(), "item": "pasta"})
            database.orders.update_one({}, {"$set": {"item": "rice"}})
            database.orders.replace_one({}, {"item": "oil"})
            database.orders.delete_one({})
            database.orders.rename("old")
            database.old.drop()
            client.drop_database(database.name)
            real = [next(stream) for _ in range(7)]

    pasta, rice, oil = ({"item": item} for item in ("pasta", "rice", "oil"))
    made = [
        make_event("insert", document=pasta),
        make_event("update", document=rice, before=pasta, updated_fields=rice),
        make_event("replace", document=oil, before=rice),
        make_event("delete", before=oil),
        make_event("rename", to="old"),
        make_event("drop", "old"),
        make_event("dropDatabase"),
    ]

    for theirs, ours in zip(real, made, strict=True):
        assert shape(ours.raw) == shape(theirs)
        assert len(ours.id) == len(theirs["_id"]["_data"])


def test_each_event_is_later_than_the_one_before() -> None:
    events = [make_event(operation) for operation in sorted(OPERATIONS) for _ in range(50)]

    ids = [event.id for event in events]
    times = [event.cluster_time for event in events]

    assert ids == sorted(set(ids))
    assert times == sorted(set(times))


def test_an_id_holds_its_cluster_time_and_its_document() -> None:
    key = ObjectId()
    event = make_event("delete", document_key={"_id": key})
    time = event.cluster_time

    assert time is not None
    assert event.id[:18] == f"82{time.time:08X}{time.inc:08X}"
    assert str(key).upper() in event.id


def test_what_is_said_is_found_in_the_event() -> None:
    event = make_event(
        "update",
        "invoices",
        "books",
        {"_id": 7, "total": 3, "lines": [1]},
        before={"total": 2, "lines": [1, 2], "draft": True},
        updated_fields={"total": 3},
        removed_fields=(path for path in ["draft"]),
        truncated_arrays=[{"field": "lines", "newSize": 1}],
    )

    assert (event.database, event.collection, event.document_key) == ("books", "invoices", {"_id": 7})
    assert event.full_document == {"_id": 7, "total": 3, "lines": [1]}
    assert event.full_document_before_change == {"_id": 7, "total": 2, "lines": [1, 2], "draft": True}
    assert event.update_description is not None
    assert event.update_description.updated_fields == {"total": 3}
    assert event.update_description.removed_fields == ["draft"]
    assert event.update_description.changes("lines.1")


def test_a_shard_key_in_the_document_key_stays_there() -> None:
    event = make_event("delete", document_key={"region": "eu", "_id": 1})

    assert event.document_key == {"region": "eu", "_id": 1}


def test_a_rename_says_from_where_to_where() -> None:
    assert make_event("rename", "orders", to="old")["to"] == {"db": "shop", "coll": "old"}
    assert make_event("rename", "orders")["to"] == {"db": "shop", "coll": "orders_renamed"}


def test_an_expanded_operation_carries_its_description() -> None:
    indexes = {"indexes": [{"v": 2, "key": {"item": 1}, "name": "item_1"}]}

    assert make_event("createIndexes", description=indexes)["operationDescription"] == indexes


def test_what_is_passed_in_is_neither_kept_nor_changed() -> None:
    document = {"lines": [1, 2]}
    event = make_event(document=document)
    document["lines"].append(3)

    assert document == {"lines": [1, 2, 3]}
    assert event.full_document is not None
    assert event.full_document["lines"] == [1, 2]


def test_values_come_back_as_the_clients_options_decode_them() -> None:
    noon, number = datetime(2030, 1, 31, 12, tzinfo=tz_util.utc), uuid4()
    options: CodecOptions[Any] = CodecOptions(tz_aware=True, uuid_representation=UuidRepresentation.STANDARD)

    plain = make_event(document={"at": noon, "number": Binary.from_uuid(number)}).full_document
    aware = make_event(document={"at": noon, "number": number}, codec_options=options).full_document

    assert plain is not None and aware is not None
    assert (plain["at"], plain["number"]) == (noon.replace(tzinfo=None), Binary.from_uuid(number))
    assert (aware["at"], aware["number"]) == (noon, number)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ({"operation": "inserted"}, "did you mean 'insert'"),
        ({"operation": "delete", "document": {}}, "no document with 'delete'"),
        ({"operation": "insert", "before": {}}, "no before with 'insert'"),
        ({"operation": "insert", "updated_fields": {}}, "no updated_fields with 'insert'"),
        ({"operation": "replace", "removed_fields": []}, "no removed_fields with 'replace'"),
        ({"operation": "drop", "document_key": {"_id": 1}}, "no document_key with 'drop'"),
        ({"operation": "insert", "to": "old"}, "no to with 'insert'"),
        ({"operation": "rename", "to": ""}, "to='' is no name"),
        ({"operation": "drop", "description": {}}, "no description with 'drop'"),
        ({"operation": "dropDatabase", "collection": "orders"}, "leave collection out"),
        ({"operation": "invalidate", "database": "shop"}, "leave database out"),
        ({"collection": ""}, "collection='' is no name"),
        ({"database": 7}, "database=7 is no name"),
        ({"document": [1]}, "document must be a mapping, not list"),
        ({"document_key": {"region": "eu"}}, "no _id"),
        ({"document": {"_id": 1}, "document_key": {"_id": 2}}, "different _id"),
        ({"operation": "update", "document": {"_id": 1}, "before": {"_id": 2}}, "different _id"),
        ({"operation": "update", "updated_fields": {"_id": 2}}, "cannot change '_id'"),
        ({"operation": "update", "updated_fields": {"a": 1}, "removed_fields": ["a"]}, "sets 'a' or removes it"),
        ({"operation": "update", "removed_fields": "draft"}, "must be a list, not str"),
        ({"operation": "update", "truncated_arrays": ["lines"]}, "newSize"),
        ({"document": {"n": 1 << 64}}, "BSON cannot hold"),
        ({"document": {"f": print}}, "BSON cannot hold"),
    ],
)
def test_what_the_server_would_never_send_is_refused_and_named(arguments: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        make_event(**arguments)

    assert mistake in str(refused.value)


def test_a_handler_is_tried_by_dispatch() -> None:
    watcher, shipped = Watcher(database="shop"), []

    @watcher.on("insert", collection="orders")
    def ship(event: ChangeEvent) -> None:
        assert event.full_document is not None
        shipped.append(event.full_document["item"])

    watcher.dispatch(make_event(document={"item": "pasta"}))
    watcher.dispatch(make_event("delete"))
    watcher.dispatch(make_event("insert", "invoices"))

    assert shipped == ["pasta"]


def test_a_manual_handler_is_seen_to_acknowledge() -> None:
    acknowledged: list[AckableEvent] = []
    event = make_event(ack=acknowledged.append)

    assert acknowledged == []
    event.ack()
    assert acknowledged == [event]


def test_an_acknowledgement_that_nobody_listens_to_does_nothing() -> None:
    event = make_event()
    event.ack()

    assert isinstance(event, AckableEvent)
