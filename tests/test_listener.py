"""ChangeStreamListener: iteration, tokens, states and ends, on a real server."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gevent
import pytest
from bson import CodecOptions, Decimal128, Int64
from bson.son import SON
from conftest import wait_until
from programs import run_program
from pymongo import MongoClient
from pymongo.monitoring import CommandListener

from rigatoni import (
    ChangeStreamConfig,
    ChangeStreamListener,
    ConfigurationError,
    InvalidResumeTokenError,
    ResumeTokenPersistenceError,
    StreamError,
    StreamInvalidatedError,
)
from rigatoni.mongod import ReplicaSet

Token = Mapping[str, Any]

#: What a test waits for in vain costs this much.
QUICK = ChangeStreamConfig(max_await_time=0.1)
#: Nothing ends such a wait by itself as long as a test has patience.
LONG = ChangeStreamConfig(max_await_time=600.0)


def take(listener: ChangeStreamListener, count: int) -> list[Any]:
    return [next(listener) for _ in range(count)]


def place(token: Token | None) -> str:
    """Give what sorts as the events do."""
    assert token is not None
    return str(token["_data"])


def keys(events: list[Any]) -> list[Any]:
    return [event.document_key["_id"] for event in events]


def operations(events: list[Any]) -> list[str]:
    return [event.operation for event in events]


def insert(collection: Any, *ids: int) -> None:
    collection.insert_many([{"_id": each} for each in ids])


def until_the_end(listener: ChangeStreamListener) -> tuple[list[Any], StreamError]:
    """Iterate until an error ends it, acknowledging everything."""
    events = []
    with pytest.raises(StreamError) as raised:
        for event in listener:
            events.append(event)
            event.ack()
    assert listener.state == "closed"
    return events, raised.value


class Commands(CommandListener):
    """Remember what a client sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Mapping[str, Any]]] = []

    def started(self, event: Any) -> None:
        self.sent.append((event.command_name, dict(event.command)))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        pass

    def named(self, name: str) -> list[Mapping[str, Any]]:
        return [command for sent, command in self.sent if sent == name]


@pytest.fixture
def commands(mongodb_replica_set: Any) -> Iterator[tuple[Any, Commands]]:
    """A client, and what it sends."""
    sent = Commands()
    with MongoClient(mongodb_replica_set.uri, event_listeners=[sent]) as client:
        yield client, sent


@pytest.mark.parametrize("level", ["collection", "database", "client"])
def test_the_events_of_every_level_are_iterated(database: Any, level: str) -> None:
    source = {"collection": database.orders, "database": database, "client": database.client}[level]
    only_ours = [{"$match": {"ns.db": database.name}}]

    with ChangeStreamListener(source, ChangeStreamConfig(max_await_time=0.1, pipeline=only_ours)) as listener:
        insert(database.orders, 1, 2)
        database.orders.delete_one({"_id": 1})
        events = take(listener, 3)

    assert operations(events) == ["insert", "insert", "delete"]
    assert keys(events) == [1, 2, 1]
    assert all((event.database, event.collection) == (database.name, "orders") for event in events)


def test_a_write_after_with_has_begun_is_seen_and_one_before_is_not(database: Any) -> None:
    insert(database.orders, 1)
    with ChangeStreamListener(database.orders, QUICK) as listener:
        insert(database.orders, 2)

        assert keys(take(listener, 1)) == [2]


def test_without_with_the_first_step_opens_the_cursor(database: Any) -> None:
    listener = ChangeStreamListener(database.orders, QUICK)
    assert listener.state == "reconnecting" and listener.resume_token is None

    assert listener.try_next() is None
    assert listener.state == "active" and listener.resume_token is not None

    insert(database.orders, 1)
    assert keys(take(listener, 1)) == [1]
    listener.close()
    assert listener.state == "closed"


