"""Whole programs, patched by gevent or not: events arrive, the main hub goes on, signals end them."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from programs import Program

from rigatoni import SQLiteStore

BOTH = pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])

WATCH = """
import logging
import gevent
from rigatoni import Hooks, MemoryStore, Watcher
logging.basicConfig(level=logging.WARNING)

class Started(Hooks):
    def saved(self, stream, token):
        say(started=True)

options = given.get("options", {})
watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), hooks=[Started()], **options)
"""

RUN = (
    WATCH
    + """
@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"], ticks=ticks[0])

ticks = [0]

def tick():
    while True:
        ticks[0] += 1
        gevent.sleep(0.01)

gevent.spawn(tick)
former = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
watcher.run()
say(state=watcher.state, ticks=ticks[0])
say(restored=former == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)))
"""
)

SLEEP = (
    WATCH
    + """
@watcher.on("insert")
def handle(event):
    handled.append(event.document_key["_id"])

handled = []
say(state=watcher.start())
for _ in range(600):
    time.sleep(0.1)
    if len(handled) == 20:
        break
say(handled=handled)
say(stopped=watcher.stop(), state=watcher.state)
"""
)

SERVE = (
    WATCH
    + """
from http.server import BaseHTTPRequestHandler, HTTPServer


@watcher.on("insert")
def handle(event):
    handled.append(event.document_key["_id"])


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(handled).encode())


handled = []
server = HTTPServer(("127.0.0.1", 0), Answer)
watcher.start()
say(port=server.server_port)
server.serve_forever()
"""
)

HANG = (
    WATCH
    + """
@watcher.on("insert")
def handle(event):
    say(hangs=True)
    time.sleep(600)

watcher.run()
say(state=watcher.state)
"""
)

FAIL = (
    WATCH
    + """
@watcher.on("insert")
def handle(event):
    raise ValueError("no such parcel")

watcher.run()
"""
)

FORGETFUL = (
    WATCH
    + """
@watcher.on("insert")
def handle(event):
    pass

say(state=watcher.start())
"""
)

#: https://github.com/python/cpython/issues/113964, mended in 3.12.2
STARTS_NO_THREADS = (3, 12) <= sys.version_info < (3, 12, 2)

ASKED = (
    WATCH
    + """
handled = []


@watcher.on("insert")
def handle(event):
    gevent.sleep(0)
    handled.append(event.document_key["_id"])


watcher.start()
say(started=True)
sys.setswitchinterval(1e-5)
while len(handled) < given["count"]:
    watcher.stats()
    # What a stop asks first of all, and a watcher can be asked only once.
    assert not watcher._life.is_inside()
say(stopped=watcher.stop(), handled=len(handled))
"""
)

LEFT_TO_A_THREAD = (
    WATCH
    + """
import threading

@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"])
    done.set()

done = threading.Event()
threading.Thread(target=lambda: done.wait(60)).start()
say(state=watcher.start())
"""
)

NOT_KEPT = (
    WATCH
    + """
import gc
from rigatoni import SQLiteStore


def watch(name):
    watcher = Watcher(given["uri"], given["database"], name=name, store="tokens.db")

    @watcher.on("insert")
    def handle(event):
        say(began=True)
        # Less than handlers get at the end.
        time.sleep(0.1)
        say(returned=True)

    watcher.start()


del watcher
watch("orders")
gc.collect()
say(started=True)
while not os.path.exists("end"):
    time.sleep(0.01)
"""
)

TWO_EXIT_THREADS = """
from rigatoni import signals


class Ending:
    def __init__(self, name):
        self.name = name

    def exiting(self):
        say(stopped=self.name)


two = Ending("one"), Ending("other")
signals.stop_at_exit(two[0])
# As for whom it was not yet there: another thread that starts its first watcher in this moment.
signals._stopper = None
signals.stop_at_exit(two[1])
"""

NO_THREADS = (
    WATCH
    + """
import threading

watcher.on()(say)
for _ in range(2):
    # More than there are addresses.
    threading.stack_size(1 << 47)
    try:
        watcher.start()
    except RuntimeError as error:
        say(refused=str(error), state=watcher.state, stopped=watcher.stop(1))
    threading.stack_size(0)
    say(state=watcher.start(), stopped=watcher.stop())
"""
)

SHORT_OF_THREADS = (
    WATCH
    + """
import threading


class Told(Hooks):
    def reconnecting(self, stream, error, attempt, delay):
        say(because=str(error))


watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), hooks=[Told()])
watcher.on()(lambda event: say(handled=event.document_key["_id"]))
say(state=watcher.start())
# More than there are addresses.
threading.stack_size(1 << 47)
while not os.path.exists("enough"):
    time.sleep(0.01)
threading.stack_size(0)
while not os.path.exists("end"):
    time.sleep(0.01)
say(state=watcher.state, stopped=watcher.stop())
"""
)

CONCURRENT = (
    WATCH
    + """
@watcher.on("insert", timeout=5)
def handle(event):
    pass

with watcher:
    pass
