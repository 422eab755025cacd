"""The rules of the drivers' specification about resume tokens, where acknowledgements decide: what the listener reports
as finished, and where it goes on after an error.

https://github.com/mongodb/specifications/blob/master/source/change-streams/change-streams.md#resume-process
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import wait_until
from failing import AFTER, Failing, Watched
from listening import Commands, keys, place, take
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, ChangeStreamListener

CONFIG = ChangeStreamConfig(max_await_time=0.1, initial_backoff=0.001)


@pytest.fixture
def sent() -> Commands:
    return Commands()


@pytest.fixture
def client(failing: Failing, sent: Commands) -> Iterator[Any]:
    """A client that is failed for, and what it sends."""
    with MongoClient(failing.uri, event_listeners=[sent]) as client:
        yield client


@pytest.fixture
def orders(client: Any, failing: Failing) -> Any:
    return client[failing.name].orders


def expire_session(failing: Failing, sent: Commands) -> None:
    """Let the session of the cursor end, as the server does after 30 minutes."""
    admin = failing.database.client.admin
    admin.command({"endSessions": [sent.named("getMore")[-1]["lsid"]]})
    admin.command("refreshLogicalSessionCacheNow")


# -- what counts as finished


def test_the_token_of_an_empty_reply_counts(failing: Failing, sent: Commands, orders: Any) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        assert listener.resume_token == sent.token
        found = []
        while len(set(map(place, found))) < 3:
            failing.database.elsewhere.insert_one({})
            assert listener.try_next() is None
            assert listener.resume_token == sent.token
            found.append(listener.resume_token)


def test_the_token_of_a_reply_counts_once_its_last_event_is_acknowledged(
    failing: Failing, sent: Commands, orders: Any
) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        began = listener.resume_token
        failing.insert(3)
        failing.database.elsewhere.insert_one({})
        first, second, last = take(listener, 3)
        assert listener.resume_token == began
        first.ack()
        assert listener.resume_token == first.resume_token
        last.ack()
        assert listener.resume_token == first.resume_token
        second.ack()

        assert listener.resume_token == sent.token
        assert place(sent.token) > last.id


def test_the_token_that_a_listener_starts_after_counts_until_something_is_acknowledged(
    failing: Failing, orders: Any
) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        failing.insert(3)
        begin = take(listener, 1)[0].resume_token
    with ChangeStreamListener(orders, ChangeStreamConfig(resume_token=begin)) as listener:
        assert listener.resume_token == begin
        second, third = take(listener, 2)
        third.ack()
        assert listener.resume_token == begin
        second.ack()

        assert place(listener.resume_token) >= third.id


# -- where it goes on


@pytest.mark.parametrize("acknowledged", [0, 1, 3])
def test_after_an_error_it_goes_on_where_it_has_read_to_whatever_is_acknowledged(
    failing: Failing, sent: Commands, orders: Any, acknowledged: int
) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        began = listener.resume_token
        failing.insert(3)
        events = take(listener, 3)
        for event in events[:acknowledged]:
            event.ack()
        finished = listener.resume_token
        failing.fail({"times": 1}, point=AFTER, errorCode=6)
        failing.insert(2)
        events += take(listener, 2)

        assert keys(events) == failing.inserted
        assert place(finished) <= place(listener.resume_token) < events[acknowledged].id
        assert (finished == began) == (acknowledged == 0)
    (_, reopened) = sent.openings
    assert reopened.stage == {"startAfter": reopened.token}
    assert place(reopened.token) >= events[2].id


def test_an_error_before_the_first_event_does_not_let_it_start_later(
    failing: Failing, sent: Commands, orders: Any
) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        failing.insert(2)
        failing.fail({"times": 2}, point=AFTER, errorCode=6)

        assert keys(take(listener, 2)) == failing.inserted
    (opened, *reopened) = sent.openings
    assert opened.stage == {}
    assert [opening.stage for opening in reopened] == [{"startAfter": opening.token} for opening in reopened]
    assert len(reopened) == 2


def test_opening_that_fails_is_tried_again_at_the_same_token(failing: Failing, sent: Commands, orders: Any) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        failing.insert(2)
        begin = take(listener, 1)[0].resume_token
    failing.fail({"times": 3}, "aggregate", errorCode=133)
    with ChangeStreamListener(orders, ChangeStreamConfig(resume_token=begin, initial_backoff=0.001)) as listener:
        assert keys(take(listener, 1)) == [2]

    assert [opening.stage for opening in sent.openings[1:]] == [{"startAfter": begin}] * 4


# -- what becomes of the old cursor


@pytest.mark.parametrize("fault", [{"errorCode": 13}, {"closeConnection": True}])
def test_the_old_cursor_is_killed_and_an_error_of_that_is_nobodys_business(
    failing: Failing, sent: Commands, orders: Any, fault: dict[str, Any]
) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        failing.insert(1)
        seen = take(listener, 1)
        old = sent.named("getMore")[-1]["getMore"]
        failing.fail({"times": 1}, "killCursors", **fault)
        failing.fail({"times": 1}, point=AFTER, errorCode=6)
        failing.insert(2)
        seen += take(listener, 2)

        assert keys(seen) == failing.inserted
        wait_until(lambda: sent.failures[1:])
    assert [name for name, _ in sent.failures] == ["getMore", "killCursors"]
    assert [command["cursors"] for command in sent.named("killCursors")][0] == [old]


def test_a_session_that_expires_between_two_steps_costs_no_event(failing: Failing, sent: Commands, orders: Any) -> None:
    with ChangeStreamListener(orders, CONFIG) as listener:
        failing.insert(1)
        seen = take(listener, 1)
        expire_session(failing, sent)
        failing.insert(2)
        seen += take(listener, 2)

        assert keys(seen) == failing.inserted
    assert sent.failures == [("getMore", 43)]
    assert [opening.stage for opening in sent.openings] == [{}, {"startAfter": sent.openings[1].token}]


def test_a_session_that_expires_under_a_watcher_costs_no_event(failing: Failing, sent: Commands, client: Any) -> None:
    def expire() -> bool:
        expire_session(failing, sent)
        return bool(watched.attempts)

    with Watched(failing, client=client) as watched:
        failing.insert(2)
        watched.wait_for_all()
        wait_until(expire)
        failing.insert(2)
        watched.wait_for_all()

    # Not found, or killed when it met a getMore that ran.
    assert {code for _, code in sent.failures} <= {43, 237}
