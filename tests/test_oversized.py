"""Events that the server cannot send, for they are over 16 MB: cut or an end with a reason, and never the last word."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import wait_until
from listening import QUICK
from pymongo import MongoClient
from watchers import Make, keeping, messages, watchers

from rigatoni import ChangeStreamConfig, ChangeStreamListener, MemoryStore, StreamConnectionError, Watcher
from rigatoni.mongod import ReplicaSet

MB = 1024 * 1024
KEY = {"of": "the document that is too large"}
IMAGES = ("fullDocument", "fullDocumentBeforeChange")


@pytest.fixture(scope="module")
def server() -> Iterator[ReplicaSet]:
    # A transaction with an _id of eight megabytes does not fit into the cache that servers of tests have.
    with ReplicaSet(arguments=["--wiredTigerEngineConfigString", "cache_size=1G"]) as replica_set:
        yield replica_set


@pytest.fixture
def orders(server: ReplicaSet, mongodb_database_name: str) -> Iterator[Any]:
    with MongoClient(server.uri) as client:
        database = client[mongodb_database_name]
        yield database.create_collection("orders", changeStreamPreAndPostImages={"enabled": True})
        client.drop_database(database)


@pytest.fixture
def make(server: ReplicaSet, orders: Any) -> Iterator[Make]:
    with watchers(server.uri, orders.database.name) as make:
        yield make


def grow(orders: Any) -> None:
    """Replace ten megabytes by ten others, so that the update alone may be sent and no image beside it."""
    orders.insert_one({"_id": KEY, "text": "a" * 10 * MB})
    orders.update_one({"_id": KEY}, {"$set": {"text": "b" * 10 * MB}})


def touch(orders: Any) -> None:
    """Change little in a document that may be sent once and not twice."""
    orders.insert_one({"_id": KEY, "text": "a" * 9 * MB})
    orders.update_one({"_id": KEY}, {"$set": {"n": 1}})


PARENT = "p" * 1000


def parts(number: int) -> dict[str, Any]:
    return {f"f{part}": number for part in range(20_000)}


def repeat(orders: Any) -> None:
    """Change many fields below one long name, which the event repeats for each of them."""
    orders.insert_one({"_id": KEY, PARENT: {"text": "a" * MB, **parts(0)}})
    orders.update_one({"_id": KEY}, [{"$set": {PARENT: parts(1)}}])


def forget(orders: Any) -> None:
    """Remove many fields below one long name."""
    orders.insert_one({"_id": KEY, PARENT: {"text": "a" * MB, **parts(0)}})
    orders.update_one({"_id": KEY}, [{"$replaceWith": {"_id": KEY, PARENT: {"text": f"${PARENT}.text"}}}])


Write = Callable[[Any], None]
BEFORE = {"full_document_before_change": "whenAvailable"}
AFTER = {"full_document": "required"}
LOOKUP = {"full_document": "updateLookup"}
OVERSIZED: dict[str, tuple[Write, dict[str, str], tuple[str, ...]]] = {
    "an image of before": (grow, BEFORE, IMAGES[1:]),
    "an image of after": (grow, AFTER, IMAGES[:1]),
    "a document that is looked up": (grow, LOOKUP, IMAGES[:1]),
    "two images, each of which may be sent": (touch, BEFORE | AFTER, IMAGES),
    "an update that repeats a long name": (repeat, {}, ("updateDescription",)),
    "removals that repeat a long name": (forget, {}, ("updateDescription",)),
    "such an update with images": (repeat, BEFORE | AFTER, (*IMAGES, "updateDescription")),
}
oversized = pytest.mark.parametrize("kind", OVERSIZED)


def delivered(event: Any) -> tuple[str, Any, tuple[str, ...], tuple[bool, ...]]:
    parts = (event.full_document, event.full_document_before_change, event.update_description)
    return event.operation, event.document_key["_id"], event.truncated, tuple(part is not None for part in parts)


def end_of(watcher: Watcher) -> StreamConnectionError:
    with pytest.raises(StreamConnectionError) as raised:
        watcher.join(60)
    return raised.value


@oversized
def test_an_event_that_is_too_large_comes_cut_and_is_told_of_and_its_neighbours_come_whole(
    kind: str, orders: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    write, images, truncated = OVERSIZED[kind]
    config = ChangeStreamConfig(**images, max_await_time=0.1)
    watcher, again = make(config=config), make(config=config, start_at="earliest")
    seen, ids = keeping(watcher, delivered), keeping(watcher, lambda event: event.id)
    same = keeping(again, lambda event: event.id)
    watcher.start()
    orders.insert_one({"_id": "ahead"})
    write(orders)
    orders.insert_one({"_id": "behind"})
    orders.update_one({"_id": "behind"}, {"$set": {"n": 1}})
    wait_until(lambda: len(seen) >= 5 or watcher.error)
    assert watcher.error is None

    names = (*IMAGES, "updateDescription")
    sent = ("full_document" in images, "full_document_before_change" in images, True)
    left = tuple(is_sent and name not in truncated for name, is_sent in zip(names, sent, strict=True))
    whole = (True, False, False)
    assert seen == [
        ("insert", "ahead", (), whole),
        ("insert", KEY, (), whole),
        ("update", KEY, truncated, left),
        ("insert", "behind", (), whole),
        ("update", "behind", (), sent),
    ]
    (told,) = [line for line in messages(caplog, logging.WARNING) if "over 16 MB" in line]
    assert f"update '{orders.database.name}.orders' _id={KEY!r}" in told and told.endswith(repr(truncated))
    # Opened again, from behind of which it was cut before.
    again.start()
    wait_until(lambda: len(same) >= len(ids))
    assert same == ids


@oversized
def test_with_stop_it_is_the_end_which_names_the_document_and_the_mend_as_often_as_one_likes(
    kind: str, orders: Any, make: Make
) -> None:
    write, images, truncated = OVERSIZED[kind]
    options = {"store": MemoryStore(), "config": ChangeStreamConfig(**images, max_await_time=0.1)}
    watcher = make(**options, on_oversize="stop")
    seen = keeping(watcher, delivered)
    watcher.start()
    write(orders)
    orders.insert_one({"_id": "behind"})
    for _ in range(2):
        error = end_of(watcher)
        assert (error.code, error.is_retryable) == (10334, False)
        assert 'on_oversize="stub"' in str(error)
        assert f"update '{orders.database.name}.orders' _id={KEY!r}" in str(error)
        watcher = make(**options, on_oversize="stop")
        keeping(watcher, seen.append)
        watcher.start()
    end_of(watcher)
    assert not [event for event in seen if event[0] == "update"]

    mended = make(**options)
    rest = keeping(mended, delivered)
    mended.start()
    wait_until(lambda: len(rest) >= 2 and rest[-1][1] == "behind")
    assert [event[:3] for event in rest][-2:] == [("update", KEY, truncated), ("insert", "behind", ())]


def test_a_listener_ends_with_the_document_and_goes_on_with_a_stage_that_leaves_the_images_out(orders: Any) -> None:
    tokens: list[Any] = []
    with ChangeStreamListener(orders, ChangeStreamConfig(**BEFORE, max_await_time=0.1), tokens.append) as listener:
        grow(orders)
        with pytest.raises(StreamConnectionError, match="unsets them.*_id={'of'") as raised:
            for event in listener:
                event.ack()
        assert (raised.value.code, listener.state) == (10334, "closed")
    unset = [{"$unset": list(IMAGES)}]
    config = ChangeStreamConfig(**BEFORE, pipeline=unset, resume_token=listener.resume_token, max_await_time=0.1)
    with ChangeStreamListener(orders, config) as listener:
        event = next(event for event in listener if event.operation == "update")
    assert event.document_key == {"_id": KEY}
    assert event.truncated == ()


def test_nothing_is_added_to_the_pipeline_before_an_event_was_too_large(orders: Any, make: Make) -> None:
    def pipelines() -> list[Any]:
        found = orders.database.client.admin.aggregate(
            [{"$currentOp": {"idleCursors": True}}, {"$match": {"cursor.originatingCommand.pipeline": {"$exists": 1}}}]
        )
        pipes = [each["cursor"]["originatingCommand"]["pipeline"] for each in found]
        return [pipe for pipe in pipes if "$changeStream" in pipe[0]]

    watcher = make(config=ChangeStreamConfig(**BEFORE, max_await_time=0.1))
    seen = keeping(watcher, delivered)
    watcher.start()
    # For a moment between two commands the cursor is neither idle nor waited for.
    wait_until(lambda: [len(pipeline) for pipeline in pipelines()] == [1])
    grow(orders)
    wait_until(lambda: len(seen) >= 2)
    wait_until(lambda: [len(pipeline) > 1 for pipeline in pipelines()] == [True])


@pytest.mark.parametrize("size", [100_000, 1_000_000, 3 * MB, 4_000_000])
def test_a_huge_id_survives(size: int, orders: Any, make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    store, key = MemoryStore(), "x" * size
    watcher = make(store=store)
    seen = keeping(watcher, lambda event: event.document_key["_id"])
    watcher.start()
    orders.insert_one({"_id": key})
    # More than three megabytes pass together with anything that is written later, here or elsewhere.
    wait_until(lambda: seen or watcher.stats()["streams"][orders.database.name]["state"] == "reconnecting")
    orders.insert_one({"_id": "behind"})
    wait_until(lambda: len(seen) >= 2 or watcher.error)
    assert seen == [key, "behind"]
    # Nobody is shown such a token, nor the key.
    assert max(len(record.getMessage()) + len(record.exc_text or "") for record in caplog.records) < 10_000


def test_a_token_of_a_megabyte_is_a_place_to_go_on_from(orders: Any) -> None:
    with ChangeStreamListener(orders, QUICK) as listener:
        orders.insert_many([{"_id": "x" * MB}, {"_id": "behind"}])
        token = next(listener).resume_token
    assert len(token["_data"]) > 2 * MB
    with ChangeStreamListener(orders, ChangeStreamConfig(resume_token=token, max_await_time=0.1)) as listener:
        assert next(listener).document_key == {"_id": "behind"}


def test_an_id_that_fills_an_event_by_itself_is_the_end_until_a_stage_leaves_it_out(
    orders: Any, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    store = MemoryStore()
    watcher = make(store=store)
    seen = keeping(watcher, delivered)
    watcher.start()
    orders.insert_one({"_id": "x" * int(7.9 * MB)})
    orders.insert_one({"_id": "behind"})
    for _ in range(2):
        error = end_of(watcher)
        assert "its _id is too large" in str(error)
        assert not error.is_retryable
        watcher = make(store=store)
        keeping(watcher, seen.append)
        watcher.start()
    end_of(watcher)
    assert seen == []
    assert "xxx" not in caplog.text and len(caplog.text) < 100_000

    # As the error says.
    stage = {"$match": {"$expr": {"$lt": [{"$bsonSize": "$documentKey"}, 3000000]}}}
    assert str(stage).replace("'", '"') in caplog.text
    mended = make(store=store, config=ChangeStreamConfig(pipeline=[stage]))
    passed = keeping(mended, lambda event: event.document_key["_id"])
    mended.start()
    wait_until(lambda: passed or mended.error)
    assert passed == ["behind"]
