"""ChangeStreamListener: acknowledgements, ``on_token``, and the places to go on from."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from bson import Decimal128, Int64
from conftest import wait_until
from listening import LONG, QUICK, Token, insert, keys, operations, place, take, until_the_end

from rigatoni import (
    ChangeStreamConfig,
    ChangeStreamListener,
    InvalidResumeTokenError,
    ResumeTokenPersistenceError,
    StreamInvalidatedError,
)


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


def test_on_token_hears_where_it_started_before_anything_happens(database: Any) -> None:
    told: list[Token] = []
    with ChangeStreamListener(database.orders, QUICK, told.append) as listener:
        assert listener.try_next() is None
        assert told != []
    insert(database.orders, 1)

    with ChangeStreamListener(database.orders, ChangeStreamConfig(resume_token=told[0])) as listener:
        assert keys(take(listener, 1)) == [1]
        assert place(listener.resume_token) >= place(told[0])


def test_a_token_that_was_handed_in_is_not_told_again(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        insert(database.orders, 1)
        (event,) = take(listener, 1)
    told: list[Token] = []
    config = ChangeStreamConfig(resume_token=event.resume_token, max_await_time=0.1)
    with ChangeStreamListener(database.orders, config, told.append) as listener:
        listener.try_next()

    assert event.resume_token not in told


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


def test_a_token_of_the_future_is_refused_because_the_server_would_be_silent_until_then(database: Any) -> None:
    with ChangeStreamListener(database.orders, QUICK) as listener:
        token = listener.resume_token
    data = place(token)
    for seconds in (-5, 3600):
        time = int(data[2:10], 16) + seconds
        config = replace(QUICK, resume_token={"_data": f"{data[:2]}{time:08X}{data[10:]}"})
        refused = pytest.raises(InvalidResumeTokenError, match="in the server's future")
        with refused if seconds > 0 else nullcontext(), ChangeStreamListener(database.orders, config) as listener:
            listener.try_next()