def test_try_next_asks_the_server_at_most_once(commands: Any, mongodb_database_name: str) -> None:
    client, sent = commands
    orders = client[mongodb_database_name].orders
    with ChangeStreamListener(orders, QUICK) as listener:
        for _ in range(3):
            assert listener.try_next() is None
        assert len(sent.named("getMore")) == 3

        insert(orders, *range(5))
        wait_until(lambda: (event := listener.try_next()) is not None and event.document_key["_id"] == 0)
        asked = len(sent.named("getMore"))
        assert [listener.try_next().document_key["_id"] for _ in range(4)] == [1, 2, 3, 4]
        assert len(sent.named("getMore")) == asked
    client.drop_database(mongodb_database_name)


def test_a_listener_that_is_closed_is_at_its_end(database: Any) -> None:
    listener = ChangeStreamListener(database.orders, QUICK)
    listener.close()
    listener.close()

    assert list(listener) == []
    assert listener.try_next() is None


def test_acknowledgements_come_in_any_order_and_the_token_is_that_of_the_finished_prefix(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        insert(database.orders, *range(6))
        events = take(listener, 6)
        began = listener.resume_token

        found = []
        for number in (2, 0, 4, 1, 3):
            events[number].ack()
            found.append(listener.resume_token)

    tokens = [event.resume_token for event in events]
    assert found == [began, tokens[0], tokens[0], tokens[2], tokens[4]]


def test_an_event_may_be_acknowledged_twice_and_in_another_thread(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        insert(database.orders, 1, 2)
        first, second = take(listener, 2)

        thread = threading.Thread(target=lambda: (first.ack(), first.ack()))
        thread.start()
        thread.join()

        assert listener.resume_token == first.resume_token
        second.ack()
        assert place(listener.resume_token) >= second.id


def test_an_ack_after_close_does_nothing(database: Any) -> None:
    told: list[Token] = []
    listener = ChangeStreamListener(database.orders, QUICK, told.append)
    with listener:
        insert(database.orders, 1, 2)
        first, second = take(listener, 2)
        first.ack()
    assert told[-1] == listener.resume_token == first.resume_token

    second.ack()
    listener.close()

    assert told[-1] == listener.resume_token == first.resume_token


def test_on_token_hears_only_of_what_is_finished_and_by_close_of_all_of_it(database: Any) -> None:
    told: list[Token] = []
    with ChangeStreamListener(database.orders, QUICK, told.append) as listener:
        insert(database.orders, 1, 2, 3)
        first, second, third = take(listener, 3)
        before = list(told)
        second.ack()
        for _ in range(3):
            assert listener.try_next() is None
        assert told == before

        first.ack()
        assert listener.try_next() is None
        assert told == [*before, second.resume_token]
        third.ack()

    assert len(told) == len(before) + 2
    assert place(told[-1]) >= third.id


def test_on_token_hears_of_an_ack_of_another_thread_while_nothing_comes(database: Any) -> None:
    told: list[Token] = []
    with ChangeStreamListener(database.orders, QUICK, told.append) as listener:
        insert(database.orders, 1)
        (event,) = take(listener, 1)
        waiting = threading.Thread(target=lambda: list(listener))
        waiting.start()

        event.ack()
        wait_until(lambda: told and place(told[-1]) >= event.id)
    waiting.join()


def test_on_token_hears_where_a_quiet_stream_has_come_to(database: Any) -> None:
    told: list[Token] = []
    with ChangeStreamListener(database.orders, QUICK, told.append) as listener:
        while len(told) < 3:
            database.elsewhere.insert_one({})
            assert listener.try_next() is None
        insert(database.orders, 1)

    places = [place(token) for token in told]
    assert places == sorted(set(places))
    with ChangeStreamListener(database.orders, ChangeStreamConfig(resume_token=told[-1])) as listener:
        assert keys(take(listener, 1)) == [1]


def test_a_failing_on_token_ends_the_iteration_and_is_not_asked_again(database: Any) -> None:
    calls: list[Token] = []

    def fail(token: Token) -> None:
        calls.append(token)
        if event is not None:
            raise OSError("disk full")

    event = None
    listener = ChangeStreamListener(database.orders, QUICK, fail)
    with listener:
        insert(database.orders, 1, 2)
        (event,) = take(listener, 1)
        asked = len(calls)
        event.ack()
        with pytest.raises(ResumeTokenPersistenceError) as raised:
            next(listener)

    assert isinstance(raised.value.__cause__, OSError)
    assert len(calls) == asked + 1
    assert listener.state == "closed" and list(listener) == []


def test_a_failing_on_token_is_heard_of_at_the_latest_by_close(database: Any) -> None:
    def fail(token: Token) -> None:
        if event is not None:
            raise OSError("disk full")

    event = None
    listener = ChangeStreamListener(database.orders, LONG, fail)
    insert_later = threading.Timer(0.05, insert, (database.orders, 1))
    with listener:
        insert_later.start()
        (event,) = take(listener, 1)
        event.ack()
        with pytest.raises(ResumeTokenPersistenceError):
            listener.close()
    insert_later.join()


def test_what_is_acknowledged_after_an_error_counts_until_close(database: Any) -> None:
    told: list[Token] = []
    listener = ChangeStreamListener(database.orders, QUICK, told.append)
    with listener:
        insert(database.orders, 1)
        database.orders.drop()
        events = take(listener, 3)
        with pytest.raises(StreamInvalidatedError):
            next(listener)
        for event in events:
            event.ack()

    assert place(told[-1]) >= events[-1].id


@pytest.mark.parametrize("level", ["collection", "database"])
def test_every_event_is_a_place_to_go_on_from(database: Any, level: str) -> None:
    source = database.orders if level == "collection" else database
    with ChangeStreamListener(source, QUICK) as listener:
        idle = listener.resume_token
        database.orders.insert_many([{"_id": key} for key in (1, Int64(2**40), 2.5, Decimal128("3.5"), "five")])
        database.orders.update_one({"_id": 1}, {"$set": {"a": 1}})
        database.orders.replace_one({"_id": 1}, {"b": 1})
        database.orders.delete_one({"_id": 1})
        database.orders.drop()
        seen = take(listener, 9)
        if level == "collection":
            seen += take(listener, 1)
            assert seen[-1].operation == "invalidate"
    ids = [event.id for event in seen]

    for number, token in enumerate([idle, *(event.resume_token for event in seen[:-1])]):
        with ChangeStreamListener(source, ChangeStreamConfig(resume_token=token)) as listener:
            assert [event.id for event in take(listener, len(seen) - number)] == ids[number:]


def test_after_an_invalidate_another_listener_goes_on_with_what_comes_next(database: Any) -> None:
    listener = ChangeStreamListener(database.orders, QUICK)
    with listener:
        insert(database.orders, 1)
        database.orders.drop()
        events, error = until_the_end(listener)
    insert(database.orders, 2)

    assert operations(events) == ["insert", "drop", "invalidate"]
    assert listener.resume_token == events[-1].resume_token
    with ChangeStreamListener(database.orders, ChangeStreamConfig(resume_token=listener.resume_token)) as listener:
        assert keys(take(listener, 1)) == [2]


@pytest.mark.parametrize("reason", ["drop", "rename", "dropDatabase"])
def test_an_invalidation_is_an_error_that_names_its_reason(database: Any, reason: str) -> None:
    insert(database.orders, 1)
    source = database if reason == "dropDatabase" else database.orders
    with ChangeStreamListener(source, QUICK) as listener:
        if reason == "drop":
            database.orders.drop()
        elif reason == "rename":
            database.orders.rename("orders_of_last_year")
        else:
            database.client.drop_database(database.name)
        events, error = until_the_end(listener)

    assert isinstance(error, StreamInvalidatedError)
    assert error.reason == reason
    assert operations(events)[-2:] == [reason, "invalidate"]


def test_an_invalidation_that_the_pipeline_hides_is_noticed_all_the_same(database: Any) -> None:
    only_inserts = [{"$match": {"operationType": "insert"}}]
    with ChangeStreamListener(
        database.orders, ChangeStreamConfig(max_await_time=0.1, pipeline=only_inserts)
    ) as listener:
        insert(database.orders, 1)
        database.orders.drop()
        insert(database.orders, 2)
        events, error = until_the_end(listener)

    assert keys(events) == [1]
    assert isinstance(error, StreamInvalidatedError)
    with ChangeStreamListener(database.orders, ChangeStreamConfig(resume_token=listener.resume_token)) as listener:
        assert keys(take(listener, 1)) == [2]


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ({"$group": {"_id": None}}, r"\$match, \$project"),
        ({"$wrong": {}}, "spelling"),
        ({"$changeStream": {}}, "leave it out"),
        ({"$match": {"$wrong": 1}}, "the exception behind"),
    ],
)
def test_a_wrong_pipeline_is_refused_at_the_first_step(database: Any, stage: Mapping[str, Any], named: str) -> None:
    listener = ChangeStreamListener(database.orders, ChangeStreamConfig(pipeline=[stage]))

    with pytest.raises(ConfigurationError, match=named):
        next(listener)
    assert listener.state == "closed"


