"""Runs whose handlers, ``watch()``, ``database=`` and pipeline change by chance, on a real server, ended in every way.

What is required of them all together: an event is handled at least once, unless a run whose streams had its collection
passed it without a handler; and once only, unless a run that handled it was killed.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import Program
from pymongo import MongoClient

from rigatoni import ChangeEvent, ChangeStreamConfig, Watcher

COLLECTIONS = ("orders", "customers", "other")
PIPELINES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "another": [{"$addFields": {"extra": 1}}],
    "kept ones": [{"$match": {"fullDocument.kept": True}}],
}
PROGRAM = """
import threading

sys.path.insert(0, given["tests"])
from test_random_runs import Run, made

watcher = made(Run(**given["run"]), given["uri"], given["store"], lambda number: say(number=number))


def tell():
    while watcher.state != "running":
        time.sleep(0.002)
    say(state=watcher.state)


threading.Thread(target=tell, daemon=True).start()
watcher.run()
"""


@dataclass
class Run:
    """What one run declares.

    :ivar database: None for the deployment.
    :ivar handled: the databases and collections that have a handler.
    :ivar watched: those of them that have a stream of their own.
    """

    database: str | None
    handled: list[list[str]]
    watched: list[list[str]]
    pipeline: str
    concurrency: int

    def owns(self, database: str, collection: str) -> bool:
        """Tell whether one of its streams has a collection, be there a handler or not."""
        if [database, collection] in self.watched:
            return True
        has_shared_stream = len(self.watched) < len(self.handled)
        return has_shared_stream and self.database in (None, database)


@dataclass
class Document:
    database: str
    collection: str
    number: int
    kept: bool
    #: Whether it may never be handled.
    is_excused: bool
    times: Counter[str] = field(default_factory=Counter)

    def is_for(self, run: Run) -> bool:
        """Tell whether a run has a handler for it."""
        passes = self.kept or run.pipeline != "kept ones"
        return [self.database, self.collection] in run.handled and passes


def made(run: Run, uri: str, store: str, note: Callable[[int], object]) -> Watcher:
    """Make the watcher of a run."""
    config = ChangeStreamConfig(pipeline=PIPELINES[run.pipeline], batch_size=7, max_await_time=0.1)
    watcher = Watcher(uri, run.database, store=store, concurrency=run.concurrency, config=config)
    for database, collection in run.watched:
        watcher.watch(collection, database)

    def handle(event: ChangeEvent) -> None:
        number = event.document_key["_id"]
        if number % 5 == 0:
            # So that stops and kills come amid a stream.
            gevent.sleep(0.002)
        note(number)

    for database, collection in run.handled:
        watcher.on("insert", database=database, collection=collection)(handle)
    return watcher


class World:
    """Two databases, and what was written to them and handled of it."""

    def __init__(self, uri: str, client: MongoClient[Any], names: list[str], folder: Path, seed: int) -> None:
        self.random = Random(seed)
        self.documents: list[Document] = []
        self._uri = uri
        self._client = client
        self._names = names
        self._folder = folder
        self._store = str(folder / "tokens.db")
        self._watched_once: set[tuple[str, str]] = set()

    def places(self) -> list[list[str]]:
        return [[name, collection] for name in self._names for collection in COLLECTIONS]

    def declare(self) -> Run:
        """Make up a run."""
        random = self.random
        database = random.choice([None, *self._names])
        places = [place for place in self.places() if database in (None, place[0])]
        handled = random.sample(places, random.randint((len(places) + 1) // 2, len(places)))
        watched = random.sample(handled, random.choice([0, 0, 1, min(2, len(handled))]))
        return Run(database, handled, watched, random.choice([*PIPELINES]), random.choice([1, 4]))

    def write(self, count: int) -> None:
        """Insert documents here and there, some of them in transactions, which have one time for all."""
        while count > 0:
            size = self.random.choice([1, 1, 1, 6])
            with self._client.start_session() as session:
                if size == 1:
                    self._insert(self.random.choice(self.places()))
                else:
                    with session.start_transaction():
                        for _ in range(size):
                            self._insert(self.random.choice(self.places()), session)
            count -= size

    def _insert(self, place: list[str], session: Any = None) -> None:
        database, collection = place
        number, kept = len(self.documents), self.random.random() < 0.7
        self._client[database][collection].insert_one({"_id": number, "kept": kept}, session=session)
        is_excused = (database, collection) not in self._watched_once
        self.documents.append(Document(database, collection, number, kept, is_excused))

    def play(self, run: Run, how: str) -> None:
        """Let one run begin, see some of what it must see, and end."""
        seen: list[int] = []
        if how == "in this process":
            watcher = made(run, self._uri, self._store, seen.append)
            with watcher:
                self._meet(run, lambda: seen, lambda condition: wait_until(lambda: watcher.error or condition()))
        else:
            seen = self._play_in_a_process(run, how)
        if run.concurrency == 1:
            for place in run.handled:
                of_one = [number for number in seen if self._place(number) == place]
                assert of_one == sorted(of_one), f"out of order: {of_one}"
        assert len(seen) == len(set(seen)), f"twice in one run: {seen}"
        self._count(run, how, seen)

    def play_to_the_end(self) -> None:
        """Handle all that is left, and what comes behind it."""
        run, seen = Run(None, self.places(), [], "none", 1), list[int]()
        with made(run, self._uri, self._store, seen.append) as watcher:
            for place in self.places():
                self._insert(place)
            last = {each.number for each in self.documents[-len(self.places()) :]}
            wait_until(lambda: watcher.error or last <= set(seen))
        self._count(run, "in this process", seen)

    def _play_in_a_process(self, run: Run, how: str) -> list[int]:
        given = {"run": vars(run), "uri": self._uri, "store": self._store, "tests": str(Path(__file__).parent)}
        with Program(PROGRAM, self._folder, patched=self.random.random() < 0.5, **given) as program:
            program.wait_said("state")
            self._meet(run, lambda: program.said("number"), program.wait_for)
            program.signal(signal.SIGKILL if how == "killed" else signal.SIGTERM)
            code = program.end()
        assert code == (-signal.SIGKILL if how == "killed" else 0), program.complaints
        return program.said("number")

    def _meet(self, run: Run, seen: Callable[[], Iterable[int]], wait: Callable[[Callable[[], object]], None]) -> None:
        self._watched_once |= {(database, name) for database, name in self.places() if run.owns(database, name)}
        self.write(self.random.randint(5, 40))
        due = {each.number for each in self.documents if each.is_for(run) and not each.is_excused and not each.times}
        enough = self.random.choice([self.random.randint(0, len(due)), len(due)])
        wait(lambda: len(due.intersection(seen())) >= enough)

    def _place(self, number: int) -> list[str]:
        return [self.documents[number].database, self.documents[number].collection]

    def _count(self, run: Run, how: str, seen: list[int]) -> None:
        for number in seen:
            self.documents[number].times[how] += 1
        for each in self.documents:
            if run.owns(each.database, each.collection) and not each.is_for(run) and not each.times:
                each.is_excused = True

    def lost(self) -> list[Document]:
        return [each for each in self.documents if not each.is_excused and not each.times]

    def repeated(self) -> list[Document]:
        """List what was handled twice though no run that handled it was killed."""
        return [each for each in self.documents if sum(each.times.values()) > each.times["killed"] + 1]


@pytest.fixture
def names(mongodb_replica_set: Any, mongodb_database_name: str) -> Iterator[list[str]]:
    names = [mongodb_database_name, mongodb_database_name + "_away"]
    yield names
    with MongoClient(mongodb_replica_set.uri) as client:
        for name in names:
            client.drop_database(name)


@pytest.mark.parametrize(
    ("seed", "runs", "kills"),
    [(1, 6, False), (2, 6, True)]
    + [pytest.param(seed, 40, seed % 2 == 0, marks=pytest.mark.faults) for seed in range(3, 13)],
)
def test_random_runs_lose_nothing_and_repeat_nothing_but_what_a_killed_one_handled(
    seed: int, runs: int, kills: bool, names: list[str], mongodb_replica_set: Any, tmp_path: Path
) -> None:
    with MongoClient(mongodb_replica_set.uri) as client:
        world = World(mongodb_replica_set.uri, client, names, tmp_path, seed)
        for place in world.places():
            client[place[0]].create_collection(place[1])
        ends = ["in this process", "in this process", "terminated", *(["killed", "killed"] if kills else [])]
        for number in range(runs):
            world.write(world.random.randint(0, 30))
            # A kill now and then, also of the first one.
            world.play(world.declare(), "killed" if kills and number == 0 else world.random.choice(ends))
        world.play_to_the_end()
    required = sum(not each.is_excused for each in world.documents)
    handled = sum(bool(each.times) for each in world.documents)
    again = sum(sum(each.times.values()) > 1 for each in world.documents)
    print(f"\nseed {seed}: {runs} runs, {len(world.documents)} documents: {required} required, {handled} handled")
    print(f"{again} handled again after kills")
    assert world.lost() == [] and world.repeated() == []
    assert required > len(world.documents) / 5
    assert kills or not again
