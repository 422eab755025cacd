"""Many handlers at once, and yet the changes of each document in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from programs import run_program
from pymongo import UpdateOne

DOCUMENTS = 400
ROUNDS = 20
#: Of 200 lanes; some 173 have one of 400 documents.
AT_ONCE = 120

REPLAY = """
import gevent
from bson import Timestamp
from gevent.event import Event
from rigatoni import MemoryStore, Watcher

seen, running, enough = [], 0, Event()
start_at = Timestamp(*given["start_at"])
watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), start_at=start_at, concurrency=200)


@watcher.on("update", collection="orders")
def handle(event):
    global running
    running += 1
    if running >= given["at_once"]:
        enough.set()
    # The first ones wait until so many run; how fast that makes it is measured elsewhere.
    enough.wait()
    gevent.sleep(0.001)
    running -= 1
    seen.append((event.document_key["_id"], event.update_description.updated_fields["round"]))


with watcher:
    while len(seen) < given["count"]:
        gevent.sleep(0.005)
say(seen=seen)
"""


def test_with_two_hundred_lanes_over_a_hundred_handlers_run_at_once_and_each_document_keeps_its_order(
    database: Any, mongodb_replica_set: Any, tmp_path: Path
) -> None:
    now = database.client.admin.command("hello")["operationTime"]
    changes = [
        UpdateOne({"_id": key}, {"$set": {"round": number}}) for number in range(ROUNDS) for key in range(DOCUMENTS)
    ]
    database.orders.insert_many([{"_id": key} for key in range(DOCUMENTS)])
    database.orders.bulk_write(changes)

    program = run_program(
        REPLAY,
        tmp_path,
        patched=True,
        uri=mongodb_replica_set.uri,
        database=database.name,
        start_at=[now.time, now.inc],
        count=len(changes),
        at_once=AT_ONCE,
    )

    (seen,) = program.said("seen")
    rounds: dict[int, list[int]] = {}
    for key, number in seen:
        rounds.setdefault(key, []).append(number)
    assert rounds == {key: list(range(ROUNDS)) for key in range(DOCUMENTS)}