@pytest.mark.parametrize("stage", [{"$project": {"_id": 0}}, {"$set": {"_id": "mine"}}])
def test_a_pipeline_that_does_not_leave_the_token_alone_is_refused_at_the_first_event(
    database: Any, stage: Mapping[str, Any]
) -> None:
    with ChangeStreamListener(database.orders, ChangeStreamConfig(max_await_time=0.1, pipeline=[stage])) as listener:
        insert(database.orders, 1)
        events, error = until_the_end(listener)

    assert events == []
    assert isinstance(error, ConfigurationError) and "_id" in str(error)


def test_a_standalone_server_is_refused_with_the_way_to_a_replica_set() -> None:
    with ReplicaSet(replicated=False) as standalone, MongoClient(standalone.uri) as client:
        with pytest.raises(ConfigurationError, match="rs.initiate") as raised:
            next(ChangeStreamListener(client.shop.orders))

    assert raised.value.code == 40573


def test_a_damaged_token_is_an_error_that_says_so(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        token = {"_data": listener.resume_token["_data"][:-4]}

    with pytest.raises(InvalidResumeTokenError):
        next(ChangeStreamListener(database.orders, ChangeStreamConfig(resume_token=token)))


def test_something_else_than_a_source_is_refused(database: Any) -> None:
    with pytest.raises(ConfigurationError, match="not str"):
        ChangeStreamListener("mongodb://localhost")  # type: ignore[arg-type]


def test_the_server_is_asked_for_exactly_what_the_configuration_says(commands: Any, mongodb_database_name: str) -> None:
    client, sent = commands
    config = ChangeStreamConfig(
        pipeline=[{"$match": {"operationType": "insert"}}, {"$unset": "lsid"}],
        full_document="updateLookup",
        full_document_before_change="whenAvailable",
        show_expanded_events=True,
        batch_size=7,
        max_await_time=0.25,
        collation={"locale": "fr"},
        comment="nightly",
    )
    with ChangeStreamListener(client[mongodb_database_name].orders, config) as listener:
        listener.try_next()

    (opened,) = sent.named("aggregate")
    assert opened["aggregate"] == "orders"
    assert opened["pipeline"] == [
        {
            "$changeStream": {
                "fullDocument": "updateLookup",
                "fullDocumentBeforeChange": "whenAvailable",
                "showExpandedEvents": True,
            }
        },
        *config.pipeline,
    ]
    assert opened["collation"] == {"locale": "fr", **opened["collation"]}
    assert opened["comment"] == "nightly"
    (more,) = sent.named("getMore")
    assert (more["batchSize"], more["maxTimeMS"], more["comment"]) == (7, 250, "nightly")
    assert len(sent.named("killCursors")) == 1


@pytest.mark.parametrize(("level", "stage"), [("database", {}), ("client", {"allChangesForCluster": True})])
def test_no_stage_is_added_at_any_level(
    commands: Any, mongodb_database_name: str, level: str, stage: Mapping[str, Any]
) -> None:
    client, sent = commands
    with ChangeStreamListener(client if level == "client" else client[mongodb_database_name], QUICK):
        pass

    (opened,) = sent.named("aggregate")
    assert (opened["aggregate"], opened["$db"]) == (1, "admin" if level == "client" else mongodb_database_name)
    assert opened["pipeline"] == [{"$changeStream": stage}]


def test_a_token_starts_after_and_never_resumes_after(commands: Any, mongodb_database_name: str) -> None:
    client, sent = commands
    orders = client[mongodb_database_name].orders
    with ChangeStreamListener(orders, QUICK) as listener:
        token = listener.resume_token
    with ChangeStreamListener(orders, ChangeStreamConfig(resume_token=token)):
        pass

    assert sent.named("aggregate")[-1]["pipeline"] == [{"$changeStream": {"startAfter": token}}]


def test_events_are_decoded_as_the_source_says(database: Any) -> None:
    options: CodecOptions[Any] = CodecOptions(document_class=SON, tz_aware=True)
    with ChangeStreamListener(database.get_collection("orders", codec_options=options), QUICK) as listener:
        insert(database.orders, 1)
        (event,) = take(listener, 1)

    assert type(event.full_document) is SON
    assert event.wall_time.tzinfo is not None


def test_a_reply_that_is_decoded_in_slices_is_iterated_in_order(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        database.orders.insert_many([{"_id": number, "padding": "x" * 50_000} for number in range(60)])
        events = take(listener, 60)
        for event in events[:42]:
            event.ack()

        assert keys(events) == list(range(60))
        assert listener.resume_token == events[41].resume_token


def test_close_in_another_thread_ends_a_waiting_next(database: Any) -> None:
    ended: list[list[Any]] = []
    listener = ChangeStreamListener(database.orders, LONG)
    waiting = threading.Thread(target=lambda: ended.append(list(listener)))
    waiting.start()
    wait_until(lambda: listener.state == "active")

    listener.close()
    waiting.join(30)

    assert ended == [[]]
    assert listener.state == "closed"


def test_a_listener_that_was_opened_in_one_thread_is_iterated_in_another(database: Any) -> None:
    seen: list[Any] = []
    with ChangeStreamListener(database.orders, QUICK) as listener:
        iterating = threading.Thread(target=lambda: seen.extend(take(listener, 2)))
        iterating.start()
        insert(database.orders, 1, 2)
        iterating.join(60)

        assert keys(seen) == [1, 2]
        insert(database.orders, 3)
        assert keys(take(listener, 1)) == [3]


def test_close_in_another_greenlet_ends_a_waiting_next(database: Any) -> None:
    listener = ChangeStreamListener(database.orders, LONG)
    waiting = gevent.spawn(list, listener)
    wait_until(lambda: listener.state == "active")

    listener.close()

    assert waiting.get(timeout=30) == []


def test_a_wait_that_is_interrupted_loses_nothing(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        seen, interrupted = [], 0
        while interrupted < 10:
            with gevent.Timeout(0.01 * (interrupted % 4), False) as timeout:
                seen.append(next(listener))
                continue
            assert timeout
            interrupted += 1
            insert(database.orders, interrupted)

        seen += take(listener, 10 - len(seen))
    assert keys(seen) == list(range(1, 11))


PATCHED = """
import gevent
from pymongo import MongoClient
from rigatoni import ChangeStreamConfig, ChangeStreamListener

with MongoClient(given["uri"]) as client:
    orders = client[given["database"]].orders
    told = []
    listener = ChangeStreamListener(orders, ChangeStreamConfig(max_await_time=600), told.append)
    ticks, seen = [], []

    def tick():
        while True:
            ticks.append(1)
            gevent.sleep(0.01)

    def iterate():
        for event in listener:
            seen.append(event)
            event.ack()

    ticking, waiting = gevent.spawn(tick), gevent.spawn(iterate)
    while listener.state != "active":
        gevent.sleep(0.01)
    for key in range(3):
        orders.insert_one({"_id": key})
    while len(seen) < 3:
        gevent.sleep(0.01)
    before = len(ticks)
    while len(ticks) < before + 5:
        gevent.sleep(0.01)
    listener.close()
    waiting.get(timeout=30)
    ticking.kill()
    say(keys=[event.document_key["_id"] for event in seen], state=listener.state,
        told=told[-1] == listener.resume_token, passed=told[-1]["_data"] >= seen[-1].id)
"""


def test_in_a_patched_process_other_greenlets_go_on_and_one_of_them_may_close(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    program = run_program(PATCHED, tmp_path, patched=True, uri=mongodb_replica_set.uri, database=database.name)

    assert program.lines == [{"keys": [0, 1, 2], "state": "closed", "told": True, "passed": True}]
