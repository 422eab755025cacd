"""A fake server evaluates filters and stages as a real one does, or refuses them: it never ignores one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from servers import Cursor, Fake, Real, Server, keys, operations
from test_fake_and_real import server as server

from rigatoni import ConfigurationError
from rigatoni.testing import FakeClient

DOCUMENTS: list[dict[str, Any]] = [
    {"_id": 1, "n": 1, "lines": [{"item": "pasta", "n": 1}, {"item": "rice", "n": 2}]},
    {"_id": 2, "n": 2.0, "tags": ["hot", "new"], "on": True},
    {"_id": 3, "n": None, "on": False, "at": {"city": "Rome", "zip": 1}},
    {"_id": 4, "n": "1", "at": {"zip": 1, "city": "Rome"}, "on": 1},
]


@pytest.fixture
def both(mongodb_replica_set: Any, mongodb_database_name: str) -> Iterator[list[Server]]:
    with MongoClient[Any](mongodb_replica_set.uri) as client:
        yield [Real(client, mongodb_database_name), Fake(mongodb_database_name)]
        client.drop_database(mongodb_database_name)


def told(server: Server, stage: dict[str, Any]) -> list[Any]:
    """Insert the documents, and return the events that come through a stage."""
    cursor = Cursor(server, "orders", stage)
    for document in DOCUMENTS:
        server.insert("orders", document)
    return [*cursor.rest()]


@pytest.mark.parametrize(
    "query",
    [
        {"operationType": "insert"},
        {"operationType": {"$in": ["insert", "drop"]}},
        {"ns.coll": "orders", "operationType": {"$nin": ["insert"]}},
        {"$or": [{"fullDocument.n": 1}, {"fullDocument.on": True}]},
        {"$and": [{"fullDocument.n": {"$exists": True}}, {"fullDocument.on": {"$exists": False}}]},
        {"fullDocument.n": 2},
        {"fullDocument.n": None},
        {"fullDocument.missing": None},
        {"fullDocument.n": {"$ne": None}},
        {"fullDocument.n": {"$gt": 1}},
        {"fullDocument.n": {"$gte": 1, "$lt": 2}},
        {"fullDocument.n": {"$lte": "2"}},
        {"fullDocument.on": True},
        {"fullDocument.on": 1},
        {"fullDocument.on": {"$eq": False}},
        {"fullDocument.tags": "hot"},
        {"fullDocument.tags": ["hot", "new"]},
        {"fullDocument.tags": {"$in": ["new", "old"]}},
        {"fullDocument.tags": {"$ne": "hot"}},
        {"fullDocument.lines.item": "rice"},
        {"fullDocument.lines.1.item": "rice"},
        {"fullDocument.lines.0.item": "rice"},
        {"fullDocument.at": {"city": "Rome", "zip": 1}},
        {"fullDocument.at.city": "Rome", "fullDocument.on": {"$exists": True}},
    ],
    ids=str,
)
def test_a_filter_lets_through_what_it_does_on_a_real_server(query: dict[str, Any], both: list[Server]) -> None:
    real, fake = (keys(told(server, {"$match": query})) for server in both)

    assert fake == real


@pytest.mark.parametrize(
    "stage",
    [
        {"$project": {"_id": 1}},
        {"$project": {"fullDocument.n": 1, "operationType": 1}},
        {"$project": {"fullDocument.lines.item": 1}},
        {"$project": {"fullDocument.lines": 0, "fullDocument.at.zip": 0}},
        {"$unset": "fullDocument"},
        {"$unset": ["fullDocument.n", "fullDocument.lines.item"]},
    ],
    ids=str,
)
def test_a_stage_leaves_what_it_does_on_a_real_server(stage: dict[str, Any], both: list[Server]) -> None:
    own = {"_id", "clusterTime", "wallTime"}

    real, fake = (
        [{name: event[name] for name in event.keys() - own} for event in told(server, stage)] for server in both
    )

    assert len(fake) == len(DOCUMENTS)
    assert fake == real


def test_a_stage_that_takes_the_token_away_is_an_error(server: Server) -> None:
    cursor = Cursor(server, "orders", {"$project": {"_id": 0}})
    server.insert("orders", {"_id": 1})

    with pytest.raises(OperationFailure, match="modified by the pipeline") as modified:
        cursor.more()

    assert modified.value.code == 280


IMAGES = ("fullDocument", "fullDocumentBeforeChange")


@pytest.mark.parametrize("has_images", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"fullDocument": "whenAvailable"},
        {"fullDocumentBeforeChange": "whenAvailable"},
        {"fullDocument": "whenAvailable", "fullDocumentBeforeChange": "whenAvailable"},
        {"fullDocument": "default", "fullDocumentBeforeChange": "off"},
    ],
    ids=str,
)
def test_images_come_when_they_are_asked_for_and_there(server: Server, asked: dict[str, str], has_images: bool) -> None:
    (server.keep_images if has_images else server.create)("orders")
    cursor = Cursor(server, "orders", **asked)
    server.insert("orders", {"_id": 1, "n": 1})
    server.update("orders", {"_id": 1}, {"n": 2})
    server.replace("orders", {"_id": 1, "n": 3})
    server.delete("orders", {"_id": 1})

    images = [{name: event[name] for name in IMAGES if name in event} for event in cursor.rest()]

    one, two, three = ({"_id": 1, "n": n} if has_images else None for n in (1, 2, 3))
    asks, asks_before = (asked.get(image) == "whenAvailable" for image in IMAGES)
    before = [{}, *({"fullDocumentBeforeChange": each} if asks_before else {} for each in (one, two, three))]
    after: list[Any] = [
        {"fullDocument": {"_id": 1, "n": 1}},
        {"fullDocument": two} if asks else {},
        {"fullDocument": {"_id": 1, "n": 3}},
        {},
    ]
    assert images == [now | then for now, then in zip(after, before, strict=True)]


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_that_is_required_and_missing_is_an_error(server: Server, image: str) -> None:
    server.create("orders")
    cursor = Cursor(server, "orders", **{image: "required"})
    server.insert("orders", {"_id": 1, "n": 1})
    server.update("orders", {"_id": 1}, {"n": 2})

    with pytest.raises(OperationFailure) as missing:
        [*cursor.rest()]

    assert missing.value.code == 47


@pytest.mark.parametrize("expanded", [True, False])
def test_expanded_events_come_only_when_they_are_asked_for(server: Server, expanded: bool) -> None:
    cursor = Cursor(server, None, **({"showExpandedEvents": True} if expanded else {}))
    server.create("orders")
    server.insert("orders", {"_id": 1})

    assert operations(cursor.rest()) == (["create", "insert"] if expanded else ["insert"])


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([{"$set": {"total": {"$sum": "$fullDocument.lines.n"}}}], r"the stage \$set"),
        ([{"$addFields": {"seen": True}}], r"the stage \$addFields"),
        ([{"$match": {"$expr": {"$gt": ["$fullDocument.n", 1]}}}], r"\$expr in \$match"),
        ([{"$match": {"ns.coll": {"$regex": "^ord"}}}], r"\$regex in \$match"),
        ([{"$match": {"$nor": [{"fullDocument.n": 1}]}}], r"\$nor in \$match"),
        ([{"$match": {"fullDocument.n": {"$not": {"$gt": 1}}}}], r"\$not in \$match"),
        ([{"$project": {"n": "$fullDocument.n"}}], r"\$project with an expression for 'n'"),
        ([{"$project": {"fullDocument": 1, "ns": 0}}], r"\$project that both keeps"),
        ([{"$match": 1, "$project": 2}], "the stage"),
    ],
)
def test_what_it_cannot_evaluate_is_refused_when_the_cursor_is_opened(stages: list[Any], named: str) -> None:
    client = FakeClient()
    command = {"aggregate": 1, "pipeline": [{"$changeStream": {}}, *stages], "cursor": {"batchSize": 0}}

    with pytest.raises(ConfigurationError, match=f"does not know what to do with {named}.*rigatoni.mongod"):
        client.get_database("shop").command(command)


def test_a_compiled_pattern_a_collation_and_other_commands_are_refused_too() -> None:
    database = FakeClient().get_database("shop")
    stream: dict[str, Any] = {"aggregate": 1, "pipeline": [{"$changeStream": {}}], "cursor": {"batchSize": 0}}
    pattern = [{"$changeStream": {}}, {"$match": {"ns.coll": re.compile("^ord")}}]

    for command, named in [
        ({**stream, "pipeline": pattern}, "a Regex"),
        ({**stream, "collation": {"locale": "it"}}, "a collation"),
        ({**stream, "pipeline": [{"$changeStream": {"resumeAfter": {}}}]}, "resumeAfter"),
        ({"insert": "orders", "documents": [{}]}, "not 'insert'"),
    ]:
        with pytest.raises(ConfigurationError, match=named):
            database.command(command)
    with pytest.raises(ConfigurationError, match="no collection shop.orders"):
        database["orders"]
