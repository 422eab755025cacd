"""What lies between a watcher and its server: connections break in the middle of a reply, go silent, or are slow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from conftest import wait_until
from programs import BOTH, Program
from proxy import Proxy

PROGRAM = """
from rigatoni import ChangeStreamConfig, Hooks, MemoryStore, Watcher, cursor


class Told(Hooks):
    def reconnecting(self, stream, error, attempt, delay):
        say(because=str(error))


cursor.PATIENCE = given["patience"] or cursor.PATIENCE
cursor.ANSWERING = given["answering"] or cursor.ANSWERING
config = ChangeStreamConfig(max_reconnect_attempts=0, max_backoff=0.1, **given["config"])
watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), config=config, hooks=[Told()])


@watcher.on("insert", collection="orders")
def see(event):
    say(seen=event.document_key["_id"])


ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
watcher.start()
say(started=True)
told = None
while not ends:
    stream = watcher.stats()["streams"][given["database"]]
    now = {"state": stream["state"], "catching_up": stream["catching_up"], "is_behind": stream["lag"] != 0}
    if now != told:
        say(now=now)
    told = now
    time.sleep(0.01)
say(stopped=watcher.stop(), reconnects=watcher.stats()["reconnects"])
"""

#: Time limits and waits so short that a test of the mechanism takes no longer than it must.
SHORT: dict[str, Any] = {
    "patience": 0.2,
    "answering": 0.2,
    "config": {"max_await_time": 0.1, "initial_backoff": 0.01},
}
#: The same where pings are to be answered, also by a busy machine.
PATIENT = {**SHORT, "answering": None}
#: Those that are there for everybody.
REAL: dict[str, Any] = {"patience": None, "answering": None, "config": {}}


@contextmanager
def watching(proxy: Proxy, database: Any, folder: Path, patched: bool, limits: dict[str, Any]) -> Iterator[Program]:
    """Run a program that watches the orders through the proxy; in the end it must stop at once, as it always must."""
    with Program(PROGRAM, folder, patched=patched, uri=proxy.uri, database=database.name, **limits) as program:
        program.wait_said("started")
        yield program
        program.signal(15)
        program.end()
        assert program.said("stopped") == [True]


def is_now(program: Program, **expected: object) -> Callable[[], bool]:
    """Ask whether the stream is as expected."""
    return lambda: expected.items() <= (program.said("now") or [{}])[-1].items()


def wait_for_all(program: Program, inserted: list[int]) -> None:
    """Wait until everything was seen: once, in order."""
    program.wait_for(lambda: len(program.said("seen")) >= len(inserted))
    assert program.said("seen") == inserted


def insert(database: Any, *keys: int) -> list[int]:
    database.orders.insert_many([{"_id": key, "text": "x" * 200} for key in keys])
    return list(keys)


def freeze_under_way(proxy: Proxy) -> None:
    """Freeze the connection over which a reply with events is awaited; before and between two there is none."""
    wait_until(lambda: proxy.freeze(lambda link: link.awaits_events))


@BOTH
def test_a_reply_that_breaks_off_is_asked_for_again_and_nothing_is_lost_or_repeated(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    inserted: list[int] = []
    with (
        Proxy(mongodb_replica_set.uri_of(0)) as proxy,
        # With the real patience: after a break the driver waits half a second before it asks the server who it is.
        watching(proxy, database, tmp_path, patched, {**PATIENT, "patience": None}) as program,
    ):
        # Before all, in the header of the message, in what precedes the events, and in the midst of them.
        for cuts, after in enumerate([0, 7, 100, 3000], 1):
            proxy.cut(after)
            inserted += insert(database, *range(20 * cuts, 20 * cuts + 20))
            wait_until(lambda cuts=cuts: proxy.cuts == cuts)
            wait_for_all(program, inserted)
        assert len(program.said("because")) == proxy.cuts


@BOTH
def test_when_all_connections_are_dead_an_unanswered_ping_or_heartbeat_tells_and_the_stream_goes_on_over_others(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    with (
        Proxy(mongodb_replica_set.uri_of(0)) as proxy,
        watching(proxy, database, tmp_path, patched, SHORT) as program,
    ):
        program.wait_for(is_now(program, state="active", is_behind=False))
        proxy.freeze(new_ones=True)
        inserted = insert(database, 1, 2, 3)
        program.wait_for(is_now(program, state="reconnecting", is_behind=True))
        proxy.thaw()
        wait_for_all(program, inserted)
        program.wait_for(is_now(program, state="active", is_behind=False))
    # The driver's heartbeats are answered no more either, and now and then it is they that are missed first.
    assert re.search("did not answer (a ping|the driver's heartbeats)", program.said("because")[0])


def test_a_dead_connection_of_a_cursor_waits_for_tcp_to_notice_as_long_as_pings_are_answered(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    with (
        Proxy(mongodb_replica_set.uri_of(0)) as proxy,
        watching(proxy, database, tmp_path, False, PATIENT) as program,
    ):
        freeze_under_way(proxy)
        inserted = insert(database, 1, 2, 3)
        # Not to be told from a server that scans its oplog for hours.
        program.wait_for(is_now(program, state="active", catching_up=True, is_behind=True))
        proxy.close_frozen()
        wait_for_all(program, inserted)
        program.wait_for(is_now(program, state="active", catching_up=False, is_behind=False))


def test_a_server_that_was_catching_up_and_goes_away_is_reconnected_to_and_no_longer_catching_up(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    with (
        Proxy(mongodb_replica_set.uri_of(0)) as proxy,
        watching(proxy, database, tmp_path, False, PATIENT) as program,
    ):
        freeze_under_way(proxy)
        program.wait_for(is_now(program, state="active", catching_up=True))
        proxy.freeze(new_ones=True)
        program.wait_for(is_now(program, state="reconnecting"))
        assert program.said("now")[-1]["catching_up"] is False


@pytest.mark.faults
@BOTH
def test_a_silent_network_is_noticed_within_the_time_that_is_promised(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    with (
        Proxy(mongodb_replica_set.uri_of(0)) as proxy,
        watching(proxy, database, tmp_path, patched, REAL) as program,
    ):
        proxy.freeze(new_ones=True)
        began = monotonic()
        inserted = insert(database, 1, 2, 3)
        program.wait_for(is_now(program, state="reconnecting"))
        # The await of 1 s, 5 s of silence, and 5 s for the ping; what is over is for a busy machine.
        assert monotonic() - began < 16
        proxy.thaw()
        wait_for_all(program, inserted)
    # By the driver's monitor, which is earlier than a ping and closes the connection of the stream.
    assert "it did not answer the driver's heartbeats" in program.said("because")[0]


@pytest.mark.faults
@BOTH
@pytest.mark.parametrize("wire", [{"rate": 1000.0}, {"latency": 1.0}], ids=["1 kB/s", "2 s there and back"])
def test_a_slow_network_makes_it_slow_and_breaks_nothing(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool, wire: dict[str, float]
) -> None:
    with (
        Proxy(mongodb_replica_set.uri_of(0), **wire) as proxy,
        watching(proxy, database, tmp_path, patched, REAL) as program,
    ):
        inserted = insert(database, *range(20))
        wait_for_all(program, inserted)
        inserted += insert(database, *range(20, 40))
        wait_for_all(program, inserted)
    assert program.said("reconnects") == [0]
