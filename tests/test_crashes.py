"""What a kill costs: real processes, a real server, a real SQLite file."""

from __future__ import annotations

import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from programs import BOTH, Program, run_program
from pymongo import MongoClient

EACH = 1000

NOTING = """
import gevent
from rigatoni import Hooks, Watcher

notes = os.open(given["notes"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def take_note(what):
    os.write(notes, f"{what} {os.getpid()} {time.monotonic()}\\n".encode())


class Saves(Hooks):
    def saved(self, stream, token):
        take_note("saved")


most = given.get("most", 10_000)
watcher = Watcher(given["uri"], given["database"], store=given["store"], max_in_flight=most, hooks=[Saves()])


@watcher.on("insert", collection="orders")
def note(event):
    number = event.document_key["_id"]
    if number % given.get("pausing", 20) == 0:
        # So that the rest of the watcher, the saver above all, runs while events wait in the lane.
        gevent.sleep(0.002)
    take_note(number)


watcher.start()
say(state=watcher.state)
"""


class Killed(NamedTuple):
    """What became of a process that was killed.

    :ivar allowed: how much of what it handled may be handled again.
    """

    handled: int
    repeated: int
    allowed: int


class Notes:
    """What the programs left in their file, read as it grows: which document, which process, when; and the saves."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._path = path
        self._read = 0
        self._noted: list[tuple[int, int, float]] = []
        self._saves: defaultdict[int, list[float]] = defaultdict(list)

    def all(self) -> list[tuple[int, int, float]]:
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for what, pid, when in map(bytes.split, new.splitlines()):
            if what == b"saved":
                self._saves[int(pid)].append(float(when))
            else:
                self._noted.append((int(what), int(pid), float(when)))
        return self._noted

    def of(self, pid: int) -> list[int]:
        numbers = []
        for number, process, _ in reversed(self.all()):
            if process != pid:
                break
            numbers.append(number)
        return numbers[::-1]

    def killed(self, in_flight: int) -> list[Killed]:
        """Judge every process but the last: in order, without a gap, and what the next one made of its end."""
        runs = [list(run) for _, run in groupby(self.all(), key=lambda note: note[1])]
        for run in runs:
            numbers = [number for number, _, _ in run]
            assert numbers == list(range(numbers[0], numbers[-1] + 1)), "within a run something is out of order"
        killed = []
        for run, following in pairwise(runs):
            (last, pid, _), (first, _, _) = run[-1], following[0]
            assert first <= last + 1, "a run began behind what nobody had handled"
            # The last save began after the one before it was noted: it has what was done by then, however late it is.
            since = self._saves[pid][-2] if len(self._saves[pid]) > 1 else 0.0
            allowed = in_flight + sum(when > since for _, _, when in run)
            killed.append(Killed(len(run), last + 1 - first, allowed))
        return killed


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


def kill_again_and_again(noted: Sequence[int], folder: Path, in_flight: int, **given: Any) -> tuple[list[Killed], int]:
    """Kill processes, let a last one handle the rest, and check that nothing is lost.

    :param noted: how much each has noted before it is killed.
    :return: what became of each, and how many were killed amid writes.
    """
    notes, total, still_writing = Notes(folder / "notes"), len(noted) * EACH, 0
    program = NOTING + "watcher.join()\n"
    given = {"notes": str(folder / "notes"), "most": in_flight, **given}
    with writing(given["uri"], given["database"], total) as writer:
        for kill, enough in enumerate(noted):
            with Program(program, folder, patched=kill % 2 == 0, **given) as watching:
                watching.wait_said("state")
                writer.allow(EACH)
                watching.wait_for(lambda p=watching, n=enough: len(notes.of(p.pid)) >= n)
                watching.kill()
                still_writing += writer.written < (kill + 1) * EACH
    with Program(program, folder, **{**given, "pausing": 20}) as watching:
        watching.wait_for(lambda: total - 1 in notes.of(watching.pid))

    counted, killed = Counter(number for number, _, _ in notes.all()), notes.killed(in_flight)
    lost = set(range(total)) - set(counted)
    repeated = sum(each.repeated for each in killed)
    print(
        f"\n{len(killed)} kills ({still_writing} amid writes), {total} inserted: {len(lost)} lost, "
        f"{repeated} repeated, {sum(each.allowed for each in killed)} allowed, of each kill: "
        + ", ".join(f"{each.repeated}/{each.allowed}/{each.handled}" for each in killed)
    )
    assert not lost
    assert len(killed) == len(noted)
    assert repeated == sum(counted.values()) - len(counted)
    return killed, still_writing


def test_twelve_kills_lose_nothing_and_repeat_at_most_what_was_in_flight(
    database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    random, given = Random(12), {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    noted = [random.randint(1, EACH * 3 // 4) for _ in range(12)]
    every, still_writing = kill_again_and_again(noted, tmp_path, 200, **given)
    for killed in every:
        assert killed.repeated <= killed.allowed
    assert still_writing


def test_a_kill_after_many_saves_repeats_little_of_what_was_handled(
    database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    random, given = Random(4), {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    noted = [random.randint(EACH // 2, EACH * 3 // 4) for _ in range(4)]
    every, _ = kill_again_and_again(noted, tmp_path, 20, pausing=1, **given)
    for killed in every:
        assert killed.repeated <= killed.allowed < killed.handled
    # Of all together, because one save may be late on a busy machine.
    assert sum(killed.allowed for killed in every) < sum(killed.handled for killed in every) / 2


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
