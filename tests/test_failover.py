"""What befalls a set of three, and what handlers notice of it: nothing but a silence.

A patched and an unpatched program follow one writer through each fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from conftest import wait_until
from following import Change, Follower, Writer, following, settle
from pymongo import MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from rigatoni.mongod import ReplicaSet

pytestmark = pytest.mark.faults

MEMBERS = range(3)
#: What only a primary has that has lost its secondaries.
ALONE: set[Change] = {(key, 0) for key in range(10**6, 10**6 + 10)}
#: What is logged of one outage.
OUTAGE = ["WARNING reconnecting", "INFO connected"]

Follow = Callable[..., Any]


@pytest.fixture(scope="module")
def three() -> Iterator[ReplicaSet]:
    with ReplicaSet(len(MEMBERS)) as replica_set:
        yield replica_set


@pytest.fixture
def whole(three: ReplicaSet) -> Iterator[ReplicaSet]:
    """The set with every member in its place; what a test takes away is brought back after it."""
    yield three
    bring_back(three)


@pytest.fixture
def follow(whole: ReplicaSet, mongodb_database_name: str, tmp_path: Path) -> Follow:
    return partial(following, whole, mongodb_database_name, tmp_path)


def bring_back(replica_set: ReplicaSet) -> None:
    for member in MEMBERS:
        replica_set.thaw(member)
        with MongoClient[Any](replica_set.uri_of(member), timeoutMS=2000) as client:
            try:
                client.admin.command("ping")
            except PyMongoError:
                replica_set.restart(member)
    with MongoClient(replica_set.uri) as client:
        # Acknowledged by all only when they are there and have caught up.
        health = client.rigatoni.get_collection("health", write_concern=WriteConcern(len(MEMBERS), wtimeout=60_000))
        health.insert_one({})


def outages(followers: list[Follower]) -> int:
    """Check that each change of state was one line, and nothing else a complaint; count the most outages of one."""
    counted = []
    for follower in followers:
        told = follower.told_of_the_stream
        counted.append(len(told) // len(OUTAGE))
        assert told == OUTAGE * counted[-1]
        assert len(follower.complained_of) == counted[-1], follower.complained_of
    return max(counted)


def settled(writer: Writer, followers: list[Follower]) -> dict[str, float]:
    """Write some more behind the fault, and check and tell what became of all."""
    writer.wait_for_more()
    figures = settle(writer, followers)
    print(f"\n{figures}, {len(writer.acknowledged)} acknowledged, outages: {outages(followers)}")
    return figures


def test_a_crash_of_the_primary_costs_the_election_and_a_moment(whole: ReplicaSet, follow: Follow) -> None:
    with follow() as (writer, followers):
        whole.kill(whole.primary())
        writer.wait_for_more(200)

        figures = settled(writer, followers)

    assert figures["late"] < 2
    assert figures["silent"] < figures["stalled"] + 2


def test_a_planned_restart_of_the_primary_costs_less_than_five_seconds(whole: ReplicaSet, follow: Follow) -> None:
    with follow() as (writer, followers):
        primary = whole.primary()
        whole.stop(primary, wait=False)
        writer.wait_for_more(200)
        whole.restart(primary)

        figures = settled(writer, followers)

    assert figures["silent"] < 5


def test_a_step_down_of_the_primary_costs_a_moment(whole: ReplicaSet, follow: Follow) -> None:
    with follow() as (writer, followers):
        whole.step_down()
        writer.wait_for_more(200)

        figures = settled(writer, followers)

    assert figures["silent"] < figures["stalled"] + 2


def test_a_frozen_primary_is_given_up_within_seconds_and_harms_nothing_when_it_thaws(
    whole: ReplicaSet, follow: Follow
) -> None:
    with follow() as (writer, followers):
        frozen = whole.primary()
        whole.freeze(frozen)
        writer.wait_for_more(200)
        for follower in followers:
            follower.wait_for_all(writer)
        whole.thaw(frozen)
        writer.wait_for_more(200)

        figures = settled(writer, followers)

    # The driver's monitor needs up to twice five seconds, and the election comes on top.
    assert figures["silent"] < 20


def others(primary: int) -> list[int]:
    return [member for member in MEMBERS if member != primary]


def write_alone(uri: str, database: str, writer: Writer, followers: list[Follower]) -> None:
    """Write what only the primary has, and wait until the followers' lag tells that the majority is lost."""
    with MongoClient(uri) as client:
        orders = client[database].get_collection("orders", write_concern=WriteConcern(1))
        orders.insert_many([{"_id": key, "n": n} for key, n in ALONE])
    writer.attempted |= ALONE
    for follower in followers:
        follower.wait_for(lambda f=follower: (f.status()["lag"] or 0) > 10)
        assert follower.attempts and not ALONE & follower.changes.keys()


