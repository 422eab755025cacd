"""Events that are not as the server makes them: a pipeline took something out or made it something else."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import wait_until
from watchers import Make, keeping, watchers

from rigatoni import ChangeEvent, ChangeStreamConfig, MemoryStore, RetryPolicy

#: What a program may ask an event for.
ATTRIBUTES = [name for name, value in vars(ChangeEvent).items() if isinstance(value, property)]

WRITES = ["insert", "update", "rename", "insert", "drop"]
PIPELINES: dict[str, list[dict[str, Any]]] = {
    "nothing but the token": [{"$project": {"_id": 1}}],
    "no key": [{"$unset": "documentKey"}],
    "no namespace": [{"$unset": "ns"}],
    "no operation": [{"$unset": "operationType"}],
    "text for documents": [
        {"$set": {"ns": "$ns.coll", "to": "$to.coll", "documentKey": "$documentKey._id", "updateDescription": "text"}}
    ],
    "documents for text": [{"$set": {"ns": {"db": {"a": 1}, "coll": [1]}, "operationType": {"b": 2}, "to": {"db": 1}}}],
    "operations to come": [{"$set": {"operationType": {"$concat": ["new\n", "$operationType"]}}}],
    "an operation that is a number": [{"$set": {"operationType": 5}}],
}


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def write(database: Any) -> None:
    database.orders.insert_one({"_id": 1})
    database.orders.update_one({"_id": 1}, {"$set": {"n": 1}})
    database.orders.rename("bills")
    database.orders.insert_one({"_id": 2})
    database.orders.drop()


@pytest.mark.parametrize("kind", PIPELINES)
def test_whatever_the_pipeline_leaves_of_events_reaches_who_wants_everything(
    kind: str, database: Any, make: Make
) -> None:
    config = ChangeStreamConfig(pipeline=PIPELINES[kind], max_await_time=0.1)
    store = MemoryStore()
    watcher = make(config=config, store=store, retry=RetryPolicy(max_attempts=1))
    seen = keeping(watcher, lambda event: [getattr(event, name) for name in ATTRIBUTES] + [repr(event), dict(event)])
    failed: list[ChangeEvent] = []

    @watcher.on()
    def fail(event: ChangeEvent) -> None:
        failed.append(event)
        raise ValueError("no such parcel")

    watcher.start()
    write(database)
    wait_until(lambda: len(failed) >= len(WRITES) or watcher.error)
    wait_until(lambda: watcher.stats()["in_flight"] == 0)
    assert watcher.error is None
    assert len(seen) == len(failed) == len(WRITES)
    letters = list(store.letters("default"))
    assert [letter.event["_id"] for letter in letters] == [event["_id"] for event in failed]
    # Replaying them is what letters are for.
    with pytest.raises(ValueError, match="no such parcel"):
        watcher.dispatch(letters[0].event, letters[0].handler)


@pytest.mark.parametrize("kind", PIPELINES)
def test_a_stream_that_takes_over_from_two_positions_goes_on_with_such_events(
    kind: str, database: Any, make: Make
) -> None:
    config, store = ChangeStreamConfig(pipeline=PIPELINES[kind], max_await_time=0.1), MemoryStore()
    apart, after = make(config=config, store=store), make(config=config, store=store)
    for collection in ("orders", "bills"):
        keeping(apart, lambda event: event.id, "insert", collection=collection)
    apart.watch("orders")
    seen = keeping(after, lambda event: event.id)
    apart.start()
    assert apart.stop()
    write(database)
    after.start()
    wait_until(lambda: len(seen) >= len(WRITES) or after.error)
    assert after.error is None
    assert len(seen) == len(set(seen)) == len(WRITES)


def test_an_operation_that_is_not_known_yet_is_for_handlers_of_everything_and_done_where_there_are_none(
    database: Any, make: Make
) -> None:
    pipeline = [{"$set": {"operationType": {"$cond": [{"$eq": ["$documentKey._id", 1]}, "mint", "$operationType"]}}}]
    config = ChangeStreamConfig(pipeline=pipeline, max_await_time=0.1)
    watcher, picky = make(config=config), make(config=config)
    every = keeping(watcher, lambda event: (event.operation, event.document_key["_id"]))
    inserts = keeping(picky, lambda event: event.document_key["_id"], "insert")
    watcher.start()
    picky.start()
    database.orders.insert_many([{"_id": 0}, {"_id": 1}, {"_id": 2}])
    wait_until(lambda: len(every) >= 3 and len(inserts) >= 2)
    assert every == [("insert", 0), ("mint", 1), ("insert", 2)]
    assert inserts == [0, 2]
    wait_until(lambda: picky.stats()["in_flight"] == 0)
    assert picky.stats()["received"] == 3


def test_fields_whose_names_are_traps_come_as_they_are(database: Any, make: Make) -> None:
    # The server takes none of them for a path or an operator.
    names = ["a.b", "$set", "$where", "", "__class__", "raw", "ack", "a.0", "0", "\x1b", "_id.x", "x" * 10_000]
    document = {"_id": {"a": 1, "b.c": 2}, **{name: number for number, name in enumerate(names)}, "a": {"b": -1}}
    watcher = make()
    seen = keeping(watcher, lambda event: event.full_document, "insert", collection="orders")
    changed = keeping(watcher, lambda event: event.update_description.updated_fields, "update", fields=["a.b"])
    watcher.start()
    # An update by pipeline, for operators refuse such names.
    database.orders.insert_one(document)
    dotted = {"$setField": {"field": "a.b", "input": "$$ROOT", "value": 5}}
    database.orders.update_one({}, [{"$replaceWith": dotted}])
    wait_until(lambda: seen and changed)
    assert seen == [document]
    assert list(seen[0]) == list(document)
    assert changed == [{"a.b": 5}]
