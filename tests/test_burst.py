"""Very many or very large events while a handler is slow: memory is bounded, and nothing is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from programs import BOTH, Program

EVENTS = 200_000
#: Bytes of one document; all of them are far more than what may be in memory.
PADDING = 1000
#: Megabytes. In flight are at most 16 MiB of BSON, and two replies more; decoded they take several times as much.
MOST = 150

SLOW = """
import gevent
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"])
count = expected = 0


@watcher.on("insert", collection="orders")
def handle(event):
    global count, expected
    assert event.document_key["_id"] == expected, "out of order, lost or repeated"
    expected += 1
    if count == 0:
        # Everything is written while this one event is handled.
        while not os.path.exists("go on"):
            gevent.sleep(0.01)
    count += 1
    if count % 100 == 0:
        gevent.sleep(0.001)


def memory():
    with open("/proc/self/status") as file:
        (line,) = [line for line in file if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


say(state=watcher.start(), before=memory())
while True:
    # Apart, so that five equal ones in a row mean that it stands.
    gevent.sleep(0.2)
    stats = watcher.stats()
    if watcher.error is not None:
        break
    say(count=count, memory=memory(), in_flight=stats["in_flight"], received=stats["received"])
watcher.join()
"""


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any, store_path: str) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}


def insert(database: Any, count: int, padding: int) -> None:
    for first in range(0, count, 5000):
        numbers = range(first, min(first + 5000, count))
        database.orders.insert_many({"_id": number, "padding": "x" * padding} for number in numbers)


def wait_until_held(program: Program, at_least: int) -> dict[str, Any]:
    """Wait until so many are in flight and they become no more; return what the program said last."""

    def stand() -> bool:
        latest = program.said("in_flight")[-5:]
        return latest[-1:] > [at_least] and latest == 5 * latest[-1:]

    program.wait_for(stand)
    return program.lines[-1]


@BOTH
def test_of_large_events_no_more_are_in_flight_than_16_mib(
    patched: bool, database: Any, given: dict[str, str], tmp_path: Path
) -> None:
    with Program(SLOW, tmp_path, patched=patched, **given) as program:
        program.wait_said("state")
        insert(database, 4000, padding=10_000)
        held = wait_until_held(program, at_least=1000)
        (tmp_path / "go on").touch()
        program.wait_for(lambda: program.said("count")[-1] == 4000)
        most = max(program.said("in_flight"))
    print(f"held with {held['in_flight']} in flight, {most} at most")
    # Some 1,600 of them are 16 MiB; by `max_in_flight` all of them might be in flight.
    assert 1000 < held["in_flight"] <= most < 1800


@pytest.mark.faults
@BOTH
def test_a_burst_on_a_slow_handler_is_handled_in_order_within_bounded_memory(
    patched: bool, database: Any, given: dict[str, str], tmp_path: Path
) -> None:
    with Program(SLOW, tmp_path, patched=patched, **given) as program:
        before = program.wait_said("before")
        insert(database, EVENTS, PADDING)
        held = wait_until_held(program, at_least=0)
        (tmp_path / "go on").touch()
        program.wait_for(lambda: program.said("count")[-1] == EVENTS, timeout=300)
        most = program.said("memory")[-1] - before
    print(f"held with {held['in_flight']} in flight, {held['received']} received; {most:.0f} MB more at most")
    assert 0 < held["in_flight"] <= 10_000 < EVENTS
    assert EVENTS * PADDING / 1024**2 > MOST > most
