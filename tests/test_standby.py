"""One active watcher per store and name: the others stand by, and take over by themselves."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from programs import Program
from watchers import Make, collecting, messages, watchers

from rigatoni import ChangeStreamConfig, ConfigurationError, SQLiteStore, Watcher

WATCH = """
import gevent
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"], name="parcels")

@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"])

def tell():
    while watcher.state not in ("standby", "running"):
        gevent.sleep(0.01)
    say(state=watcher.state)
    while watcher.state != "running":
        gevent.sleep(0.01)
    say(running=time.time())

gevent.spawn(tell)
watcher.run()
"""

STARVED = """
import resource
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"], name="parcels")
watcher.on("insert")(say)
assert watcher.start() == "standby"
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
files = []
try:
    while True:
        files.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    say(full=str(error))
# Longer than it takes to ask twice.
time.sleep(1.2)
while files:
    os.close(files.pop())
say(free=watcher.state)
while watcher.state != "running":
    time.sleep(0.01)
say(running=True)
watcher.stop()
"""


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any, store_path: str) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"store": store_path, "name": "parcels", **options})


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any, store_path: str) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}


@pytest.fixture
def first(given: Any, tmp_path: Path) -> Any:
    """Another process that is active."""
    with Program(WATCH, tmp_path, **given) as program:
        program.wait_said("running")
        yield program


def standing_by(watcher: Watcher) -> list[Any]:
    """Start a watcher beside another process."""
    seen = collecting(watcher, "insert")
    assert watcher.start() == "standby" == watcher.state
    return seen


@pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])
def test_a_second_process_takes_over_within_two_seconds_of_the_firsts_end_and_loses_nothing(
    database: Any, given: Any, tmp_path: Path, first: Program, patched: bool
) -> None:
    stop, written, programs = threading.Event(), list[int](), [first]
    taken: list[float] = []

    def write() -> None:
        while not stop.is_set():
            database.orders.insert_one({"_id": len(written)})
            written.append(len(written))

    def is_at_work() -> bool:
        return len(programs[-1].said("handled")) > 50

    with ExitStack() as others:
        writer = threading.Thread(target=write)
        others.callback(writer.join)
        others.callback(stop.set)
        writer.start()
        # The best of three, because anything else on this machine may hold up one of them.
        while len(taken) < 3 and min(taken, default=2) >= 2:
            other = others.enter_context(Program(WATCH, tmp_path, patched=patched, **given))
            assert other.wait_said("state") == "standby"
            wait_until(is_at_work)
            programs[-1].kill()
            killed = time.time()
            programs.append(other)
            taken.append(other.wait_said("running") - killed)
        wait_until(is_at_work)
        stop.set()
        writer.join()
        wait_until(lambda: {number for each in programs for number in each.said("handled")} == set(written))
        print(f"taken over {min(taken):.2f} s after a kill -9")
        assert min(taken) < 2
        # Each of them in order, and none of the second's older than what the first had not saved yet.
        for each in programs:
            assert each.said("handled") == sorted(set(each.said("handled")))


def test_who_stands_by_survives_a_time_without_descriptors(given: Any, tmp_path: Path, first: Program) -> None:
    with Program(STARVED, tmp_path, **given) as second:
        assert second.wait_said("full")
        assert second.wait_said("free") == "standby", second.complaints
        first.kill()
        second.wait_said("running")


def test_who_stands_by_handles_nothing_and_says_once_who_is_active(
    database: Any, make: Make, first: Program, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = make()
    seen = standing_by(watcher)
    database.orders.insert_one({"_id": 1})
    first.wait_for(lambda: first.said("handled") == [1])
    # Longer than it takes to ask again.
    assert watcher.join(0.7) is False
    assert seen == [] and watcher.state == "standby" and watcher.stats()["state"] == "standby"
    (warning,) = messages(caplog, logging.WARNING)
    assert f"pid {first.pid}" in warning and "'parcels'" in warning and "standing by" in warning
    assert watcher.store.status("parcels")["pid"] == first.pid


def test_after_a_clean_end_of_the_first_nothing_is_repeated(
    database: Any, make: Make, given: Any, tmp_path: Path
) -> None:
    taken: list[float] = []
    # The best of three, because anything else on this machine may hold up one of them.
    while len(taken) < 3 and min(taken, default=2) >= 2:
        with Program(WATCH, tmp_path, **given) as first:
            first.wait_said("running")
            taken.append(take_over(first, make(), database, range(21 * len(taken), 21 * len(taken) + 21)))
    print(f"taken over {min(taken):.2f} s after an end by SIGTERM")
    assert min(taken) < 2


def take_over(first: Program, watcher: Watcher, database: Any, numbers: range) -> float:
    """End the first by SIGTERM, and say how long after its end the one that stood by was active."""
    *before, after = numbers
    seen = standing_by(watcher)
    database.orders.insert_many([{"_id": number} for number in before])
    first.wait_for(lambda: first.said("handled") == before)
    first.signal(signal.SIGTERM)
    assert first.end() == 0
    gone = time.monotonic()
    wait_until(lambda: watcher.state == "running")
    taken = time.monotonic() - gone
    database.orders.insert_one({"_id": after})
    wait_until(lambda: seen)
    assert watcher.stop() and seen == [after]
    return taken


def test_a_stop_ends_standing_by(make: Make, first: Program) -> None:
    watcher = make()
    standing_by(watcher)
    began = time.monotonic()
    assert watcher.stop() is True
    assert time.monotonic() - began < 2
    assert watcher.state == "stopped" and watcher.join()
    # The name was never its own.
    reader = SQLiteStore(watcher.store.location)
    assert reader.status("parcels")["pid"] == first.pid and reader.holder("parcels").startswith(f"pid {first.pid}")
    reader.close()
    assert watcher.start() == "standby"


def test_a_second_start_is_refused_while_standing_by(make: Make, first: Program) -> None:
    watcher = make()
    standing_by(watcher)
    with pytest.raises(ConfigurationError, match="standby already"):
        watcher.start()


def test_a_take_over_that_fails_ends_in_failed(make: Make, first: Program, caplog: pytest.LogCaptureFixture) -> None:
    watcher = make(config=ChangeStreamConfig(pipeline=[{"$group": {"_id": 1}}]))
    standing_by(watcher)
    first.kill()
    with pytest.raises(ConfigurationError) as caught:
        watcher.join(60)
    assert watcher.state == "failed" and watcher.error is caught.value
    assert len(messages(caplog)) == 1
    assert watcher.store.status("parcels")["state"] == "failed"
    # The name is free for the next.
    next_one = make()
    collecting(next_one)
    assert next_one.start() == "running"


def test_a_second_watcher_of_one_name_is_refused_while_the_first_of_this_process_stands_by(
    make: Make, first: Program
) -> None:
    one, two = make(), make()
    standing_by(one)
    collecting(two, "insert")
    with pytest.raises(ConfigurationError, match="stands by for 'parcels' already"):
        two.start()
    assert one.state == "standby" and one.stop()
    assert two.start() == "standby"


def test_who_takes_over_and_finds_no_server_is_no_longer_standing_by(make: Make, first: Program) -> None:
    watcher = make(client="mongodb://127.0.0.1:9/", config=ChangeStreamConfig(max_reconnect_attempts=0))
    standing_by(watcher)
    first.kill()
    wait_until(lambda: watcher.state == "starting")
    wait_until(lambda: (watcher.store.status("parcels") or {}).get("state") == "starting")
    assert watcher.stop() and watcher.state == "stopped"


def test_another_name_or_another_store_does_not_stand_by(
    database: Any, make: Make, first: Program, tmp_path: Path
) -> None:
    other_name, other_store = make(name="letters"), make(store=tmp_path / "other.db")
    seen = [collecting(other_name, "insert"), collecting(other_store, "insert")]
    assert (other_name.start(), other_store.start()) == ("running", "running")
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: [*seen, first.said("handled")] == [[1], [1], [1]])
