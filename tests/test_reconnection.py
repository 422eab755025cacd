"""Errors of the connection: what is lost is the cursor, never an event; and when going on ends."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from conftest import wait_until
from failing import AFTER, BEFORE, Failing, Watched
from listening import Commands
from pymongo import MongoClient

from rigatoni import (
    ChangeStreamConfig,
    ChangeStreamListener,
    ConfigurationError,
    MaxReconnectAttemptsExceededError,
    StreamConnectionError,
)
from rigatoni.codes import RESUMABLE_CODES, RESUMABLE_LABEL
from rigatoni.retry import UNKNOWN_ATTEMPTS

#: The server injects this one only with further information (40671).
CODES = sorted(RESUMABLE_CODES - {13388})


@pytest.mark.parametrize("point", [BEFORE, AFTER])
def test_after_every_resumable_error_the_stream_goes_on_with_nothing_lost_and_nothing_repeated(
    failing: Failing, point: str
) -> None:
    sent = Commands()
    with MongoClient(failing.uri, event_listeners=[sent]) as client, Watched(failing, client=client) as watched:
        for number, code in enumerate(CODES, 1):
            failing.insert(2)
            failing.fail({"times": 1}, point=point, errorCode=code)
            failing.insert(2)
            watched.wait_for_recovery(number)
            failing.insert(1)
            watched.wait_for_all()
            assert f"code {code}" in watched.attempts[-1][0]

        assert watched.watcher.state == "running" and watched.watcher.stats()["reconnects"] == len(CODES)
    # Each of them is counted by itself, because there was a reply in between.
    assert watched.numbers == [1] * len(CODES)
    # One aggregate for each, that goes on where the last reply ended.
    assert len(sent.openings) == 1 + len(CODES)
    assert all(opening.stage == {"startAfter": opening.token} for opening in sent.openings[1:])


@pytest.mark.parametrize("fault", [{"closeConnection": True}, {"errorCode": 43}, {"errorCode": 10107}])
def test_a_listener_goes_on_by_itself(failing: Failing, fault: dict[str, Any]) -> None:
    config = ChangeStreamConfig(max_await_time=0.1, initial_backoff=0.001)
    with MongoClient(failing.uri) as client, ChangeStreamListener(client[failing.name].orders, config) as listener:
        failing.insert(3)
        seen = [next(listener), next(listener)]
        failing.fail({"times": 2}, **fault)
        failing.insert(3)
        seen += [next(listener) for _ in range(4)]

        assert listener.state == "active"
    assert [event.document_key["_id"] for event in seen] == failing.inserted


def test_a_listener_that_waits_to_reconnect_says_so_and_can_be_closed(failing: Failing) -> None:
    config = ChangeStreamConfig(max_await_time=0.1, initial_backoff=600.0, max_backoff=600.0)
    with MongoClient(failing.uri) as client, ChangeStreamListener(client[failing.name].orders, config) as listener:
        listener.try_next()
        failing.fail("alwaysOn", errorCode=43)
        waiting = gevent.spawn(list, listener)
        wait_until(lambda: listener.state == "reconnecting")

        listener.close()

        assert waiting.get(timeout=30) == []
        assert listener.state == "closed"


def test_a_listener_that_is_closed_while_its_cursor_opens_leaves_none_on_the_server(failing: Failing) -> None:
    sent = Commands()
    with MongoClient(failing.uri, event_listeners=[sent]) as client:
        listener = ChangeStreamListener(client[failing.name].orders)
        failing.fail({"times": 1}, "aggregate", blockConnection=True, blockTimeMS=300)
        opening = gevent.spawn(list, listener)
        wait_until(lambda: sent.openings)

        listener.close()

        assert opening.get(timeout=30) == []
        wait_until(lambda: sent.named("killCursors"))
        wait_until(lambda: not failing.operations())


def test_a_broken_connection_is_opened_again(failing: Failing) -> None:
    with Watched(failing) as watched:
        for number in (1, 2):
            failing.insert()
            failing.fail({"times": 1}, closeConnection=True)
            failing.insert()
            watched.wait_for_recovery(number)
            watched.wait_for_all()


def test_an_idle_cursor_that_somebody_kills_is_opened_again(failing: Failing) -> None:
    config = ChangeStreamConfig(max_await_time=0.1, initial_backoff=0.001)
    with MongoClient(failing.uri) as client, ChangeStreamListener(client[failing.name].orders, config) as listener:
        failing.insert(1)
        seen = [next(listener)]
        (idle,) = failing.operations()
        killed = failing.database.command({"killCursors": "orders", "cursors": [idle["cursor"]["cursorId"]]})
        assert killed["cursorsKilled"]
        failing.insert(2)
        seen += [next(listener), next(listener)]

    assert [event.document_key["_id"] for event in seen] == failing.inserted


@pytest.mark.parametrize(("how", "code"), [("killCursors", 237), ("killOp", 11601)])
def test_a_running_get_more_that_somebody_kills_is_made_again(failing: Failing, how: str, code: int) -> None:
    def kill() -> bool:
        for running in failing.operations():
            if running["type"] == "op" and how == "killOp":
                failing.database.client.admin.command({"killOp": 1, "op": running["opid"]})
            elif running["type"] == "op":
                failing.database.command({"killCursors": "orders", "cursors": [running["cursor"]["cursorId"]]})
        # Again, where it was killed just between two of them, so that it is not found (43).
        return any(f"code {code} " in error for error, _, _ in watched.attempts)

    # Without a limit, because one after the other may be killed before it replies.
    with Watched(failing, max_await_time=0.5, max_reconnect_attempts=0) as watched:
        failing.insert(2)
        wait_until(kill)
        failing.insert(2)
        watched.wait_for_all()


@pytest.mark.parametrize("fault", [{"errorCode": 6}, {"errorCode": 11602}, {"closeConnection": True}])
def test_start_waits_for_a_server_that_does_not_open_the_stream_yet(failing: Failing, fault: dict[str, Any]) -> None:
    failing.fail({"times": 2}, "aggregate", **fault)
    with Watched(failing) as watched:
        failing.insert(2)
        watched.wait_for_all()

    assert watched.numbers == [1, 2]


# Of the first, the driver tries two again by itself. The second comes of an oplog that loses its beginning just then,
# and is asked again at once.
@pytest.mark.parametrize(("code", "attempts"), [(6, [1, 2]), (136, [])])
def test_start_waits_for_a_server_that_does_not_tell_yet_how_far_back_its_history_goes(
    code: int, attempts: list[int], failing: Failing
) -> None:
    failing.fail({"times": 4}, "find", errorCode=code)
    failing.insert(2)
    with Watched(failing, start_at="earliest") as watched:
        watched.wait_for_all()

    assert watched.numbers == attempts


def test_a_start_from_earliest_survives_that_the_oplog_loses_its_beginning_just_then(failing: Failing) -> None:
    failing.fail({"times": 2}, "aggregate", errorCode=286)
    failing.insert(2)
    with Watched(failing, start_at="earliest") as watched:
        watched.wait_for_all()

    assert watched.numbers == []


def test_reopening_that_fails_goes_on_counting_and_starts_at_the_same_place(failing: Failing) -> None:
    sent = Commands()
    with MongoClient(failing.uri, event_listeners=[sent]) as client, Watched(failing, client=client) as watched:
        failing.insert(2)
        watched.wait_for_all()
        failing.fail({"times": 3}, "aggregate", errorCode=133)
        # One more failpoint, so that the getMore fails only now.
        failing.fail({"times": 1}, point=AFTER, errorCode=6)
        failing.insert(2)
        watched.wait_for_recovery(4)
        watched.wait_for_all()

    assert watched.numbers == [1, 2, 3, 4]
    assert [opening.stage for opening in sent.openings[1:]] == [{"startAfter": sent.openings[1].token}] * 4


def test_the_delays_double_from_a_tenth_of_a_second_within_their_spread() -> None:
    config = ChangeStreamConfig()

    for attempt, expected in enumerate([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0], 1):
        assert all(0.95 * expected <= config.backoff(attempt) <= 1.05 * expected for _ in range(50))


@pytest.mark.parametrize(
    "fault", [{"errorCode": 6}, {"errorCode": 6789, "errorLabels": [RESUMABLE_LABEL]}], ids=["code", "label"]
)
def test_five_attempts_in_a_row_are_the_end_by_default_and_their_delays_are_those_of_the_configuration(
    failing: Failing, fault: dict[str, Any]
) -> None:
    sent = Commands()
    with (
        MongoClient(failing.uri, event_listeners=[sent]) as client,
        Watched(failing, client=client, initial_backoff=0.01, max_backoff=0.05) as watched,
    ):
        failing.fail("alwaysOn", **fault)
        with pytest.raises(MaxReconnectAttemptsExceededError) as raised:
            watched.watcher.join(60)
        assert watched.watcher.state == "failed"

    assert raised.value.attempts == 5
    assert raised.value.__cause__.code == fault["errorCode"]
    assert watched.numbers == [1, 2, 3, 4, 5]
    for (_, _, delay), expected in zip(watched.attempts, [0.01, 0.02, 0.04, 0.05, 0.05], strict=True):
        assert 0.95 * expected <= delay <= 1.05 * expected
    # Opening worked each time; that alone proves nothing.
    assert watched.openings == len(sent.openings) == 6
    gaps = [after.time - before.time for before, after in zip(sent.openings, sent.openings[1:], strict=False)]
    assert all(gap >= 0.9 * delay for gap, (_, _, delay) in zip(gaps, watched.attempts, strict=True))


def test_start_gives_up_after_the_attempts_too(failing: Failing) -> None:
    failing.fail("alwaysOn", "aggregate", closeConnection=True)
    watched = Watched(failing, max_reconnect_attempts=2)

    with pytest.raises(MaxReconnectAttemptsExceededError) as raised:
        watched.watcher.start()

    assert raised.value.attempts == 2
    # The opening itself is the first of them.
    assert watched.numbers == [1]
    assert watched.watcher.state == "failed"


def test_a_listener_gives_up_after_the_attempts_too(failing: Failing) -> None:
    config = ChangeStreamConfig(max_await_time=0.1, initial_backoff=0.001, max_reconnect_attempts=3)
    with MongoClient(failing.uri) as client, ChangeStreamListener(client[failing.name].orders, config) as listener:
        failing.fail("alwaysOn", errorCode=6)
        with pytest.raises(MaxReconnectAttemptsExceededError) as raised:
            next(listener)

        assert raised.value.attempts == 3
        assert listener.state == "closed" and list(listener) == []


def test_no_limit_is_for_ever(failing: Failing) -> None:
    with Watched(failing, max_reconnect_attempts=0, max_backoff=0.01) as watched:
        failing.fail("alwaysOn", errorCode=6)
        failing.insert()
        wait_until(lambda: len(watched.attempts) > 20)
        assert watched.stream["state"] == "reconnecting"
        failing.mend()
        watched.wait_for_all()
        wait_until(lambda: watched.stream["state"] == "active")


def test_attempts_are_counted_anew_after_a_reply(failing: Failing) -> None:
    with Watched(failing, max_reconnect_attempts=3) as watched:
        for rounds in range(1, 4):
            failing.fail({"times": 3}, errorCode=6)
            failing.insert()
            watched.wait_for_recovery(3 * rounds)
            watched.wait_for_all()

    assert watched.numbers == [1, 2, 3] * 3


@pytest.mark.parametrize("code", [13, 20, 47])
def test_what_no_attempt_can_mend_ends_the_watcher_at_once(failing: Failing, code: int) -> None:
    with Watched(failing) as watched:
        failing.fail("alwaysOn", errorCode=code)
        with pytest.raises(ConfigurationError) as raised:
            watched.watcher.join(60)

    assert raised.value.code == code
    assert watched.attempts == []


def test_a_pipeline_that_drops_the_token_ends_the_watcher_at_once(failing: Failing) -> None:
    with Watched(failing, pipeline=[{"$project": {"_id": 0}}]) as watched:
        failing.insert()
        with pytest.raises(ConfigurationError, match="_id"):
            watched.watcher.join(60)

    assert (watched.attempts, watched.seen) == ([], [])


def test_an_error_that_nobody_knows_is_tried_a_few_times_even_without_a_limit(failing: Failing) -> None:
    with Watched(failing, max_reconnect_attempts=0) as watched:
        failing.fail("alwaysOn", errorCode=6789)
        with pytest.raises(StreamConnectionError, match="unknown") as raised:
            watched.watcher.join(60)

    assert raised.value.code == 6789
    assert watched.numbers == list(range(1, UNKNOWN_ATTEMPTS + 1))
