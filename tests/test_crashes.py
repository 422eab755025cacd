"""What a kill costs: real processes, a real server, a real SQLite file."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

from programs import BOTH, Program, run_program
from pymongo import MongoClient
from soak.oracle import most_within

KILLS = 12
EACH = 1000
IN_FLIGHT = 200

NOTING = """
import gevent
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"], max_in_flight=given.get("most", 10_000))
notes = os.open(given["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@watcher.on("insert", collection="orders")
def note(event):
    number = event.document_key["_id"]
    if number % 20 == 0:
        # So that the rest of the watcher, the saver above all, runs while events wait in the lane.
        gevent.sleep(0.002)
    os.write(notes, f"{number} {os.getpid()} {time.monotonic()}\\n".encode())


watcher.start()
say(state=watcher.state)
"""


class Notes:
    """What the programs left in their file, read as it grows: which document, which process, when."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path
        self._read = 0
        self._noted: list[tuple[int, int, float]] = []

    def all(self) -> list[tuple[int, int, float]]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for number, pid, when in map(bytes.split, new.splitlines()):
            self._noted.append((int(number), int(pid), float(when)))
        return self._noted

    def of(self, pid: int) -> list[int]:
        numbers = []
        for number, process, _ in reversed(self.all()):
            if process != pid:
                break
            numbers.append(number)
        return numbers[::-1]

    def runs(self) -> list[list[tuple[int, float]]]:
        """Each process's numbers and times, in the order of the processes."""
        return [[(number, when) for number, _, when in run] for _, run in groupby(self.all(), key=lambda note: note[1])]


class Writer(threading.Thread):
    """Insert documents numbered from 0, ten at a time, as far as it is allowed to."""

    def __init__(self, uri: str, database: str, total: int) -> None:
        super().__init__(daemon=True)
        self._uri, self._database, self._total = uri, database, total
        self._allowed = threading.Semaphore(0)
        self.written = 0

    def allow(self, count: int) -> None:
        self._allowed.release(count // 10)

    def run(self) -> None:
        with MongoClient(self._uri) as client:
            orders = client[self._database].orders
            while self.written < self._total:
                self._allowed.acquire()
                orders.insert_many({"_id": number} for number in range(self.written, self.written + 10))
                self.written += 10


@contextmanager
def writing(uri: str, database: str, total: int) -> Iterator[Writer]:
    writer = Writer(uri, database, total)
    writer.start()
    try:
        yield writer
    finally:
        writer.allow(total)
        writer.join()


def test_twelve_kills_lose_nothing_and_repeat_at_most_what_was_in_flight(
    database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    notes, random = Notes(tmp_path / "notes"), Random(12)
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path, "most": IN_FLIGHT}
    program = NOTING + "watcher.join()\n"
    still_writing = 0
    with writing(mongodb_replica_set.uri, database.name, KILLS * EACH) as writer:
        for kill in range(KILLS):
            with Program(program, tmp_path, patched=kill % 2 == 0, notes=str(tmp_path / "notes"), **given) as watching:
                watching.wait_said("state")
                writer.allow(EACH)
                enough = random.randint(1, EACH * 3 // 4)
                watching.wait_for(lambda p=watching, n=enough: len(notes.of(p.pid)) >= n)
                watching.kill()
                still_writing += writer.written < (kill + 1) * EACH
    with Program(program, tmp_path, notes=str(tmp_path / "notes"), **given) as watching:
        watching.wait_for(lambda: KILLS * EACH - 1 in notes.of(watching.pid))

    counted, reached, allowed = Counter(number for number, _, _ in notes.all()), -1, []
    for run in notes.runs():
        numbers = [number for number, _ in run]
        assert numbers == list(range(numbers[0], numbers[-1] + 1)), "within a run something is out of order"
        assert numbers[0] <= reached + 1, "a run began behind what nobody had handled"
        reached = max(reached, numbers[-1])
        allowed.append(IN_FLIGHT + most_within([when for _, when in run], 0.1))
    lost = set(range(KILLS * EACH)) - set(counted)
    repeated = sum(counted.values()) - len(counted)
    print(
        f"\n{KILLS} kills ({still_writing} amid writes), {KILLS * EACH} inserted: {len(lost)} lost, "
        f"{repeated} repeated, {sum(allowed[:KILLS])} allowed"
    )
    assert not lost
    assert len(allowed) == KILLS + 1
    assert repeated <= sum(allowed[:KILLS])
    assert still_writing


@BOTH
def test_a_first_run_killed_before_any_event_loses_nothing(
    patched: bool, database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    notes = Notes(tmp_path / "notes")
    given = {
        "uri": mongodb_replica_set.uri,
        "database": database.name,
        "store": store_path,
        "notes": str(tmp_path / "notes"),
    }
    with Program(NOTING + "os.kill(os.getpid(), signal.SIGKILL)\n", tmp_path, patched=patched, **given) as killed:
        assert killed.end() == -signal.SIGKILL
    assert killed.said("state") == ["running"]
    database.orders.insert_many({"_id": number} for number in range(10))
    with Program(NOTING + "watcher.join()\n", tmp_path, patched=patched, **given) as watching:
        watching.wait_for(lambda: len(notes.all()) >= 10)
    assert notes.of(watching.pid) == list(range(10))


@BOTH
def test_twenty_of_twenty_writes_made_right_after_start_are_seen(
    patched: bool, mongodb_replica_set: Any, mongodb_database_name: str, store_path: str, tmp_path: Path
) -> None:
    text = """
from pymongo import MongoClient
from rigatoni import Watcher

client = MongoClient(given["uri"])
orders = client[given["database"]].orders
for number in range(20):
    watcher = Watcher(given["uri"], given["database"], name=f"w{number}", store=given["store"])
    seen = []
    watcher.on("insert", collection="orders")(seen.append)
    watcher.start()
    orders.insert_one({"_id": number})
    patience = time.monotonic() + 20
    while not seen and time.monotonic() < patience:
        time.sleep(0.005)
    say(seen=[event.document_key["_id"] for event in seen])
    watcher.stop()
client.drop_database(given["database"])
client.close()
"""
    given = {"uri": mongodb_replica_set.uri, "database": mongodb_database_name, "store": store_path}
    program = run_program(text, tmp_path, patched=patched, timeout=500, **given)
    assert program.said("seen") == [[number] for number in range(20)]
