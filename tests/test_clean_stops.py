"""A clean stop repeats nothing, wherever it comes: real processes, a real server, a real SQLite file."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from programs import BOTH, Program, run_program


@BOTH
@pytest.mark.parametrize("concurrency", [1, 8])
def test_stops_in_the_middle_of_a_stream_repeat_nothing(
    patched: bool,
    concurrency: int,
    mongodb_replica_set: Any,
    mongodb_database_name: str,
    store_path: str,
    tmp_path: Path,
) -> None:
    text = """
import threading
import gevent
from pymongo import MongoClient
from rigatoni import Watcher

COLLECTIONS, DOCUMENTS = 8, 150
client = MongoClient(given["uri"])
database = client[given["database"]]
seen = []


def watching():
    watcher = Watcher(given["uri"], given["database"], store=given["store"], concurrency=given["concurrency"])

    @watcher.on("insert")
    def handle(event):
        number = event.document_key["_id"]
        if number != "last" and number % 7 == 0:
            gevent.sleep(0.03 if event.collection == "c0" else 0.005)
        seen.append((event.collection, number))

    @watcher.on_batch("insert", collection="c1", max_size=40, max_wait=0.05)
    def handle_many(events):
        gevent.sleep(0.01)
        seen.extend(("batch", event.document_key["_id"]) for event in events)

    return watcher


def write():
    for first in range(0, DOCUMENTS, 5):
        for collection in range(COLLECTIONS):
            database[f"c{collection}"].insert_many({"_id": number} for number in range(first, first + 5))


def handled(count):
    patience = time.monotonic() + 60
    while len(seen) < count and time.monotonic() < patience:
        time.sleep(0.002)


total = (COLLECTIONS + 1) * DOCUMENTS
writer = threading.Thread(target=write)
for turn in range(given["rounds"] + 1):
    watcher = watching()
    watcher.start()
    if turn == 0:
        writer.start()
    share = total if turn == given["rounds"] else total // (2 * given["rounds"])
    handled(min(total, len(seen) + share))
    say(stopped=watcher.stop(), seen=len(seen))
writer.join()
last = watching()
last.start()
database.c0.insert_one({"_id": "last"})
database.c1.insert_one({"_id": "last"})
handled(total + 3)
last.stop()
say(all=seen)
client.drop_database(given["database"])
client.close()
"""
    rounds = 6
    given = {"uri": mongodb_replica_set.uri, "database": mongodb_database_name, "store": store_path}
    program = run_program(text, tmp_path, patched=patched, timeout=300, concurrency=concurrency, rounds=rounds, **given)
    assert program.said("stopped") == [True] * (rounds + 1)
    seen = Counter(tuple(each) for each in program.said("all")[0])
    due = {(name, number) for name in (*(f"c{n}" for n in range(8)), "batch") for number in range(150)}
    due |= {("c0", "last"), ("c1", "last"), ("batch", "last")}
    assert {each: count for each, count in seen.items() if count > 1} == {}
    assert set(seen) == due
    in_the_middle = program.said("seen")[:rounds]
    assert all(0 < count < len(due) for count in in_the_middle)


@BOTH
def test_sigterm_ends_run_in_order_and_repeats_nothing(
    patched: bool, database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    text = """
import gevent
from rigatoni import Hooks, Watcher


class Told(Hooks):
    def opened(self, stream):
        say(opened=stream)


watcher = Watcher(given["uri"], given["database"], store=given["store"], concurrency=4, hooks=[Told()])


@watcher.on("insert")
def handle(event):
    number = event.document_key["_id"]
    gevent.sleep(0.001 * (number % 5))
    # So that the stop is in the middle, however late it comes.
    while number >= given["end"] and watcher.state == "running":
        gevent.sleep(0.01)
    say(number=number)


watcher.run()
say(returned=watcher.state)
"""
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    seen: list[int] = []
    for end in (200, 400, 600):
        with Program(text, tmp_path, patched=patched, end=end, **given) as program:
            if not seen:
                # What is written before a first start is not seen.
                program.wait_said("opened")
                database.orders.insert_many({"_id": number} for number in range(600))
            wanted = end - len(seen)
            program.wait_for(lambda p=program, n=wanted: len(p.said("number")) >= n)
            program.signal(signal.SIGTERM)
            assert program.end() == 0, program.complaints
        assert program.said("returned") == ["stopped"]
        seen += program.said("number")
    assert sorted(seen) == list(range(600))
