"""Two hundred thousand events while a handler is slow: memory is bounded, and nothing is lost."""

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


@pytest.mark.faults
@BOTH
def test_a_burst_on_a_slow_handler_is_handled_in_order_within_bounded_memory(
    patched: bool, database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    with Program(SLOW, tmp_path, patched=patched, **given) as program:
        before = program.wait_said("before")
        for first in range(0, EVENTS, 5000):
            database.orders.insert_many(
                {"_id": number, "padding": "x" * PADDING} for number in range(first, first + 5000)
            )
        program.wait_for(lambda: program.said("in_flight")[-5:] == 5 * [program.said("in_flight")[-1]])
        held = program.lines[-1]
        (tmp_path / "go on").touch()
        program.wait_for(lambda: program.said("count")[-1] == EVENTS, timeout=300)
        most = program.said("memory")[-1] - before
    print(f"held with {held['in_flight']} in flight, {held['received']} received; {most:.0f} MB more at most")
    assert 0 < held["in_flight"] <= 10_000 < EVENTS
    assert EVENTS * PADDING / 1024**2 > MOST > most
