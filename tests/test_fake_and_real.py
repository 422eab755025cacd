"""A fake server answers as a real one does: each of these tests runs against both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from bson import Int64
from pymongo import MongoClient
from pymongo.errors import CursorNotFound, OperationFailure
from servers import Cursor, Fake, Real, Server, keys, operations

#: Where the own part of a token begins that stands before all events of its time.
HIGH_WATER_MARK = "2B0229296E04"


@pytest.fixture(params=["real", "fake"])
def server(request: pytest.FixtureRequest, mongodb_database_name: str) -> Iterator[Server]:
    if request.param == "fake":
        yield Fake(mongodb_database_name)
        return
    with MongoClient[Any](request.getfixturevalue("mongodb_replica_set").uri) as client:
        yield Real(client, mongodb_database_name)
        client.drop_database(mongodb_database_name)
        client.drop_database(f"{mongodb_database_name}_elsewhere")


def fill(server: Server, collection: str, *ids: Any) -> None:
    for each in ids:
        server.insert(collection, {"_id": each})


# -- order, batches, positions


def test_changes_come_in_order_with_the_same_fields(server: Server) -> None:
    server.create("orders")
    cursor = Cursor(server, "orders")
    server.insert("orders", {"_id": 1, "item": "pasta"})
    server.update("orders", {"_id": 1}, {"item": "rice"})
    server.replace("orders", {"_id": 1, "item": "oil"})
    server.delete("orders", {"_id": 1})

    events = [*cursor.rest()]

    ordinary = {"_id", "operationType", "clusterTime", "wallTime", "ns", "documentKey"}
    assert operations(events) == ["insert", "update", "replace", "delete"]
    assert [event.keys() - ordinary for event in events] == [
        {"fullDocument"},
        {"updateDescription"},
        {"fullDocument"},
        set(),
    ]
    assert [event["_id"]["_data"] for event in events] == sorted(event["_id"]["_data"] for event in events)


def test_a_new_cursor_begins_after_all_that_was_written_and_before_all_that_comes(server: Server) -> None:
    fill(server, "orders", 1)
    cursor = Cursor(server, "orders")
    fill(server, "orders", 2)

    assert cursor.first == []
    assert cursor.end["_data"].endswith(HIGH_WATER_MARK)
    assert keys(cursor.rest()) == [2]


def test_a_batch_holds_no_more_than_was_asked_for_and_ends_with_its_last_event(server: Server) -> None:
    cursor = Cursor(server, "orders")
    fill(server, "orders", *range(5))

    for expected in ([0, 1], [2, 3]):
        batch = cursor.more(2)
        assert keys(batch) == expected
        assert cursor.end == batch[-1]["_id"]
    # A batch with room ends where the server has looked, and a real one writes into its oplog by itself, too.
    (last,) = cursor.more(2)
    assert last["documentKey"] == {"_id": 4}
    assert cursor.end["_data"] >= last["_id"]["_data"]


def test_what_is_written_elsewhere_moves_the_end_of_an_empty_batch(server: Server) -> None:
    cursor = Cursor(server, "orders")
    before = cursor.end["_data"]
    # Twice, because the first may have the very time at which the cursor begins.
    server.write_elsewhere()
    server.write_elsewhere()

    assert cursor.more() == []
    assert cursor.end["_data"] > before
    assert cursor.end["_data"].endswith(HIGH_WATER_MARK)


def test_when_nothing_happens_a_batch_is_empty_and_the_cursor_stays(server: Server) -> None:
    cursor = Cursor(server, "orders")

    assert cursor.more(patience=0.01) == []
    assert cursor.number


@pytest.mark.parametrize("deployment", [True, False])
def test_replies_say_where_they_come_from_and_what_time_it_is(server: Server, deployment: bool) -> None:
    server.write_elsewhere()
    cursor = Cursor(server, None, deployment=deployment)

    assert cursor.namespace == f"{'admin' if deployment else server.name}.$cmd.aggregate"
    assert cursor.reply["operationTime"] <= cursor.reply["$clusterTime"]["clusterTime"]


# -- going on


def test_a_cursor_goes_on_after_an_event_and_after_the_end_of_a_batch(server: Server) -> None:
    first = Cursor(server, "orders")
    fill(server, "orders", 1, 2, 3)
    events = first.more()
    server.write_elsewhere()
    while first.more():
        pass
    fill(server, "orders", 4)

    after_event = Cursor(server, "orders", startAfter=events[0]["_id"])
    after_end = Cursor(server, "orders", startAfter=first.end)

    assert after_event.end == events[0]["_id"]
    assert keys(after_event.rest()) == [2, 3, 4]
    assert keys(after_end.rest()) == [4]


def test_a_cursor_goes_on_at_a_time_with_what_happened_then(server: Server) -> None:
    first = Cursor(server, "orders")
    fill(server, "orders", 1, 2, 3)
    events = [*first.rest()]

    again = Cursor(server, "orders", startAtOperationTime=events[1]["clusterTime"])

    assert again.end["_data"] == events[1]["_id"]["_data"][:18] + HIGH_WATER_MARK
    assert keys(again.rest()) == [2, 3]


def test_one_event_has_one_token_at_every_level(server: Server) -> None:
    cursors = [Cursor(server, "orders"), Cursor(server, None), Cursor(server, None, deployment=True)]
    fill(server, "orders", 1)

    tokens = [event["_id"] for cursor in cursors for event in cursor.rest()]

    assert len(tokens) == 3
    assert all(token == tokens[0] for token in tokens)


def test_an_event_that_its_filter_hides_is_missed_only_when_another_comes(server: Server) -> None:
    first = Cursor(server, "orders")
    fill(server, "orders", 1)
    (event,) = first.rest()
    cursor = Cursor(server, "orders", {"$match": {"operationType": "delete"}}, startAfter=event["_id"])

    assert cursor.more() == []
    server.delete("orders", {"_id": 1})
    with pytest.raises(OperationFailure, match="resume token was not found") as missed:
        cursor.more()

    assert missed.value.code == 280
    assert missed.value.details is not None
    assert missed.value.details["errorLabels"] == ["NonResumableChangeStreamError"]
    with pytest.raises(CursorNotFound):
        cursor.more()


def test_an_event_of_another_collection_is_missed_too(server: Server) -> None:
    first = Cursor(server, "orders")
    fill(server, "orders", 1)
    (event,) = first.rest()
    fill(server, "invoices", 1)

    with pytest.raises(OperationFailure) as missed:
        Cursor(server, "invoices", startAfter=event["_id"]).more()

    assert missed.value.code == 280


def test_a_first_batch_that_is_asked_for_events_holds_them(server: Server) -> None:
    first = Cursor(server, "orders")
    fill(server, "orders", 1, 2)
    events = [*first.rest()]

    cursor = Cursor(server, "orders", batch=1, startAtOperationTime=events[0]["clusterTime"])

    assert keys(cursor.first) == [1]
    assert keys(cursor.rest()) == [2]


# -- invalidation


def ended(server: Server, how: str) -> None:
    if how == "drop":
        server.drop("orders")
    elif how == "rename":
        server.rename("orders", "old")
    else:
        server.drop_database()


@pytest.mark.parametrize(
    ("how", "collection", "deployment", "wanted", "is_alive"),
    [
        ("drop", "orders", False, ["drop", "invalidate"], False),
        ("drop", None, False, ["drop"], True),
        ("drop", None, True, ["drop"], True),
        ("drop", "others", False, [], True),
        ("rename", "orders", False, ["rename", "invalidate"], False),
        ("rename", "old", False, ["rename", "invalidate"], False),
        ("rename", None, False, ["rename"], True),
        ("rename", "others", False, [], True),
        ("dropDatabase", "orders", False, ["drop", "invalidate"], False),
        ("dropDatabase", None, False, ["drop", "dropDatabase", "invalidate"], False),
        ("dropDatabase", None, True, ["drop", "dropDatabase"], True),
    ],
)
def test_what_ends_a_cursor_depends_on_its_level(
    server: Server, how: str, collection: str | None, deployment: bool, wanted: list[str], is_alive: bool
) -> None:
    fill(server, "orders", 1)
    mine = {"$match": {"$or": [{"ns.db": server.name}, {"operationType": "invalidate"}]}}
    cursor = Cursor(server, collection, mine, deployment=deployment)
    ended(server, how)

    events = [*cursor.rest()]

    assert operations(events) == wanted
    assert bool(cursor.number) is is_alive
    if events and events[-1]["operationType"] == "invalidate":
        ending, invalidate = events[-2:]
        assert invalidate["clusterTime"] == ending["clusterTime"]
        assert ending["_id"]["_data"] < invalidate["_id"]["_data"] == cursor.end["_data"]
        assert "ns" not in invalidate


def test_an_invalidate_that_a_filter_hides_ends_the_cursor_without_a_word(server: Server) -> None:
    fill(server, "orders", 1)
    cursor = Cursor(server, "orders", {"$match": {"operationType": "insert"}})
    server.drop("orders")

    assert cursor.more() == []
    assert cursor.number == 0
    again = Cursor(server, "orders", {"$match": {"operationType": "insert"}}, startAfter=cursor.end)
    fill(server, "orders", 2)
    assert keys(again.rest()) == [2]


def test_a_cursor_goes_on_after_its_invalidate_and_meets_it_again_after_the_drop(server: Server) -> None:
    fill(server, "orders", 1)
    cursor = Cursor(server, "orders")
    server.drop("orders")
    drop, invalidate = cursor.rest()
    fill(server, "orders", 2)

    assert keys(Cursor(server, "orders", startAfter=invalidate["_id"]).rest()) == [2]
    assert operations(Cursor(server, "orders", startAfter=drop["_id"]).rest()) == ["invalidate"]


def test_an_invalidate_of_a_collection_is_not_known_to_the_database(server: Server) -> None:
    fill(server, "orders", 1)
    cursor = Cursor(server, "orders")
    server.drop("orders")
    _, invalidate = cursor.rest()
    fill(server, "orders", 2)

    with pytest.raises(OperationFailure) as missed:
        Cursor(server, None, startAfter=invalidate["_id"]).more()

    assert missed.value.code == 280


def test_killing_cursors_says_which_there_were(server: Server) -> None:
    cursor = Cursor(server, "orders")
    database = server.client.get_database(server.name)

    told = database.command({"killCursors": "orders", "cursors": [Int64(cursor.number), Int64(5)]})

    assert (told["cursorsKilled"], told["cursorsNotFound"]) == ([cursor.number], [5])
    with pytest.raises(CursorNotFound):
        cursor.more()
