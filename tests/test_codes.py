"""What a real server says about damaged tokens and wrong pipelines is understood."""

import random

import pytest
from bson import Int64
from pymongo.errors import OperationFailure

from rigatoni import codes
from rigatoni.errors import ConfigurationError, InvalidResumeTokenError, StreamError, is_token_not_found


@pytest.fixture
def collection(database):
    return database.orders


def answer(collection, stage, *stages):
    """Open a change stream by a plain command and read once; return what the server refuses it with, or None."""
    pipeline = [{"$changeStream": stage}, *stages]
    command = {"aggregate": collection.name, "pipeline": pipeline, "cursor": {"batchSize": 0}}
    try:
        cursor = collection.database.command(command)["cursor"]["id"]
        collection.database.command({"getMore": cursor, "collection": collection.name, "maxTimeMS": 1})
        collection.database.command({"killCursors": collection.name, "cursors": [cursor]})
    except OperationFailure as error:
        return error
    return None


def tokens(collection):
    """Give the resume tokens of an event of each kind of _id."""
    with collection.watch() as stream:
        for value in ("some text", Int64(5), 3.5, {"a": 1, "b": [1, 2]}, None):
            collection.insert_one({"_id": value})
            yield dict(stream.next()["_id"])


def damaged(token, chance):
    """Change, insert or cut some of a token's bytes behind its time, or spoil its other field."""
    data, way = token["_data"], chance.choice(("change", "insert", "cut", "forget", "spoil"))
    place, byte = 2 * chance.randrange(9, len(data) // 2), f"{chance.randrange(256):02X}"
    if way == "spoil":
        return {**token, "_typeBits": chance.choice((1, "text", {}))}
    if way == "forget":
        return {"_data": data}
    cut = {"change": data[:place] + byte + data[place + 2 :], "insert": data[:place] + byte + data[place:]}
    return {**token, "_data": cut.get(way, data[: chance.randrange(len(data))])}


def test_no_code_has_two_meanings():
    sets = (
        codes.RESUMABLE_CODES,
        codes.HISTORY_LOST_CODES,
        codes.FATAL_CODES,
        codes.TOKEN_CORRUPT_CODES,
        codes.OVERSIZE_CODES,
        codes.CONFIGURATION_CODES,
    )

    assert sum(map(len, sets)) == len(frozenset().union(*sets))


def test_a_mend_belongs_to_a_code_of_the_configuration():
    assert codes.MENDS.keys() <= codes.CONFIGURATION_CODES


def test_whatever_is_damaged_in_a_token_the_server_blames_the_token(collection):
    chance, whole = random.Random(7), list(tokens(collection))
    refused = [answer(collection, {"startAfter": damaged(chance.choice(whole), chance)}) for _ in range(300)]
    found = [StreamError.from_pymongo(error, resuming=True) for error in refused if error is not None]

    assert len({error.code for error in found}) > 5
    assert {type(error) for error in found} == {InvalidResumeTokenError}


@pytest.mark.parametrize(
    "stages",
    [
        [{"$foo": 1}],
        [{"$group": {"_id": 1}}],
        [{"$changeStream": {}}],
        [{"$match": 5}],
        [{"$match": {"$foo": 1}}],
        [{"$match": {"a": {"$type": None}}}],
        [{"$match": {"a": {"$regex": "("}}}],
        [{"$match": {"$jsonSchema": {"foo": 1}}}],
        [{"$match": {}, "$project": {"a": 1}}],
        [{"$match": {}}] * 1001,
        [{"$project": 5}],
        [{"$project": {}}],
        [{"$unset": 5}],
        [{"$set": {"a..b": 1}}],
        [{"$set": {"a": {"$foo": 1}}}],
        [5],
    ],
    ids=lambda stages: repr(stages)[:40],
)
def test_a_wrong_pipeline_is_never_taken_for_a_wrong_token(collection, stages):
    (token, *_) = tokens(collection)

    for stage, resuming in (({}, False), ({"startAfter": token}, True)):
        error = answer(collection, stage, *stages)
        assert isinstance(StreamError.from_pymongo(error, resuming=resuming), ConfigurationError), error


def test_a_token_that_the_filter_hides_is_not_found(collection):
    (token, *_) = tokens(collection)

    assert is_token_not_found(answer(collection, {"startAfter": token}, {"$match": {"documentKey._id": 3.5}}))


def test_a_pipeline_that_removes_the_token_is_a_mistake_of_its_author(collection):
    before = collection.database.command("ping")["operationTime"]
    collection.insert_one({})

    error = answer(collection, {"startAtOperationTime": before}, {"$project": {"_id": 0}})
    assert error.code in codes.FATAL_CODES
    assert isinstance(StreamError.from_pymongo(error), ConfigurationError)
