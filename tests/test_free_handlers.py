"""What handlers may do with an event: change it, pass it on, look at it in batches, bury it in memory."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from conftest import wait_until
from watchers import Make, collecting, watchers

from rigatoni import MemoryStore, RetryPolicy


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any, store_path: str) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"store": store_path, **options})


def assert_nothing_is_repeated(make: Make, database: Any) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_one({"_id": "new"})
    wait_until(lambda: seen)
    assert watcher.stop() and seen == ["new"]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_handlers_that_change_their_events_change_no_position(database: Any, make: Make, concurrency: int) -> None:
    watcher, seen = make(concurrency=concurrency), []

    @watcher.on("insert")
    def spoil(event: Any) -> None:
        seen.append(event.document_key["_id"])
        event.raw["_id"]["_data"] = "FF"
        event.full_document.clear()
        for field in ("ns", "documentKey", "operationType", "clusterTime"):
            event.raw[field] = None
        if seen[-1] % 2:
            event.raw.clear()

    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(100)])
    wait_until(lambda: len(seen) == 100)
    assert watcher.stop() and sorted(seen) == list(range(100))
    assert_nothing_is_repeated(make, database)


def test_a_position_in_the_middle_of_what_was_read_is_not_changed_by_handlers_either(database: Any, make: Make) -> None:
    watcher, seen = make(), []

    @watcher.on("insert", ack="manual")
    def spoil(event: Any) -> None:
        seen.append(event.document_key["_id"])
        event.raw["_id"]["_data"] = "FF"
        if seen[-1] < 5:
            event.ack()

    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(10)])
    wait_until(lambda: len(seen) == 10)
    assert watcher.stop()
    again = make()
    seen = collecting(again, "insert")
    again.start()
    wait_until(lambda: 9 in seen)
    assert seen == list(range(5, 10))


def test_a_handler_that_spawns_and_returns_has_acknowledged_and_a_stop_does_not_wait_for_what_it_spawned(
    database: Any, make: Make
) -> None:
    watcher, spawned = make(), []

    @watcher.on("insert")
    def spawn(event: Any) -> None:
        spawned.append(gevent.spawn(gevent.sleep, 600))

    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(20)])
    wait_until(lambda: len(spawned) == 20)
    assert watcher.stop()
    assert_nothing_is_repeated(make, database)


def test_a_batch_of_inserts_is_handled_before_the_delete_of_one_of_its_documents(database: Any, make: Make) -> None:
    watcher, seen = make(concurrency=4), []

    @watcher.on_batch("insert", max_size=500, max_wait=30.0)
    def many(events: list[Any]) -> None:
        seen.extend(("insert", event.document_key["_id"]) for event in events)

    @watcher.on("delete")
    def one(event: Any) -> None:
        seen.append(("delete", event.document_key["_id"]))

    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(40)])
    for number in range(40):
        database.orders.delete_one({"_id": number})
    wait_until(lambda: len(seen) == 80)
    for number in range(40):
        assert [operation for operation, key in seen if key == number] == ["insert", "delete"]


def test_a_store_in_memory_keeps_and_lists_the_letter_of_a_handler_that_fails(database: Any, make: Make) -> None:
    watcher = make(store=MemoryStore(), retry=RetryPolicy(max_attempts=1))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        raise ValueError("no such parcel")

    watcher.start()
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: watcher.store.letters("default"))
    (letter,) = watcher.store.letters("default")
    assert letter.event["documentKey"] == {"_id": 1} and letter.error == "ValueError: no such parcel"
    assert watcher.stop() and watcher.store.letters("default") == [letter]
    assert watcher.store.discard("default", letter.id) and watcher.store.letters("default") == []
