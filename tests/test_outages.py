"""Servers that are away, frozen or silent for a while, and watchers that are stopped meanwhile."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from conftest import wait_until
from failing import Failing, Watched
from programs import run_program

from rigatoni import cursor

#: Seconds that a stop may take while the server is away. Of three the best counts, because a machine may be busy.
AT_ONCE = 0.1


@contextmanager
def three_watched(failing: Failing, **config: Any) -> Iterator[list[Watched]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Watched(failing, **config)) for _ in range(3)]


def stop(watched: Watched) -> float:
    """Stop the watcher, which must be in order, and return the seconds that took."""
    began = monotonic()
    assert watched.watcher.stop()
    took = monotonic() - began
    assert watched.watcher.state == "stopped" and watched.watcher.error is None
    return took


def told_of_the_stream(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Say what was logged about the stream's state: the level and the first word."""
    records = [record for record in caplog.records if record.name == "rigatoni.stream"]
    return [f"{record.levelname} {record.message.partition(': ')[2].split()[0]}" for record in records]


PATCHED = """
import gevent
from rigatoni import ChangeStreamConfig, Hooks, MaxReconnectAttemptsExceededError, MemoryStore, Watcher
from pymongo import MongoClient

class Attempts(Hooks):
    def __init__(self):
        self.told = []

    def reconnecting(self, stream, error, attempt, delay):
        self.told.append(attempt)


def fail(mode, **data):
    client.admin.command({"configureFailPoint": "failCommand", "mode": mode,
                          "data": {"failCommands": ["getMore"], "appName": given["name"], **data}})


def wait_until(condition):
    while not condition():
        gevent.sleep(0.005)


attempts, seen = Attempts(), []
config = ChangeStreamConfig(max_await_time=0.1, initial_backoff=0.001, max_backoff=600, max_reconnect_attempts=0)
watcher = Watcher(given["uri"], given["name"], store=MemoryStore(), config=config, hooks=[attempts])

@watcher.on("insert", collection="orders")
def see(event):
    seen.append(event.document_key["_id"])

with MongoClient(given["other"]) as client, gevent.Timeout(60):
    orders = client[given["name"]].orders
    watcher.start()
    for number in range(1, 4):
        fail({"times": 2}, **given["fault"])
        orders.insert_one({"_id": number})
        wait_until(lambda: len(attempts.told) == 2 * number and len(seen) == number)
        wait_until(lambda: watcher.stats()["streams"][given["name"]]["state"] == "active")
    fail("alwaysOn", errorCode=6)
    took = []
    for _ in range(3):
        # The delays double; the tenth is half a second.
        due = len(attempts.told) + 10
        wait_until(lambda: len(attempts.told) >= due)
        began = time.monotonic()
        stopped = watcher.stop()
        took.append(time.monotonic() - began)
        say(stopped=stopped, state=watcher.state)
        watcher.start()
    watcher.stop()
    say(seen=seen, told=attempts.told[:6], took=took)
"""


def test_a_stop_during_a_delay_returns_at_once(failing: Failing) -> None:
    with three_watched(failing, initial_backoff=600.0, max_backoff=600.0) as three:
        failing.insert(2)
        for watched in three:
            watched.wait_for_all()
        failing.fail("alwaysOn", errorCode=6)
        wait_until(lambda: all(watched.attempts for watched in three))

        took = [stop(watched) for watched in three]

    assert min(took) < AT_ONCE


def test_a_stop_ends_a_start_that_waits_to_reconnect(failing: Failing) -> None:
    failing.fail("alwaysOn", "aggregate", errorCode=6)
    watched, states = Watched(failing, initial_backoff=600.0, max_backoff=600.0), []
    starting = threading.Thread(target=lambda: states.append(watched.watcher.start()))
    starting.start()
    wait_until(lambda: watched.attempts)
    assert watched.watcher.state == "starting"

    watched.watcher.stop()
    starting.join(30)

    assert states == ["stopped"]


