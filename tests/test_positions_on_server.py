"""Handlers, ``watch()``, ``database=`` and pipelines change between runs; nothing is lost, nothing is repeated."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64
from conftest import wait_until
from programs import Program
from pymongo import MongoClient
from shop import Note, Shop, on

from rigatoni import ChangeEvent, ChangeStreamConfig, HandlerError, RetryPolicy, SQLiteStore, Watcher


@pytest.fixture
def shop(mongodb_replica_set: Any, database: Any, store_path: str) -> Shop:
    return Shop(mongodb_replica_set.uri, database, store_path)


def test_a_handler_added_later_gets_what_was_written_meanwhile_and_the_first_one_too(shop: Shop) -> None:
    shop.watch(on("orders"))
    meanwhile = shop.write("orders", "customers")
    shop.watch(on("orders", "customers"), meanwhile)
    shop.watch(on("orders", "customers"))


def test_a_handler_removed_costs_the_others_nothing_and_finds_its_stream_when_it_comes_back(shop: Shop) -> None:
    shop.watch(on("orders", "customers"))
    meanwhile = shop.write("orders", "customers")
    shop.watch(on("orders"), [written for written in meanwhile if written[0] == "orders"])
    # The stream of the database has gone on; what it passed while nobody wanted it is past.
    shop.watch(on("orders", "customers"), shop.write("customers", "orders"))


def test_a_stream_of_its_own_takes_over_and_gives_back_without_loss(shop: Shop) -> None:
    def apart(watcher: Watcher, note: Note) -> None:
        watcher.watch("orders")
        on("orders", "customers")(watcher, note)

    together = on("orders", "customers")
    shop.watch(together)
    for declared in (apart, together, apart, apart, together):
        shop.watch(declared, shop.write("orders", "customers"))


def test_a_stream_of_its_own_alone_leaves_the_others_where_they_were(shop: Shop) -> None:
    def only(watcher: Watcher, note: Note) -> None:
        watcher.watch("orders")
        on("orders")(watcher, note)

    together = on("orders", "customers")
    shop.watch(together)
    first = shop.write("orders", "customers")
    shop.watch(only, [written for written in first if written[0] == "orders"])
    second = shop.write("orders", "customers")
    # The row of the database stood still while only the row of one collection moved.
    shop.watch(together, [written for written in first if written[0] == "customers"] + second)
    shop.watch(together)


def test_from_one_database_to_the_deployment_and_back(shop: Shop) -> None:
    home = shop.database.name

    def everywhere(watcher: Watcher, note: Note) -> None:
        for collection in ("orders", "customers"):
            watcher.on("insert", collection=collection, database=home)(note)

    shop.watch(on("orders", "customers"))
    for _ in range(2):
        shop.watch(everywhere, shop.write("orders", "customers"), database=None)
        shop.watch(on("orders", "customers"), shop.write("orders", "customers"))


def test_a_batch_handler_goes_on_where_a_single_one_was_and_back(shop: Shop) -> None:
    def batches(watcher: Watcher, note: Note) -> None:
        @watcher.on_batch("insert", collection="orders", max_size=4, max_wait=0.02)
        def handle(events: list[ChangeEvent]) -> None:
            for event in events:
                note(event)

    for declared in (on("orders"), batches, batches, on("orders")):
        due = [] if not Path(shop.store).exists() else shop.write("orders", times=7)
        shop.watch(declared, due)


def test_another_pipeline_goes_on_where_the_first_was(shop: Shop) -> None:
    everything = ChangeStreamConfig()
    some = ChangeStreamConfig(pipeline=[{"$match": {"fullDocument._id": {"$gte": 0}}}])
    more = ChangeStreamConfig(pipeline=[{"$addFields": {"extra": 1}}], full_document="updateLookup")
    shop.watch(on("orders"), config=everything)
    for config in (some, more, everything, some):
        shop.watch(on("orders"), shop.write("orders"), config=config)


def test_a_token_that_its_own_filter_no_longer_lets_through_is_rescued_by_its_time(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    # What is looked up changes, so that the event of the saved token passes once, and not again.
    config = ChangeStreamConfig(pipeline=[{"$match": {"fullDocument.open": True}}], full_document="updateLookup")
    orders = shop.database.orders
    orders.insert_many([{"_id": 1, "open": True}, {"_id": 2, "open": True}])
    seen: list[Any] = []

    def noting(fails_at: object) -> Watcher:
        watcher = shop.watcher(config=config, retry=RetryPolicy(max_attempts=1), on_error="stop")

        @watcher.on("update", collection="orders")
        def handle(event: ChangeEvent) -> None:
            if event.document_key["_id"] == fails_at:
                raise ValueError("not this one")
            seen.append(event.document_key["_id"])

        return watcher

    watcher = noting(fails_at=2)
    watcher.start()
    orders.update_one({"_id": 1}, {"$set": {"n": 1}})
    orders.update_one({"_id": 2}, {"$set": {"n": 1}})
    with pytest.raises(HandlerError):
        watcher.join(60)
    orders.update_one({"_id": 1}, {"$set": {"open": False}})
    caplog.set_level("INFO", "rigatoni")
    with noting(fails_at=None):
        wait_until(lambda: seen[1:])
        assert "no longer lets its token through" in caplog.text
        orders.update_one({"_id": 2}, {"$set": {"n": 2}})
        wait_until(lambda: seen[2:])
    assert seen == [1, 2, 2]


KEYS = {
    "Int64": Int64(2**62),
    "Int64 that is an int": Int64(7),
    "int": 8,
    "double": 1.5,
    "double that is an int": 9.0,
    "double with a long tail": 0.1 + 0.2,
    "minus zero": -0.0,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "Decimal128": Decimal128("10.500"),
    "dict": {"a": Int64(1), "b": {"c": 2.0}},
    "list in a dict": {"a": [1, Int64(2), Decimal128("3"), {"b": [None]}]},
    "Binary": Binary(b"\x00\xff", 128),
    "bytes": b"plain",
    "None": None,
    "bool": True,
    "long string": "x" * 100_000,
    "no ASCII": "Käse\x00🧀",
}


def test_tokens_of_all_kinds_of_ids_survive_a_restart(shop: Shop) -> None:
    kinds = [*KEYS, "the last one"]
    seen: list[tuple[str, Any]] = []

    def run(due: str) -> None:
        """Handle one and fail at the next, so that what is saved is the token of that one."""
        watcher = shop.watcher(retry=RetryPolicy(max_attempts=1), on_error="stop")

        @watcher.on("insert", collection="orders")
        def handle(event: ChangeEvent) -> None:
            if event.full_document["kind"] != due:
                raise ValueError("not now")
            seen.append((due, event.resume_token))

        with pytest.raises(HandlerError) as caught:
            # Which may be told so itself, for what comes next is there already.
            watcher.start()
            if not due:
                shop.database.orders.insert_many({"_id": KEYS.get(kind, "last"), "kind": kind} for kind in kinds)
            watcher.join(60)
        assert caught.value.event.full_document["kind"] == kinds[len(seen)]

    run("")
    store = SQLiteStore(shop.store)
    store.open()
    for kind in KEYS:
        run(kind)
        assert seen[-1][0] == kind
        assert dict(store.load("default")[shop.database.name].token) == seen[-1][1]
    store.close()
    assert [kind for kind, _ in seen] == list(KEYS)


def test_a_transaction_killed_in_the_middle_goes_on_at_its_next_operation(shop: Shop, tmp_path: Path) -> None:
    text = """
