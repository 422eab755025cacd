"""Watchers on a fake server: everything of theirs is real, and nothing waits."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from bson import ObjectId, tz_util
from bson.codec_options import CodecOptions
from conftest import wait_until
from rehearsing import NOWHERE, shop
from watchers import collecting, keeping, operations_of, places

from rigatoni import (
    AckableEvent,
    ChangeEvent,
    ConfigurationError,
    MemoryStore,
    RetryPolicy,
    StreamInvalidatedError,
    Watcher,
)
from rigatoni.testing import FakeClient, make_event

# -- what is played


def test_every_change_of_everyday_life_reaches_its_handlers() -> None:
    watcher = shop()
    seen = places(watcher)
    client = FakeClient()
    with watcher.rehearsal(client) as rehearsed:
        key = {"_id": ObjectId()}
        client.insert("orders", {**key, "item": "pasta"})
        client.update("orders", key, {"item": "rice"})
        client.replace("orders", {**key, "item": "oil"})
        client.delete("orders", key)
        client.rename("orders", "old")
        client.drop("old")
        client.insert("invoices")
        client.drop_database()
        client.drain(rehearsed)

    assert operations_of(seen) == (
        ["insert", "update", "replace", "delete", "rename", "drop", "insert", "drop", "dropDatabase", "invalidate"]
    )
    assert seen[7] == ("shop", "invoices", "drop")


def test_what_is_played_is_returned_as_handlers_see_it() -> None:
    options: CodecOptions[Any] = CodecOptions(tz_aware=True)
    client = FakeClient("books", codec_options=options)
    watcher = Watcher(NOWHERE, store=MemoryStore())
    seen = keeping(watcher, lambda event: event)
    noon = datetime(2030, 1, 31, 12, tzinfo=tz_util.utc)

    with watcher.rehearsal(client) as rehearsed:
        played = client.insert("orders", {"at": noon})
        client.drain(rehearsed)

    (event,) = seen
    assert played.raw == event.raw
    assert (event.database, event.full_document["at"]) == ("books", noon)


def test_events_that_were_made_before_happen_when_they_are_played() -> None:
    old = [make_event(document={"_id": number}) for number in range(3)]
    watcher, client = shop(), FakeClient()
    seen = keeping(watcher, lambda event: (event.document_key["_id"], event.id))
    with watcher.rehearsal(client) as rehearsed:
        played = client.play(old[2], old[0], old[0].raw, old[1])
        client.drain(rehearsed)

    assert seen == [(event.document_key["_id"], event.id) for event in played]  # type: ignore[index]
    assert [key for key, _ in seen] == [2, 0, 0, 1]
    assert sorted({each for _, each in seen}) == [each for _, each in seen]


def test_what_is_played_together_comes_in_one_batch() -> None:
    watcher, client, batches = shop(), FakeClient(), list[int]()
    watcher.on_batch("insert", max_wait=60, max_size=3)(lambda events: batches.append(len(events)))
    with watcher.rehearsal(client) as rehearsed:
        client.play(*(make_event() for _ in range(6)))
        client.drain(rehearsed)

    assert batches == [3, 3]


@pytest.mark.parametrize(
    ("event", "mistake"),
    [
        (make_event("invalidate"), "the server makes 'invalidate' itself"),
        ({"operationType": "insert"}, "must be a whole change event"),
        ({"_id": {"_data": "82"}, "operationType": "insert", "ns": {"db": "shop"}}, "must be a whole change event"),
        ({**make_event("rename").raw, "to": None}, "says in 'to' where it goes"),
        (make_event("update", document={"text": "x" * (9 << 20)}, before={"text": "y" * (9 << 20)}), "over 16 MB"),
    ],
)
def test_what_no_server_would_write_is_refused(event: Any, mistake: str) -> None:
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher)
    with watcher.rehearsal(client) as rehearsed:
        with pytest.raises(ConfigurationError, match=mistake):
            client.play(make_event(), event)
        client.drain(rehearsed)

    assert seen == []


# -- the engine


def test_a_failing_handler_is_tried_again_at_once_and_its_event_kept_as_a_dead_letter() -> None:
    slow = RetryPolicy(max_attempts=4, initial_backoff=1000, max_backoff=1000)
    watcher, client = shop(retry=slow), FakeClient()
    attempts: list[str] = []

    def fail(event: ChangeEvent) -> None:
        attempts.append(event.id)
        raise ValueError("too heavy")

    watcher.on("insert")(fail)
    watcher.on("delete", retry=slow)(lambda event: fail(event))
    with watcher.rehearsal(client) as rehearsed:
        events = [client.insert("orders"), client.delete("orders")]
        client.drain(rehearsed)
        letters = rehearsed.store.letters(rehearsed.name)

    assert attempts == [event.id for event in events for _ in range(4)]
    assert [(letter.error, letter.attempts) for letter in letters] == [("ValueError: too heavy", 4)] * 2


def test_an_event_that_is_not_acknowledged_keeps_it_from_being_drained() -> None:
    watcher, client, held = shop(), FakeClient(), list[AckableEvent]()
    watcher.on("insert", ack="manual")(held.append)
    with watcher.rehearsal(client) as rehearsed:
        client.insert("orders")
        wait_until(lambda: held)
        with pytest.raises(TimeoutError, match="'in_flight': 1"):
            client.drain(rehearsed, timeout=0.1)
        held[0].ack()
        client.drain(rehearsed)


def test_what_ends_the_watcher_is_raised_by_drain() -> None:
    watcher, client = shop(on_error="stop", retry=RetryPolicy(max_attempts=1)), FakeClient()

    @watcher.on("insert")
    def fail(event: ChangeEvent) -> None:
        raise ValueError("too heavy")

    rehearsed = watcher.rehearsal(client)
    rehearsed.start()
    client.insert("orders")
    with pytest.raises(Exception, match="failed 1 times") as raised:
        client.drain(rehearsed)
    rehearsed.stop()

    assert rehearsed.error is raised.value


def test_a_watcher_that_does_not_run_cannot_be_drained() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)

    with pytest.raises(ConfigurationError, match="write 'with watcher:' around drain"):
        client.drain(watcher.rehearsal(client))


def test_a_second_run_goes_on_where_the_first_was() -> None:
    watcher, client, store = shop(), FakeClient(), MemoryStore()
    seen = collecting(watcher, "insert")
    for number in range(3):
        with watcher.rehearsal(client, store=store) as rehearsed:
            client.insert("orders", {"_id": 2 * number})
            client.drain(rehearsed)
        client.insert("orders", {"_id": 2 * number + 1})
    with watcher.rehearsal(client, store=store) as rehearsed:
        client.drain(rehearsed)

    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("start_at", ["earliest", datetime(2000, 1, 1, tzinfo=timezone.utc)])
def test_a_watcher_may_begin_in_the_past(start_at: object) -> None:
    watcher, client = shop(start_at=start_at), FakeClient()
    seen = collecting(watcher)
    client.insert("orders", {"_id": 1})
    with watcher.rehearsal(client) as rehearsed:
        client.drain(rehearsed)

    assert seen == [1]


def test_streams_of_their_own_and_shared_ones_are_drained_together() -> None:
    watcher, client = Watcher(NOWHERE, store=MemoryStore()), FakeClient()
    watcher.watch("orders", "shop", full_document="updateLookup")
    seen = keeping(watcher, lambda event: (event.database, event.collection, event.full_document))
    with watcher.rehearsal(client) as rehearsed:
        client.update("orders", {"_id": 1}, {"n": 2}, document={"n": 2})
        client.update("invoices", {"_id": 1}, {"n": 2}, document={"n": 2})
        client.insert("orders", {"_id": 1}, database="bar")
        client.drain(rehearsed)

    assert sorted(seen, key=repr) == [
        ("bar", "orders", {"_id": 1}),
        ("shop", "invoices", None),
        ("shop", "orders", {"_id": 1, "n": 2}),
    ]


def test_an_invalidate_of_what_was_declared_ends_a_watcher_that_asks_for_it() -> None:
    watcher, client = shop(on_invalidate="stop"), FakeClient()
    collecting(watcher, "insert")
    rehearsed = watcher.rehearsal(client)
    rehearsed.start()
    client.drop_database()

    with pytest.raises(StreamInvalidatedError) as ended:
        rehearsed.join(timeout=60)
    assert ended.value.reason == "dropDatabase"