def test_one_warning_and_one_line_of_relief_for_each_outage(failing: Failing, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rigatoni.stream")
    with Watched(failing, max_reconnect_attempts=0) as watched:
        for outages in (1, 2):
            failing.fail({"times": 7}, errorCode=6)
            watched.wait_for_recovery(7 * outages)

    assert told_of_the_stream(caplog) == ["WARNING reconnecting", "INFO connected"] * 2


def test_a_restart_of_the_server_loses_nothing_and_repeats_nothing(
    failing: Failing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rigatoni.stream")
    with Watched(failing, max_reconnect_attempts=0, max_backoff=0.1) as watched:
        failing.insert(20)
        watched.wait_for_all()
        failing.insert(20)
        failing.replica_set.stop(0)
        wait_until(lambda: watched.stream["state"] == "reconnecting")
        failing.replica_set.restart(0)
        failing.insert(20)
        watched.wait_for_all()
        wait_until(lambda: watched.stream["state"] == "active")

    told = told_of_the_stream(caplog)
    assert told == ["WARNING reconnecting", "INFO connected"] * (len(told) // 2)


def test_a_stop_while_the_server_is_away_waits_for_nobody(failing: Failing) -> None:
    with three_watched(failing, max_reconnect_attempts=0, max_backoff=0.1) as three:
        failing.insert()
        for watched in three:
            watched.wait_for_all()
        failing.replica_set.kill(0)
        try:
            wait_until(lambda: all(watched.stream["state"] == "reconnecting" for watched in three))
            took = [stop(watched) for watched in three]
        finally:
            failing.replica_set.restart(0)

    assert min(took) < AT_ONCE


def test_a_frozen_server_is_noticed_and_the_stream_goes_on_once_it_thaws(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "PATIENCE", 0.2)
    monkeypatch.setattr(cursor, "ANSWERING", 0.2)
    with Watched(failing, max_reconnect_attempts=0, max_backoff=0.1) as watched:
        failing.insert(5)
        watched.wait_for_all()
        failing.replica_set.freeze(0)
        try:
            wait_until(lambda: len(watched.attempts) > 3)
            assert watched.stream["state"] == "reconnecting"
        finally:
            failing.replica_set.thaw(0)
        failing.insert(5)
        watched.wait_for_all()

    assert "ping" in watched.attempts[0][0]


def test_a_watcher_of_a_frozen_server_stops_all_the_same(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursor, "PATIENCE", 0.05)
    monkeypatch.setattr(cursor, "ANSWERING", 0.05)
    with Watched(failing, max_reconnect_attempts=0, max_backoff=0.01) as watched:
        failing.replica_set.freeze(0)
        try:
            # Every attempt leaves calls behind that nobody answers.
            wait_until(lambda: len(watched.attempts) > 10)
            assert watched.watcher.stop()
        finally:
            failing.replica_set.thaw(0)

    assert watched.watcher.state == "stopped"


def test_a_server_that_is_silent_but_answers_pings_is_catching_up_and_waited_for(
    failing: Failing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "rigatoni.cursor")
    monkeypatch.setattr(cursor, "PATIENCE", 0.1)
    with Watched(failing) as watched:
        assert watched.stream["catching_up"] is False
        failing.fail({"times": 1}, blockConnection=True, blockTimeMS=1500)
        wait_until(lambda: watched.stream["catching_up"])
        failing.insert(3)
        watched.wait_for_all()
        wait_until(lambda: not watched.stream["catching_up"])

        assert watched.stream["state"] == "active"
    assert (watched.attempts, watched.openings) == ([], 1)
    # Another one may have been silent for a moment, too, on a busy machine.
    told = [record.message for record in caplog.records if record.name == "rigatoni.cursor"]
    assert told and all("answers pings" in each for each in told)


def test_a_silent_command_is_waited_for_no_longer_than_it_takes_because_of_a_silent_ping(
    failing: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "PATIENCE", 2.0)
    monkeypatch.setattr(cursor, "ANSWERING", 2.0)
    silent = {"blockConnection": True, "blockTimeMS": 3000, "errorCode": 6}
    failing.fail({"times": 2}, failCommands=["aggregate", "ping"], **silent)
    with Watched(failing) as watched:
        failing.insert()
        watched.wait_for_all()

    ((why, _, _),) = watched.attempts
    assert "code 6" in why and "ping" not in why


@pytest.mark.parametrize("fault", [{"errorCode": 6}, {"closeConnection": True}])
def test_a_patched_program_reconnects_and_stops_during_a_delay_likewise(
    failing: Failing, tmp_path: Path, fault: dict[str, Any]
) -> None:
    program = run_program(
        PATCHED,
        tmp_path,
        patched=True,
        uri=failing.uri,
        other=failing.replica_set.uri,
        name=failing.name,
        fault=fault,
    )

    *stops, told = program.lines
    assert min(told.pop("took")) < AT_ONCE
    assert told == {"seen": [1, 2, 3], "told": [1, 2] * 3}
    assert stops == 3 * [{"stopped": True, "state": "stopped"}]
