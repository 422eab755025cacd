"""Values that the decoder refuses by default: they come as far as they can be read, and harm nothing beside them."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import Any

import bson
import pytest
from bson import CodecOptions, DatetimeConversion, DatetimeMS
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from conftest import wait_until
from listening import QUICK
from pymongo import MongoClient
from watchers import keeping, messages, watchers

from rigatoni import ChangeStreamConfig, ChangeStreamListener, RetryPolicy, SQLiteStore, Watcher

#: Stands for bytes that are no UTF-8.
MARK = "NOUTF"
BROKEN = b"caf\xe9!"
READ = "caf�!"
YEAR_40000 = 1_200_000_000_000_000
YEAR_MINUS_40000 = -YEAR_40000


def document(**fields: Any) -> RawBSONDocument:
    """Make a document that no driver makes, with broken text wherever the mark stands."""
    return RawBSONDocument(bson.encode(fields).replace(MARK.encode(), BROKEN))


#: What is written, and what comes.
HOSTILE: dict[str, tuple[RawBSONDocument, dict[str, Any]]] = {
    "text": (document(_id=1, text=MARK), {"_id": 1, "text": READ}),
    "a field name": (document(_id=2, **{MARK: 1}), {"_id": 2, READ: 1}),
    "an _id": (document(_id=MARK), {"_id": READ}),
    "an _id that is a document": (document(_id={MARK: MARK}), {"_id": {READ: READ}}),
    "text in a list": (document(_id=3, list=["whole", {"a": MARK}]), {"_id": 3, "list": ["whole", {"a": READ}]}),
    "a date after year 9999": (document(_id=4, at=DatetimeMS(YEAR_40000)), {"_id": 4, "at": DatetimeMS(YEAR_40000)}),
    "a date before year 1": (
        document(_id=5, at=DatetimeMS(YEAR_MINUS_40000)),
        {"_id": 5, "at": DatetimeMS(YEAR_MINUS_40000)},
    ),
    "the first of all dates": (document(_id=6, at=DatetimeMS(-(2**63))), {"_id": 6, "at": DatetimeMS(-(2**63))}),
    "an _id that is such a date": (document(_id=DatetimeMS(YEAR_40000)), {"_id": DatetimeMS(YEAR_40000)}),
}
NEIGHBOUR = {"text": "Käse 🧀 �", "at": datetime(2024, 2, 29, 12), "big": 2**62, "list": [None, 1.5]}


def everything() -> tuple[list[Any], list[Any]]:
    """Put neighbours before, between and behind; return what is written and what is to come."""
    written: list[Any] = []
    due: list[Any] = []
    for number, (sent, seen) in enumerate(HOSTILE.values()):
        neighbour = {"_id": f"neighbour {number}", **NEIGHBOUR}
        written += [neighbour, sent]
        due += [neighbour, seen]
    last = {"_id": "the last", **NEIGHBOUR}
    return [*written, last], [*due, last]


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


def watch(database: Any, client: Any) -> list[Any]:
    """Write everything at once, and return the documents of one reply."""
    written, due = everything()
    with watchers(client, database.name) as make:
        watcher = make()
        seen = keeping(watcher, lambda event: event.full_document, "insert")
        keys = keeping(watcher, lambda event: event.document_key["_id"], "insert")
        watcher.start()
        database.orders.insert_many(written)
        # The second handler is called after the first.
        wait_until(lambda: len(keys) >= len(due) or watcher.error)
        assert watcher.error is None
        assert watcher.stats()["reconnects"] == 0
        assert keys == [each["_id"] for each in seen]
        # And it goes on.
        database.orders.insert_one({"_id": "behind"})
        wait_until(lambda: keys[-1] == "behind")
    return seen[:-1]


def test_what_cannot_be_decoded_by_default_comes_as_far_as_it_can_and_the_rest_of_its_batch_whole(
    database: Any, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    written, due = everything()
    for sent, _ in HOSTILE.values():
        with pytest.raises(InvalidBSON):
            bson.decode(sent.raw)
    assert watch(database, uri) == due
    told = messages(caplog, logging.WARNING)
    for _, seen in HOSTILE.values():
        assert sum(f"_id={seen['_id']!r}> holds text that is no UTF-8" in line for line in told) == 1
    assert not any("neighbour" in line for line in told)


def test_with_a_client_of_its_own_the_codec_that_was_chosen_stays_for_all_that_can_be_read(
    database: Any, uri: str
) -> None:
    with MongoClient(uri, tz_aware=True, uuidRepresentation="standard", maxPoolSize=None) as client:
        seen = watch(database, client)
    whole = [each for each in seen if "big" in each]
    assert len(whole) == len(HOSTILE) + 1
    assert {each["at"] for each in whole} == {NEIGHBOUR["at"].replace(tzinfo=timezone.utc)}
    assert all(each["text"] == NEIGHBOUR["text"] for each in whole)
    assert [each.get("text") for each in seen if each["_id"] == 1] == [READ]
    assert [each.get("at") for each in seen if each["_id"] == 4] == [DatetimeMS(YEAR_40000)]


def test_a_client_that_reads_everything_by_its_own_choice_gets_it_so_and_no_warning(
    database: Any, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with MongoClient(uri, unicode_decode_error_handler="ignore", datetime_conversion="DATETIME_CLAMP") as client:
        seen = watch(database, client)
    assert [each.get("text") for each in seen if each["_id"] == 1] == ["caf!"]
    assert [each["at"].year for each in seen if each["_id"] in (4, 5)] == [9999, 1]
    assert not any("UTF-8" in line for line in messages(caplog, logging.WARNING))


def test_a_listener_reads_them_too_and_each_token_is_a_place_to_go_on_from(database: Any) -> None:
    written, due = everything()
    orders = database.get_collection("orders", CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS))
    with ChangeStreamListener(orders, QUICK) as listener:
        database.orders.insert_many(written)
        events = [next(listener) for _ in due]
    assert events[-1].full_document["at"] == DatetimeMS(NEIGHBOUR["at"])
    assert [event.document_key["_id"] for event in events if "big" not in event.full_document] == [
        seen["_id"] for _, seen in HOSTILE.values()
    ]
    for event, following in zip(events, events[1:], strict=False):
        with ChangeStreamListener(orders, ChangeStreamConfig(resume_token=event.resume_token)) as again:
            assert next(again).id == following.id


def test_they_are_buried_and_replayed_like_any_other(database: Any, uri: str, store_path: str) -> None:
    written, due = everything()
    watcher = Watcher(uri, database.name, store=store_path, retry=RetryPolicy(max_attempts=1))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        raise ValueError(f"no such parcel: {event.full_document}")

    with watcher:
        database.orders.insert_many(written)
        wait_until(lambda: watcher.stats()["dead_lettered"] >= len(due) or watcher.error)
        assert watcher.error is None
    store = SQLiteStore(store_path)
    store.open()
    letters = list(store.letters("default"))
    store.close()
    assert [str(letter.event["documentKey"]["_id"]) for letter in letters] == [str(each["_id"]) for each in due]
    with pytest.raises(ValueError, match="no such parcel"):
        watcher.dispatch(letters[1].event, letters[1].handler)