"""
)


@BOTH
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_while_run_blocks_events_arrive_and_greenlets_go_on_until_a_signal(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool, number: int
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(RUN, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.orders.insert_many([{"_id": number} for number in range(20)])
        program.wait_for(lambda: len(program.said("handled")) == 20)
        before = program.said("ticks")[-1]
        database.orders.insert_one({"_id": 20})
        program.wait_for(lambda: len(program.said("handled")) == 21)
        program.signal(number)
        assert program.end() == 0, program.complaints
        assert program.said("handled") == list(range(21))
        assert program.said("state") == ["stopped"] and program.said("restored") == [True]
        assert program.said("ticks")[-1] > before > 0
        assert "Traceback" not in program.complaints


@BOTH
def test_while_a_started_program_sleeps_events_are_handled(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(SLEEP, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.orders.insert_many([{"_id": number} for number in range(20)])
        assert program.end() == 0, program.complaints
        assert program.said("handled") == [list(range(20))]
        assert program.said("stopped") == [True] and program.said("state") == ["running", "stopped"]


@BOTH
def test_while_a_program_serves_in_its_main_thread_events_are_handled(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(SERVE, tmp_path, patched=patched, **given) as program:
        url = f"http://127.0.0.1:{program.wait_said('port')}/"
        database.orders.insert_many([{"_id": number} for number in range(20)])

        def answer() -> Any:
            with urlopen(url, timeout=10) as reply:
                return json.load(reply)

        program.wait_for(lambda: answer() == list(range(20)))


@BOTH
def test_a_second_signal_ends_run_at_once_though_a_handler_hangs(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(HANG, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.orders.insert_one({})
        program.wait_said("hangs")
        program.signal(signal.SIGINT)
        with pytest.raises(AssertionError, match="still running"):
            program.end(timeout=0.5)
        # Another one, because two of a kind may arrive as one.
        program.signal(signal.SIGTERM)
        # The handler alone would be waited for for 10 s.
        assert program.end(timeout=9) == 0, program.complaints
        assert program.said("state")
        assert "handle with " in program.complaints


@BOTH
def test_a_fatal_error_ends_run_with_it(database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(FAIL, tmp_path, patched=patched, options={"on_error": "stop"}, **given) as program:
        program.wait_said("started")
        database.orders.insert_one({})
        assert program.end() == 1
        assert "HandlerError" in program.complaints and "no such parcel" in program.complaints
        assert program.complaints.count("ERROR") == 1


@BOTH
def test_a_program_may_end_without_a_stop(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(FORGETFUL, tmp_path, patched=patched, **given) as program:
        assert program.end() == 0, program.complaints
        assert program.said("state") == ["running"]
        assert STARTS_NO_THREADS or "Traceback" not in program.complaints


def test_the_main_thread_may_ask_and_stop_while_lanes_come_and_go(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "count": 3000}
    with Program(ASKED, tmp_path, options={"concurrency": 50}, **given) as program:
        program.wait_said("started")
        for _ in range(30):
            database.orders.insert_many([{} for _ in range(100)])
        assert program.end() == 0, program.complaints
        assert program.said("stopped") == [True] and program.said("handled") == [3000]


def test_a_watcher_to_which_the_program_does_not_refer_is_stopped_at_its_end(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(NOT_KEPT, tmp_path, **given) as program:
        program.wait_said("started")
        database.orders.insert_one({})
        program.wait_said("began")
        (tmp_path / "end").touch()
        assert program.end() == 0, program.complaints
        assert program.said("returned") == [True]
    status = SQLiteStore(tmp_path / "tokens.db").status("orders")
    assert status is not None and status["state"] == "stopped"


def test_a_program_ends_whose_first_watchers_were_started_in_the_same_moment(tmp_path: Path) -> None:
    with Program(TWO_EXIT_THREADS, tmp_path) as program:
        assert program.end() == 0, program.complaints
        assert {*program.said("stopped")} == {"one", "other"}


@pytest.mark.skipif(STARTS_NO_THREADS, reason="this version of Python starts no thread when the main one has ended")
def test_a_program_that_goes_on_in_another_thread_has_not_ended(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(LEFT_TO_A_THREAD, tmp_path, **given) as program:
        assert program.wait_said("state") == "running"
        database.orders.insert_one({"_id": 1})
        assert program.end() == 0, program.complaints
        assert program.said("handled") == [1]
        assert "Traceback" not in program.complaints


@BOTH
def test_only_an_unpatched_program_is_told_once_that_concurrency_has_no_effect(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(CONCURRENT, tmp_path, patched=patched, options={"concurrency": 5}, **given) as program:
        assert program.end() == 0, program.complaints
        assert program.complaints.count("concurrency and timeout= have no effect") == (0 if patched else 1)


def test_a_running_watcher_survives_a_time_in_which_no_thread_can_be_started(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(SHORT_OF_THREADS, tmp_path, **given) as program:
        assert "can't start new thread" in program.wait_said("because")
        database.orders.insert_one({"_id": 1})
        (tmp_path / "enough").touch()
        assert program.wait_said("handled") == 1
        (tmp_path / "end").touch()
        assert program.end() == 0, program.complaints
        assert program.said("state") == ["running"] * 2 and program.said("stopped") == [True]


def test_where_no_thread_can_be_started_start_raises_and_works_once_there_are_threads_again(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(NO_THREADS, tmp_path, **given) as program:
        assert program.end() == 0, program.complaints
        assert program.said("refused") == ["can't start new thread"] * 2
        assert program.said("stopped") == [True] * 4
        states = program.said("state")
        assert states[1] == states[3] == "running" and states[2] in ("stopped", "failed")
        # The first time not even what stops it at the program's end was there.
        assert states[0] in ("created", "stopped", "failed")
