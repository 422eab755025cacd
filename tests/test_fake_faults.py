"""What goes wrong on a fake server, on cue: interruptions, outages, a lost history."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import wait_until
from pymongo.errors import AutoReconnect, InvalidOperation, OperationFailure, ServerSelectionTimeoutError
from rehearsing import Told, shop
from servers import Cursor, Fake
from watchers import collecting

from rigatoni import (
    ChangeStreamConfig,
    ConfigurationError,
    InvalidResumeTokenError,
    MaxReconnectAttemptsExceededError,
    MemoryStore,
    StreamConnectionError,
)
from rigatoni.testing import FakeClient


@pytest.mark.parametrize("error", [43, 10107, 91, 136, 262, 11602, AutoReconnect("connection closed")])
def test_an_interruption_costs_nothing_but_a_reopening(error: int | Exception) -> None:
    told = Told()
    watcher, client = shop(hooks=[told], on_history_lost="now"), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)
        client.fail(error)
        client.drain(rehearsed)
        client.insert("orders", {"_id": 2})
        client.drain(rehearsed)

    assert seen == [1, 2]
    assert told.opened_streams == 2


def test_a_get_more_whose_time_is_over_just_as_the_server_goes_down_has_lost_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Fake("shop")
    cursor = Cursor(server, "orders")
    assert cursor.more(patience=0.01) == []

    def too_late(seconds: float) -> bool:
        server.client.down()
        return False

    monkeypatch.setattr(server.client._server._changed, "wait", too_late)
    with pytest.raises(AutoReconnect):
        cursor.more()


def test_errors_have_the_classes_that_pymongo_gives_them() -> None:
    told = Told()
    watcher, client = shop(hooks=[told]), FakeClient()
    collecting(watcher)
    with watcher.rehearsal(client) as rehearsed:
        for code in (43, 50, 10107, 89):
            client.fail(code)
            client.drain(rehearsed)

    causes = [type(error.__cause__).__name__ for error in told.errors]
    assert causes == ["CursorNotFound", "ExecutionTimeout", "NotPrimaryError", "OperationFailure"]
    assert [getattr(error, "code", None) for error in told.errors] == [43, 50, 10107, 89]


def test_an_opening_fails_as_often_as_it_is_told_to() -> None:
    told = Told()
    watcher, client = shop(hooks=[told]), FakeClient()
    collecting(watcher)
    client.fail(ServerSelectionTimeoutError("nobody"), times=2, command="hello")
    client.fail(189, times=3, command="aggregate")
    with watcher.rehearsal(client) as rehearsed:
        client.drain(rehearsed)

    assert len(told.errors) == 5


@pytest.mark.parametrize(
    ("code", "error"), [(13, ConfigurationError), (280, InvalidResumeTokenError), (286, InvalidResumeTokenError)]
)
def test_what_no_reopening_mends_is_raised_by_start(code: int, error: type[Exception]) -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    client.fail(code, command="aggregate")

    with pytest.raises(error) as raised:
        watcher.rehearsal(client).start()
    assert isinstance(raised.value.__cause__, OperationFailure)


def test_an_event_that_is_said_to_be_too_large_comes_through_the_guard() -> None:
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.fail(10334)
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)

    assert seen == [1]


def test_an_outage_lasts_from_down_to_up() -> None:
    told = Told()
    watcher, client = shop(hooks=[told]), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.down()
        wait_until(lambda: len(told.errors) > 20)
        client.insert("orders", {"_id": 1})
        assert rehearsed.stats()["streams"]["shop"]["state"] == "reconnecting"
        client.up()
        client.drain(rehearsed)

    assert seen == [1]
    assert isinstance(told.errors[1], StreamConnectionError)


def test_a_watcher_gives_up_when_its_configuration_says_so() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    client.down()
    config = ChangeStreamConfig(max_reconnect_attempts=2, initial_backoff=0.001)

    with pytest.raises(MaxReconnectAttemptsExceededError):
        watcher.rehearsal(client, config=config).start()


@pytest.mark.parametrize("policy", ["stop", "now", "earliest"])
def test_a_lost_history_is_an_error_or_a_gap_that_is_told(policy: str) -> None:
    told = Told()
    watcher, client, store = shop(hooks=[told], on_history_lost=policy), FakeClient(), MemoryStore()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client, store=store) as rehearsed:
        client.drain(rehearsed)
    client.insert("orders", {"_id": 1})
    client.lose_history()
    client.insert("orders", {"_id": 2})

    again = watcher.rehearsal(client, store=store)
    if policy == "stop":
        with pytest.raises(InvalidResumeTokenError):
            again.start()
        return
    with again:
        client.insert("orders", {"_id": 3})
        client.drain(again)
    assert seen == ([3] if policy == "now" else [2, 3])
    assert told.gaps == ["shop"]


def test_who_is_up_to_date_loses_no_history() -> None:
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)
        client.lose_history()
        client.insert("orders", {"_id": 2})
        client.drain(rehearsed)

    assert seen == [1, 2]


def test_a_position_of_one_fake_server_is_refused_by_another() -> None:
    watcher, store = shop(), MemoryStore()
    collecting(watcher)
    with watcher.rehearsal(FakeClient(), store=store):
        pass

    with pytest.raises(InvalidResumeTokenError, match="another cluster"):
        watcher.rehearsal(FakeClient(), store=store).start()


def test_a_client_that_was_closed_serves_nobody() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    client.close()

    with pytest.raises(StreamConnectionError, match="closed") as raised:
        watcher.rehearsal(client).start()
    assert isinstance(raised.value.__cause__, InvalidOperation)


@pytest.mark.parametrize(
    ("told", "mistake"),
    [
        ({"error": 43, "command": "getmore"}, "no command 'getmore': there are aggregate"),
        ({"error": "43"}, "a code of the server or an exception, not '43'"),
        ({"error": 0}, "not 0"),
        ({"error": True}, "not True"),
        ({"error": 43, "times": 0}, "times must be a whole number from 1, not 0"),
    ],
)
def test_what_cannot_go_wrong_is_refused(told: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigurationError, match=mistake):
        FakeClient().fail(**told)
