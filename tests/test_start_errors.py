"""Stored positions that must not be used, and an oplog that no longer has them: nothing is passed over in silence."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
from bson import Timestamp, json_util
from conftest import wait_until
from pymongo import MongoClient
from shop import Shop, on
from watchers import messages

from rigatoni import (
    ChangeEvent,
    HandlerError,
    Hooks,
    InvalidResumeTokenError,
    ResumeTokenPersistenceError,
    RetryPolicy,
    Watcher,
)
from rigatoni.mongod import ReplicaSet
from rigatoni.position import time_of

Row = tuple[Any, ...]


@pytest.fixture
def shop(mongodb_replica_set: Any, database: Any, store_path: str) -> Shop:
    return Shop(mongodb_replica_set.uri, database, store_path)


@pytest.fixture(scope="module")
def obedient() -> Iterator[ReplicaSet]:
    """A replica set of its own that fails when it is told to."""
    with ReplicaSet(parameters={"enableTestCommands": True}) as replica_set:
        yield replica_set


@pytest.fixture
def elsewhere(obedient: ReplicaSet, mongodb_database_name: str, store_path: str) -> Iterator[Shop]:
    """A shop on that other replica set."""
    with MongoClient(obedient.uri) as client:
        yield Shop(obedient.uri, client[mongodb_database_name], store_path)
        client.drop_database(mongodb_database_name)


def rows(path: str) -> list[Row]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("select * from resume_tokens order by name, scope").fetchall()


def change(path: str, **columns: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        assignments = ", ".join(f"{name} = :{name}" for name in columns)
        connection.execute(f"update resume_tokens set {assignments}", columns)


def collecting(watcher: Watcher) -> list[Any]:
    seen: list[Any] = []
    watcher.on("insert", collection="orders")(lambda event: seen.append(event.document_key["_id"]))
    return seen


def in_an_hour() -> str:
    return json_util.dumps(Timestamp(int(time.time()) + 3600, 1))


DAMAGED = "cannot read the resume token.* delete the stored position"


def forged(token: str, place: int, digits: str) -> dict[str, object]:
    """Change digits of a token, which goes on looking like one; and with them the time, where they are a part of it."""
    data = json_util.loads(token)["_data"]
    changed = {"_data": data[:place] + digits + data[place + len(digits) :]}
    return {"token": json_util.dumps(changed), "cluster_time": json_util.dumps(time_of(changed))}


SPOILED: dict[str, tuple[Callable[[str], dict[str, object]], type[Exception], str]] = {
    "half a token": (
        lambda _: {"token": '{"_data": "82'},
        ResumeTokenPersistenceError,
        "corrupt row .* delete this row",
    ),
    "a token that is none": (lambda _: {"token": '{"_data": "82xyz"}'}, ResumeTokenPersistenceError, "corrupt row"),
    "a token of another time": (
        lambda _: {"cluster_time": json_util.dumps(Timestamp(1_600_000_000, 1))},
        ResumeTokenPersistenceError,
        "corrupt row",
    ),
    "no time": (lambda _: {"token": None, "cluster_time": "null"}, ResumeTokenPersistenceError, "corrupt row"),
    "another cluster": (
        lambda _: {"cluster": "elsewhere/0123456789abcdef01234567"},
        InvalidResumeTokenError,
        "another cluster .* another store or name",
    ),
    "the future": (
        lambda _: {"token": None, "cluster_time": in_an_hour()},
        InvalidResumeTokenError,
        "future.* backup",
    ),
    "a token of the future": (
        lambda token: forged(token, 2, f"{int(time.time()) + 3600:08X}"),
        InvalidResumeTokenError,
        "future.* backup",
    ),
    "a version that no server knows": (lambda token: forged(token, 18, "2BFF"), InvalidResumeTokenError, DAMAGED),
    "a token damaged behind its time": (lambda token: forged(token, 22, "FFFF"), InvalidResumeTokenError, DAMAGED),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_position_that_cannot_be_right_stops_the_start_is_left_as_it_is_and_can_be_mended(
    spoiled: str, shop: Shop
) -> None:
    columns, error, message = SPOILED[spoiled]
    shop.watch(on("orders"))
    meanwhile = shop.write("orders")
    ((_, _, token, cluster_time, _, cluster, _),) = rows(shop.store)
    change(shop.store, **columns(token))
    before = rows(shop.store)

    watcher = shop.watcher()
    seen = collecting(watcher)
    with pytest.raises(error, match=message) as caught:
        watcher.start()
    assert watcher.state == "failed"
    assert watcher.error is caught.value
    assert shop.store in str(caught.value)
    assert rows(shop.store) == before

    change(shop.store, token=token, cluster_time=cluster_time, cluster=cluster)
    with watcher:
        wait_until(lambda: len(seen) == len(meanwhile))
    assert [("orders", key) for key in seen] == meanwhile
    shop.watch(on("orders"))


class Namesake(ReplicaSet):
    """A replica set that does not take a name of its own."""

    _name = "rs0"


@contextmanager
def shops_of_one_name(store: str) -> Iterator[list[Shop]]:
    one, other = (Namesake(parameters={"enableTestCommands": True}) for _ in range(2))
    with one, other, MongoClient(one.uri) as first, MongoClient(other.uri) as second:
        yield [Shop(one.uri, first.shop, store), Shop(other.uri, second.shop, store)]


def test_the_store_of_one_cluster_is_refused_by_its_namesake_whatever_the_token(store_path: str) -> None:
    with shops_of_one_name(store_path) as (shop, elsewhere):
        lengths = []
        # The position of a reply without events, and then that of an event.
        for orders in ([], [{"good": True}, {}]):
            watcher = shop.watcher(on_error="stop", retry=RetryPolicy(max_attempts=1))
            watcher.on("insert", collection="orders")(lambda event: event.full_document["good"])
            watcher.start()
            if orders:
                shop.database.orders.insert_many(orders)
                with pytest.raises(HandlerError):
                    watcher.join(60)
            watcher.stop()
            before = rows(store_path)
            lengths.append(len(before[0][2]))
            refused = elsewhere.watcher()
            collecting(refused)
            # Else the server would be silent, or give the events since that time.
            with pytest.raises(InvalidResumeTokenError, match="another cluster"):
                refused.start()
            assert rows(store_path) == before
        assert lengths[0] < 60 < lengths[1]


def test_a_namesake_that_nobody_may_tell_apart_is_warned_of(store_path: str, caplog: pytest.LogCaptureFixture) -> None:
    with shops_of_one_name(store_path) as (shop, elsewhere), ExitStack() as stack:
        for each in (shop, elsewhere):
            # As the server says to a user without the privilege.
            stack.enter_context(failing(each.uri, "alwaysOn", failCommands=["replSetGetConfig"], errorCode=13))
        watcher = shop.watcher(on_error="stop", retry=RetryPolicy(max_attempts=1))
        watcher.on("insert", collection="orders")(lambda event: event.full_document["good"])
        watcher.start()
        shop.database.orders.insert_many([{"good": True}, {}])
        with pytest.raises(HandlerError):
            watcher.join(60)
        caplog.clear()
        other = elsewhere.watcher()
        collecting(other)
        with other:
            told = "this is another cluster, or its filter no longer lets"
            # It hears of it when its oplog has come to the token's time.
            wait_until(lambda: elsewhere.write("orders") and told in "".join(messages(caplog, logging.WARNING)))


def test_the_store_of_one_cluster_is_refused_by_another_and_still_serves_its_own(shop: Shop, elsewhere: Shop) -> None:
    shop.watch(on("orders"))
    meanwhile = shop.write("orders")
    watcher = elsewhere.watcher(database=shop.database.name)
    collecting(watcher)
    with pytest.raises(InvalidResumeTokenError, match="another cluster"):
        watcher.start()
    assert watcher.state == "failed"
    shop.watch(on("orders"), meanwhile)
    # Under a name of its own it is welcome in the same store.
    elsewhere.watch(on("orders"), name="elsewhere")
    shop.watch(on("orders"))


class Gaps(Hooks):
    def __init__(self) -> None:
        self.found: list[tuple[str, Any, Any]] = []

    def gap(self, stream: str, since: object, until: object) -> None:
        self.found.append((stream, since, until))


@contextmanager
def without_history(shop: Shop, command: str, times: int = 1) -> Iterator[None]:
    """Let the server say that its oplog no longer has the position (286, ChangeStreamHistoryLost)."""
    with failing(shop.uri, {"times": times}, failCommands=[command], errorCode=286):
        yield


@contextmanager
def failing(uri: str, mode: object, **data: Any) -> Iterator[None]:
    """Let commands of watchers fail."""
    fail_point: dict[str, Any] = {"configureFailPoint": "failCommand"}
    with MongoClient(uri) as client:
        client.admin.command({**fail_point, "mode": mode, "data": {**data, "appName": "rigatoni default"}})
        try:
            yield
        finally:
            client.admin.command({**fail_point, "mode": "off"})


def position_time(path: str) -> Any:
    ((_, _, _, cluster_time, _, _, _),) = rows(path)
    return json_util.loads(cluster_time)


def test_lost_history_stops_the_start_and_leaves_the_position(elsewhere: Shop) -> None:
    elsewhere.watch(on("orders"))
    meanwhile = elsewhere.write("orders")
    before = rows(elsewhere.store)
    watcher = elsewhere.watcher()
    seen = collecting(watcher)
    with without_history(elsewhere, "aggregate"), pytest.raises(InvalidResumeTokenError) as caught:
        watcher.start()
    assert caught.value.code == 286
    assert watcher.state == "failed"
    assert rows(elsewhere.store) == before
    with watcher:
        wait_until(lambda: len(seen) == len(meanwhile))
    assert [("orders", key) for key in seen] == meanwhile


def test_lost_history_with_now_goes_on_and_says_what_is_missing(
    elsewhere: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere.watch(on("orders"))
    since = position_time(elsewhere.store)
    elsewhere.write("orders")
    gaps = Gaps()
    with without_history(elsewhere, "aggregate"):
        elsewhere.watch(on("orders"), on_history_lost="now", hooks=[gaps])
    ((stream, found_since, until),) = gaps.found
    assert (stream, found_since) == (elsewhere.database.name, since)
    assert until > since
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1 and str(since) in errors[0] and str(until) in errors[0]
    elsewhere.watch(on("orders"), elsewhere.write("orders"), on_history_lost="now", hooks=[gaps])
    assert len(gaps.found) == 1


def test_lost_history_with_earliest_delivers_all_that_the_server_has_and_repeats_nothing(elsewhere: Shop) -> None:
    elsewhere.watch(on("orders"))
    since = position_time(elsewhere.store)
    gaps = Gaps()
    meanwhile = elsewhere.write("orders")
    with without_history(elsewhere, "aggregate"):
        elsewhere.watch(on("orders"), meanwhile, on_history_lost="earliest", hooks=[gaps])
    assert [found[:2] for found in gaps.found] == [(elsewhere.database.name, since)]
    elsewhere.watch(on("orders"), elsewhere.write("orders"))


def test_an_oplog_that_goes_on_forgetting_is_asked_again_with_growing_waits(elsewhere: Shop) -> None:
    elsewhere.watch(on("orders"))
    meanwhile = elsewhere.write("orders")
    began = time.monotonic()
    with without_history(elsewhere, "aggregate", times=4):
        elsewhere.watch(on("orders"), meanwhile, on_history_lost="earliest")
    # 0.1, 0.2 and 0.4 s, each up to a twentieth less.
    assert time.monotonic() - began >= 0.66


@pytest.mark.parametrize("policy", ["stop", "now"])
def test_history_lost_while_it_runs_is_treated_alike(policy: str, elsewhere: Shop) -> None:
    gaps = Gaps()
    watcher = elsewhere.watcher(on_history_lost=policy, hooks=[gaps])
    seen = collecting(watcher)
    watcher.start()
    with without_history(elsewhere, "getMore"):
        wait_until(lambda: watcher.error or gaps.found)
    if policy == "stop":
        with pytest.raises(InvalidResumeTokenError):
            watcher.join(60)
        assert watcher.state == "failed" and not gaps.found
        return
    (written,) = elsewhere.write("orders", times=1)
    wait_until(lambda: seen)
    assert watcher.stop() and seen == [written[1]]


def test_several_streams_start_together_or_not_at_all(elsewhere: Shop) -> None:
    def noting(watcher: Watcher, note: Callable[[ChangeEvent], object]) -> None:
        watcher.watch("orders")
        on("orders", "customers")(watcher, note)

    elsewhere.watch(noting)
    before = rows(elsewhere.store)
    meanwhile = elsewhere.write("orders", "customers")
    watcher = elsewhere.watcher()
    noting(watcher, lambda event: pytest.fail("nothing must be delivered"))
    with without_history(elsewhere, "aggregate"), pytest.raises(InvalidResumeTokenError):
        watcher.start()
    assert rows(elsewhere.store) == before
    elsewhere.watch(noting, meanwhile)
