"""Many handlers at once, and yet the changes of each document in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from programs import run_program
from pymongo import UpdateOne

DOCUMENTS = 400
ROUNDS = 20
ONE_AT_A_TIME = 200
ATTEMPTS = 3

REPLAY = """
import gevent
from bson import Timestamp
from rigatoni import MemoryStore, Watcher


def replay(collection, concurrency, count):
    seen, times = [], []
    start_at = Timestamp(*given["start_at"])
    watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), start_at=start_at, concurrency=concurrency)

    @watcher.on("update", collection=collection)
    def handle(event):
        times.append(time.perf_counter())
        gevent.sleep(0.005)
        seen.append((event.document_key["_id"], event.update_description.updated_fields["round"]))

    with watcher:
        while len(seen) < count:
            gevent.sleep(0.005)
        duration = time.perf_counter() - times[0]
    return seen, count / duration


seen, rate = replay("wide", 200, given["many"])
say(seen=seen)
say(ratio=rate / replay("narrow", 1, given["few"])[1])
"""


def test_with_two_hundred_lanes_each_document_keeps_its_order_and_all_are_forty_times_as_fast(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, record_property: Any
) -> None:
    now = database.client.admin.command("hello")["operationTime"]
    changes = [
        UpdateOne({"_id": key}, {"$set": {"round": number}}) for number in range(ROUNDS) for key in range(DOCUMENTS)
    ]
    for name in ("wide", "narrow"):
        database[name].insert_many([{"_id": key} for key in range(DOCUMENTS)])
    database.wide.bulk_write(changes)
    database.narrow.bulk_write(changes[:ONE_AT_A_TIME])
    given = {
        "uri": mongodb_replica_set.uri,
        "database": database.name,
        "start_at": [now.time, now.inc],
        "many": len(changes),
        "few": ONE_AT_A_TIME,
    }
    ratios: list[float] = []
    # A machine with other work may hold back the busy one of the two; the best of a few counts.
    while len(ratios) < ATTEMPTS and max(ratios, default=0.0) < 40:
        program = run_program(REPLAY, tmp_path, patched=True, **given)
        ((seen,), (ratio,)) = program.said("seen"), program.said("ratio")
        ratios.append(ratio)
        rounds: dict[int, list[int]] = {}
        for key, number in seen:
            rounds.setdefault(key, []).append(number)
        assert rounds == {key: list(range(ROUNDS)) for key in range(DOCUMENTS)}
    record_property("times_as_fast", max(ratios))
    print(f"8,000 changes with concurrency=200, to one at a time: {max(ratios):.0f} times as fast")
    assert max(ratios) >= 40
