"""The drivers' official tests of change streams, run against ``ChangeStreamListener``.

They are files of mongodb/specifications (``source/change-streams/tests/unified``) and not part of this repository: the
environment variable ``RIGATONI_SPEC_TESTS`` names their folder, else it is ``../shared/spec-tests`` beside the
repository; without it these tests are skipped. A test runs when the server meets what it requires: nearly all on a
replica set of one, that of a server without change streams on a standalone server.

The listener deviates from the drivers in three things, on purpose; ``unified.py`` knows of them and of nothing else:

* It starts with ``startAfter`` where they expect ``resumeAfter``, which refuses the token of an invalidate event.
* Every ``aggregate`` asks for ``cursor: {batchSize: 0}``, so that its reply is the position to start from; the batch
  size that they expect there is in each ``getMore``.
* ElectionInProgress (216) on a ``getMore`` is waited out, as one of the attempts to reconnect, where they expect the
  error: an election passes, and with it the error.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bson import Int64
from pymongo import MongoClient
from unified import MISSING, UnifiedTest, Version, check, check_command, read_tests, run, version_of

from rigatoni.mongod import ReplicaSet

NAMED = os.environ.get("RIGATONI_SPEC_TESTS")
FOLDER = Path(NAMED or Path(__file__).parent.parent.parent / "shared" / "spec-tests")
FOUND = read_tests(FOLDER)
#: How many tests of each file a server of version 6.0 can run; the others ask for another version, or for shards.
RUN = {
    "change-streams": 22,
    "change-streams-clusterTime": 1,
    "change-streams-disambiguatedPaths": 0,
    "change-streams-errors": 4,
    "change-streams-nsType": 0,
    "change-streams-pre_and_post_images": 10,
    "change-streams-showExpandedEvents": 8,
}


@pytest.fixture(scope="module")
def replica_set() -> Iterator[ReplicaSet]:
    with ReplicaSet(parameters={"enableTestCommands": True}) as replica_set:
        yield replica_set


@pytest.fixture(scope="module")
def standalone() -> Iterator[ReplicaSet]:
    with ReplicaSet(replicated=False) as standalone:
        yield standalone


@pytest.fixture(scope="module")
def version(replica_set: ReplicaSet) -> Version:
    with MongoClient[dict[str, Any]](replica_set.uri) as client:
        return version_of(client.server_info()["version"])


@pytest.mark.parametrize("unified", FOUND, ids=lambda unified: unified.name)
def test_the_listener_does_what_is_expected_of_a_driver(
    unified: UnifiedTest, version: Version, request: pytest.FixtureRequest
) -> None:
    topology = unified.topology(version)
    if topology is None:
        pytest.skip("requires another server")
    server = request.getfixturevalue({"replicaset": "replica_set", "single": "standalone"}[topology])
    run(unified, server.uri)


@pytest.mark.skipif(not FOUND and not NAMED, reason="the folder of the tests is absent")
def test_every_test_that_a_server_can_run_is_among_them(version: Version) -> None:
    if version[:2] != (6, 0):
        pytest.skip("the tests are counted for MongoDB 6.0")
    found = Counter({file: 0 for file in RUN})
    found.update(unified.file for unified in FOUND if unified.topology(version))

    assert {file: found[file] for file in RUN} == RUN


OPENED = {"aggregate": "orders", "cursor": {"batchSize": 0}, "pipeline": [{"$changeStream": {}}], "$db": "shop"}
RESUMED = {**OPENED, "pipeline": [{"$changeStream": {"startAfter": {"_data": "82"}}}]}


@pytest.mark.parametrize(
    ("expected", "sent"),
    [
        ({"aggregate": "orders", "cursor": {}, "pipeline": [{"$changeStream": {}}]}, OPENED),
        ({"pipeline": [{"$changeStream": {}}], "cursor": {"batchSize": 7}}, OPENED),
        ({"pipeline": [{"$changeStream": {"resumeAfter": {"$$exists": True}}}]}, RESUMED),
        ({"pipeline": [{"$changeStream": {"resumeAfter": {"$$unsetOrMatches": {"$$exists": True}}}}]}, OPENED),
        ({"getMore": {"$$type": ["int", "long"]}}, {"getMore": Int64(5), "$db": "shop"}),
    ],
)
def test_a_command_that_deviates_as_stated_is_as_expected(expected: Any, sent: Any) -> None:
    check_command("aggregate", sent, expected)


@pytest.mark.parametrize(
    ("expected", "sent"),
    [
        ({"cursor": {}}, {**OPENED, "cursor": {}}),
        ({"pipeline": [{"$changeStream": {"resumeAfter": {"$$exists": True}}}]}, OPENED),
        ({"pipeline": [{"$changeStream": {}}]}, RESUMED),
        ({"pipeline": [{"$changeStream": {}}, {"$match": {}}]}, OPENED),
        ({"comment": "nightly"}, OPENED),
    ],
)
def test_a_command_that_deviates_otherwise_is_noticed(expected: Any, sent: Any) -> None:
    with pytest.raises(AssertionError):
        check_command("aggregate", sent, expected)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ({"a": {}}, {"a": {"b": 1}}),
        ({"a": None}, {}),
        ({"a": 1}, {"a": True}),
        ([1], [1, 2]),
        ({"a": {"$$exists": False}}, {"a": None}),
        ({"a": {"$$unsetOrMatches": 1}}, {"a": 2}),
        ({"a": {"$$type": "object"}}, {"a": []}),
        ({"$$exists": True}, MISSING),
    ],
)
def test_a_value_that_is_not_as_expected_is_noticed(expected: Any, actual: Any) -> None:
    with pytest.raises(AssertionError):
        check(expected, actual, "value", is_root=True)
