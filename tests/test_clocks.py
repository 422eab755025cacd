"""A wall clock that jumps: what waits waits as long as ever, and nobody is ahead of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import wait_until
from programs import BOTH, Program
from proxy import Proxy

from rigatoni import SQLiteStore

PROGRAM = """
offset, strobe, wall_clock = 0.0, 1, time.time


def jumping():
    global strobe
    strobe = -strobe
    return wall_clock() + (3600 * strobe if offset is None else offset)


time.time = jumping
time.time_ns = lambda: int(1e9 * jumping())

import gevent
from rigatoni import ChangeStreamConfig, Hooks, RetryPolicy, Watcher

WAIT = given["wait"]
began = {}


def begin(what):
    began[what] = time.monotonic()


def end(what):
    if what in began:
        say(**{what: time.monotonic() - began.pop(what)})


class Waits(Hooks):
    def received(self, stream, count, size):
        begin("batch")

    def failed(self, event, error, attempt):
        if event.collection == "hanging":
            end("timeout")

    def reconnecting(self, stream, error, attempt, delay):
        if attempt == 1:
            begin("reconnection")

    def opened(self, stream):
        end("reconnection")


config = ChangeStreamConfig(max_await_time=0.1, initial_backoff=WAIT, backoff_jitter=0.0)
retry = RetryPolicy(max_attempts=2, initial_backoff=WAIT, backoff_jitter=0.0)
watcher = Watcher(given["uri"], given["database"], store=given["store"], config=config, retry=retry, hooks=[Waits()])


@watcher.on("insert", collection="clock")
def jump(event):
    global offset
    offset = event.full_document["offset"]
    say(jumped=True)


@watcher.on("insert", collection="failing")
def fail(event):
    if "retry" not in began:
        begin("retry")
        raise ValueError("once")
    end("retry")


@watcher.on_batch("insert", collection="batched", max_wait=WAIT)
def gather(events):
    end("batch")


@watcher.on("insert", collection="hanging", timeout=WAIT, on_error="skip", retry=RetryPolicy(max_attempts=1))
def hang(event):
    begin("timeout")
    gevent.sleep(3600)


ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
watcher.start()
say(started=True)
lowest = {"lag": 0.0, "headroom": 0.0}
known = set()
while not ends:
    stats = watcher.stats()
    known |= {name for name in lowest if stats[name] is not None}
    lowest = {name: min(least, stats[name] or 0.0) for name, least in lowest.items()}
    time.sleep(0.005)
stopping = time.monotonic()
say(stopped=watcher.stop(), took=time.monotonic() - stopping, known=sorted(known), **lowest)
"""

#: Seconds that each of the waits takes, whatever the time is.
WAIT = 0.2
HOUR = 3600.0
WAITS = ["retry", "batch", "timeout", "reconnection"]


@BOTH
def test_every_wait_takes_as_long_as_ever_and_no_lag_is_negative_when_the_clock_jumps(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, store_path: str, patched: bool
) -> None:
    given = {"database": database.name, "store": store_path, "wait": WAIT}
    with (
        Proxy(mongodb_replica_set.uri_of(0)) as proxy,
        Program(PROGRAM, tmp_path, patched=patched, uri=proxy.uri, **given) as program,
    ):
        program.wait_said("started")
        # The last one is ahead and behind in turn, at every look.
        for jumps, offset in enumerate([HOUR, -HOUR, 400 * 24 * HOUR, None], 1):
            database.clock.insert_one({"offset": offset})
            program.wait_for(lambda jumps=jumps: len(program.said("jumped")) == jumps)
            # The batch waits from the reply that it came with, which is to be the last one.
            for collection in ("failing", "hanging", "batched"):
                database[collection].insert_one({})
            proxy.cut(0)
            for wait in WAITS:
                program.wait_for(lambda wait=wait, jumps=jumps: len(program.said(wait)) == jumps)
            if offset == -HOUR:
                wait_until(lambda jumps=jumps: saved(store_path)["received"] == 4 * jumps)
        program.signal(15)
        assert program.end() == 0

    # Measured from a little after its beginning, and late when the machine is busy; an hour it is not.
    for wait in WAITS:
        assert all(0.5 * WAIT <= seconds < WAIT + 20 for seconds in program.said(wait)), (wait, program.said(wait))
    assert program.said("stopped") == [True] and program.said("took")[0] < 5
    assert (program.said("lag"), program.said("headroom")) == ([0.0], [0.0])
    # And they were there to be looked at.
    assert program.said("known") == [["headroom", "lag"]]


def saved(path: str) -> dict[str, Any]:
    """Read the status row, which is written once a second."""
    store = SQLiteStore(path)
    store.open()
    try:
        return store.status("default") or {}
    finally:
        store.close()