def test_what_no_majority_has_is_handled_only_once_it_has_it(
    whole: ReplicaSet, mongodb_database_name: str, follow: Follow
) -> None:
    with follow() as (writer, followers):
        primary = whole.primary()
        for member in others(primary):
            whole.freeze(member)
        write_alone(whole.uri_of(primary), mongodb_database_name, writer, followers)
        first, second = others(primary)
        # One by one: the first needs the old primary's vote, who gives it to nobody that has less.
        whole.thaw(first)
        writer.wait_for_more()
        whole.thaw(second)
        settled(writer, followers)

        assert all(follower.changes.keys() >= ALONE for follower in followers)


def test_what_is_rolled_back_is_never_handled(whole: ReplicaSet, mongodb_database_name: str, follow: Follow) -> None:
    with follow() as (writer, followers):
        primary = whole.primary()
        # Not frozen, because what a frozen server is sent it has all the same when it thaws.
        for member in others(primary):
            whole.kill(member)
        write_alone(whole.uri_of(primary), mongodb_database_name, writer, followers)
        whole.kill(primary)
        for member in others(primary):
            whole.restart(member)
        writer.wait_for_more()
        whole.restart(primary)
        settled(writer, followers)

        assert not any(ALONE & follower.changes.keys() for follower in followers)


def test_with_two_secondaries_each_cursor_is_asked_where_it_is(whole: ReplicaSet, follow: Follow) -> None:
    collections = [f"items{number}" for number in range(20)]
    given: dict[str, Any] = {"collections": collections, "max_await_time": 0.1}
    with follow("&readPreference=secondary", **given) as (writer, followers):
        writer.wait_for_more(500)
        assert [follower.attempts for follower in followers] == [[], []]
        # One of them has the cursors; the other takes over, whichever it is.
        for secondary in others(whole.primary()):
            whole.kill(secondary)
            writer.wait_for_more(200)
            whole.restart(secondary)
            calm = [len(follower.attempts) for follower in followers]
            writer.wait_for_more(200)
            assert [len(follower.attempts) for follower in followers] == calm
        writer.insert(collections)
        for follower in followers:
            assert len(follower.attempts) >= len(collections)
            follower.wait_for(lambda f=follower: sorted(f.said("noted")) == sorted(collections))

        figures = settle(writer, followers)

    print(f"\n{figures}")
    assert figures["silent"] < figures["stalled"] + 5


def test_a_set_that_is_away_for_a_minute_is_waited_for_and_a_stop_meanwhile_returns_at_once(
    whole: ReplicaSet, follow: Follow
) -> None:
    longest = 2.0
    with follow(max_backoff=longest) as (writer, followers):
        for member in MEMBERS:
            whole.kill(member)
        gone = monotonic()
        wait_until(lambda: monotonic() > gone + 60, 90)
        counted = {follower: len(follower.attempts) for follower in followers}
        for member in MEMBERS:
            whole.restart(member)
        writer.wait_for_more()
        # What is written now would be handled only once the set is back from its next absence.
        writer.finish()
        for follower in followers:
            follower.wait_for_all(writer)
        assert outages(followers) == 1

        for member in MEMBERS:
            whole.kill(member)
        for follower in followers:
            follower.wait_for(lambda f=follower: [each["attempt"] for each in f.attempts].count(2) == 2)
        figures = settle(writer, followers)
        print(f"\n{figures}, attempts in a minute: {list(counted.values())}")

    for follower in followers:
        first = follower.attempts[: counted[follower]]
        assert [each["attempt"] for each in first] == list(range(1, counted[follower] + 1))
        for each in follower.attempts:
            expected = min(0.1 * 2 ** (each["attempt"] - 1), longest)
            assert 0.95 * expected <= each["delay"] <= 1.05 * expected
        assert first[-2]["delay"] > 0.95 * longest
        assert follower.told_of_the_stream == [*OUTAGE, OUTAGE[0]]
    # On a busy machine one of them may be held up, but neither waits for its delay.
    assert figures["best stop"] < 0.2 and figures["stop"] < 0.75 * longest


def test_by_default_a_set_that_is_away_is_given_up_after_half_a_minute_also_by_start(
    whole: ReplicaSet, mongodb_database_name: str, tmp_path: Path, follow: Follow
) -> None:
    with follow(max_reconnect_attempts=5) as (writer, followers):
        for member in MEMBERS:
            whole.kill(member)
        gone = monotonic()
        given = (whole.uri, mongodb_database_name, tmp_path)
        with Follower(*given, patched=True) as patched, Follower(*given, patched=False) as unpatched:
            starting = [patched, unpatched]
            took = []
            for follower in [*followers, *starting]:
                assert follower.wait_said("failed") == "MaxReconnectAttemptsExceededError"
                began = follower.said("begins")[0] if follower in starting else gone
                took.append(round(follower.said("ended")[0] - began, 1))
    print(f"\ngave up after {took}")
    for follower in followers:
        assert [each["attempt"] for each in follower.attempts] == [1, 2, 3, 4, 5]
        assert follower.told_of_the_stream == OUTAGE[:1]
        # One line when the server goes, one with the end.
        assert len(follower.complained_of) == 2
    for follower in starting:
        assert [each["attempt"] for each in follower.attempts] == [1, 2, 3, 4]
        assert len(follower.complained_of) == 2
    assert all(25 < each < 40 for each in took)
