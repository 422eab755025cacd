"""ChangeStreamListener: other threads and greenlets."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import wait_until
from listening import LONG, QUICK, insert, keys, take
from programs import run_program

from rigatoni import ChangeStreamListener

PATCHED = """
import gevent
import pytest
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


def test_a_wait_that_is_interrupted_loses_nothing_and_is_no_error(
    database: Any, caplog: pytest.LogCaptureFixture
) -> None:
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
    assert caplog.records == []


def test_in_a_patched_process_other_greenlets_go_on_and_one_of_them_may_close(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    program = run_program(PATCHED, tmp_path, patched=True, uri=mongodb_replica_set.uri, database=database.name)

    assert program.lines == [{"keys": [0, 1, 2], "state": "closed", "told": True, "passed": True}]
