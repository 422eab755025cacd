"""Images that were asked for and that the server does not have: named with the mend, and not tried again for ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import wait_until
from watchers import Make, keeping, watchers

from rigatoni import ChangeStreamConfig, ChangeStreamListener, ConfigurationError, MemoryStore, Watcher

AFTER = {"full_document": "required"}
BEFORE = {"full_document_before_change": "required"}
both = pytest.mark.parametrize("images", [AFTER, BEFORE], ids=["after", "before"])


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Iterator[Make]:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def config(**images: str) -> ChangeStreamConfig:
    # Were it tried again, it would be for ever.
    return ChangeStreamConfig(**images, max_await_time=0.1, max_reconnect_attempts=0)


def end_of(watcher: Watcher) -> str:
    with pytest.raises(ConfigurationError) as raised:
        if watcher.state == "created":
            # It may be at its end before the start has returned.
            watcher.start()
        watcher.join(60)
    assert (raised.value.code, raised.value.is_retryable) == (47, False)
    assert watcher.stats()["reconnects"] == 0
    return str(raised.value)


@both
def test_a_required_image_that_is_missing_is_the_end_which_names_both_mends(
    images: dict[str, str], database: Any, make: Make
) -> None:
    store, orders = MemoryStore(), database.orders
    orders.insert_one({"_id": 1, "n": 0})
    watcher = make(store=store, config=config(**images))
    keeping(watcher, lambda event: pytest.fail("it has no image"), "update")
    watcher.start()
    orders.update_one({"_id": 1}, {"$set": {"n": 1}})
    end_of(watcher)

    # Later images do not bring back the one that is missing.
    database.command("collMod", "orders", changeStreamPreAndPostImages={"enabled": True})
    orders.update_one({"_id": 1}, {"$set": {"n": 2}})
    again = make(store=store, config=config(**images))
    keeping(again, lambda event: pytest.fail("it has no image"), "update")
    message = end_of(again)
    # Which event it is.
    assert 'operationType: "update"' in message and f'db: "{database.name}", coll: "orders"' in message
    assert "collMod" in message and "changeStreamPreAndPostImages" in message and "whenAvailable" in message

    # Only going on without it passes, and nothing is lost.
    mended = make(store=store, config=config(**dict.fromkeys(images, "whenAvailable")))
    seen = keeping(mended, lambda event: event.full_document or event.full_document_before_change, "update")
    mended.start()
    wait_until(lambda: len(seen) >= 2 or mended.error)
    assert seen == [None, {"_id": 1, "n": 2 if images is AFTER else 1}]


@both
def test_a_listener_ends_with_the_same_words(images: dict[str, str], database: Any) -> None:
    database.orders.insert_one({"_id": 1})
    with ChangeStreamListener(database.orders, config(**images)) as listener:
        database.orders.update_one({"_id": 1}, {"$set": {"n": 1}})
        with pytest.raises(ConfigurationError, match="collMod") as raised:
            next(listener)
    assert raised.value.code == 47


def test_what_need_not_be_there_is_none(database: Any) -> None:
    asked = {"full_document": "whenAvailable", "full_document_before_change": "whenAvailable"}
    database.orders.insert_one({"_id": 1})
    with ChangeStreamListener(database.orders, config(**asked)) as listener:
        database.orders.update_one({"_id": 1}, {"$set": {"n": 1}})
        event = next(listener)
    assert (event.full_document, event.full_document_before_change, event.truncated) == (None, None, ())
    # A document that is gone cannot be looked up.
    looked_up = ChangeStreamConfig(full_document="updateLookup", resume_token=event.resume_token, max_await_time=0.1)
    database.orders.update_one({"_id": 1}, {"$set": {"n": 2}})
    database.orders.delete_one({"_id": 1})
    with ChangeStreamListener(database.orders, looked_up) as listener:
        event = next(listener)
    assert (event.operation, event.full_document, "fullDocument" in event) == ("update", None, True)
