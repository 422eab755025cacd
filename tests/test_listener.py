"""ChangeStreamListener: iteration, what it asks of the server, and its ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import count, takewhile
from types import FrameType
from typing import Any

import gevent
import pytest
from bson import CodecOptions
from bson.son import SON
from conftest import wait_until
from listening import QUICK, Commands, insert, keys, operations, take, until_the_end
from pymongo import MongoClient

from rigatoni import (
    ChangeStreamConfig,
    ChangeStreamListener,
    ConfigurationError,
    InvalidResumeTokenError,
    StreamInvalidatedError,
)
from rigatoni.mongod import ReplicaSet


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


def run_out_of_time() -> None:
    with gevent.Timeout(0.01):
        gevent.sleep(600)


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("interrupt", "error"), [(run_out_of_time, gevent.Timeout), (press_ctrl_c, KeyboardInterrupt)])
def test_a_listener_that_is_interrupted_behind_a_reply_is_closed_and_the_next_one_sees_all_of_it(
    database: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    interrupt: Callable[[], None],
    error: type[BaseException],
) -> None:
    class Interrupts(logging.Handler):
        """Stands for what takes a moment there, such as a log over a network."""

        def emit(self, record: logging.LogRecord) -> None:
            if "connected again" in record.getMessage():
                interrupt()

    monkeypatch.setattr(logging.getLogger("rigatoni.stream"), "handlers", [Interrupts()])
    caplog.set_level(logging.INFO, "rigatoni.stream")
    with ChangeStreamListener(database.orders, QUICK) as listener:
        insert(database.orders, 1)
        next(listener).ack()
        match = {"cursor.originatingCommand.$db": database.name}
        (idle,) = database.client.admin.aggregate([{"$currentOp": {"idleCursors": True}}, {"$match": match}])
        database.command({"killCursors": "orders", "cursors": [idle["cursor"]["cursorId"]]})
        insert(database.orders, 2, 3)
        with pytest.raises(error):
            next(listener)
        assert listener.state == "closed" and list(listener) == []
    with ChangeStreamListener(database.orders, ChangeStreamConfig(resume_token=listener.resume_token)) as again:
        assert keys(take(again, 2)) == [2, 3]


#: What asks the server, and reads its reply.
READING = tuple(f"rigatoni{os.sep}{name}.py" for name in ("cursor", "reply", "stream"))


class CtrlC:
    """Interrupt at one of the places where Python looks for signals: calls, and returns from C."""

    def __init__(self, place: int) -> None:
        self.left = place

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(READING):
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


def step(listener: ChangeStreamListener, interruption: CtrlC) -> list[Any]:
    try:
        sys.setprofile(interruption)
        return [next(listener)]
    except KeyboardInterrupt:
        return []
    finally:
        sys.setprofile(None)


def test_wherever_a_step_is_interrupted_no_event_is_passed_unseen(database: Any) -> None:
    missed: dict[int, list[Any]] = {}
    for place in count(1):
        interruption = CtrlC(place)
        first, second, last = range(3 * place, 3 * place + 3)
        with ChangeStreamListener(database.orders, QUICK) as listener:
            insert(database.orders, first, second)
            seen = step(listener, interruption)
            insert(database.orders, last)
            config = ChangeStreamConfig(resume_token=listener.resume_token)
            if listener.state == "closed":
                listener = ChangeStreamListener(database.orders, config)
            seen += takewhile(lambda event, last=last: event.document_key != {"_id": last}, listener)
            listener.close()
        if keys(seen) != [first, second]:
            missed[place] = keys(seen)
        if interruption.left > 0:
            break
    assert place > 20 and missed == {}


def test_a_split_of_large_events_is_the_servers_to_refuse(database: Any) -> None:
    config = ChangeStreamConfig(pipeline=[{"$changeStreamSplitLargeEvent": {}}])
    with pytest.raises(ConfigurationError) as raised:
        next(ChangeStreamListener(database.orders, config))
    # A stage that this version does not know: there is one from 6.0.9 on.
    assert raised.value.code == 40324