import gevent
from rigatoni import Hooks, Watcher


class Told(Hooks):
    token = None

    def saved(self, stream, token):
        self.token = token


told = Told()
watcher = Watcher(given["uri"], given["database"], store=given["store"], save_interval=0.001, hooks=[told])
before = None


@watcher.on("insert", collection="orders")
def handle(event):
    global before
    number = event.document_key["_id"]
    if number == given["killed_at"]:
        while told.token != before:
            gevent.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)
    say(number=number)
    before = event.resume_token


watcher.start()
say(started=True)
watcher.join()
"""
    given = {"uri": shop.uri, "database": shop.database.name, "store": shop.store}
    shop.database.create_collection("orders")
    with Program(text, tmp_path, patched=True, killed_at=500, **given) as killed:
        killed.wait_said("started")
        with MongoClient(shop.uri) as client, client.start_session() as session, session.start_transaction():
            client[shop.database.name].orders.insert_many([{"_id": number} for number in range(1000)], session=session)
        assert killed.end() == -signal.SIGKILL, killed.complaints
    with Program(text, tmp_path, killed_at=None, **given) as going_on:
        going_on.wait_for(lambda: len(going_on.said("number")) >= 500)
    assert killed.said("number") == list(range(500))
    assert going_on.said("number") == list(range(500, 1000))
