"""A writer that knows what was acknowledged, and programs that follow it through whatever befalls a replica set."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from conftest import wait_until
from programs import Program
from pymongo import MongoClient, WriteConcern
from pymongo.errors import PyMongoError

from rigatoni import SQLiteStore
from rigatoni.mongod import ReplicaSet

#: A document and the value of its counter: it grows with each write, so that it tells the order.
Change = tuple[int, int]

#: So that a writer is soon back and what a watcher takes longer is its own.
QUICK = "heartbeatFrequencyMS=500&connectTimeoutMS=1000&serverSelectionTimeoutMS=5000"
#: Updates go round these documents.
ROUND = 5
#: Seconds between two writes.
PACE = 0.01

FOLLOWING = """
import logging
from rigatoni import ChangeStreamConfig, Hooks, StreamError, Watcher


class Told(logging.Handler):
    def emit(self, record):
        say(log=[record.levelname, record.name, record.getMessage()])


class Attempts(Hooks):
    def reconnecting(self, stream, error, attempt, delay):
        say(attempt=attempt, delay=delay, why=str(error), at=time.monotonic())


ended = []
signal.signal(signal.SIGUSR1, lambda *_: ended.append(True))
logging.getLogger("rigatoni").setLevel(logging.INFO)
logging.getLogger("rigatoni").addHandler(Told())
watcher = Watcher(
    given["uri"], given["database"], store=given["store"], config=ChangeStreamConfig(**given["config"]),
    hooks=[Attempts()],
)


@watcher.on("insert", "update", collection="orders")
def follow(event):
    changed = event.full_document if event.operation == "insert" else event.update_description.updated_fields
    say(change=[event.document_key["_id"], changed["n"]], at=time.monotonic())


if given["collections"]:
    @watcher.on("insert", collection=given["collections"])
    def note(event):
        say(noted=event.collection)

for collection in given["collections"]:
    watcher.watch(collection)

try:
    say(begins=time.monotonic())
    say(state=watcher.start())
    while not ended and watcher.error is None:
        time.sleep(0.01)
except StreamError:
    pass
say(failed=type(watcher.error).__name__, ended=time.monotonic())
began = time.monotonic()
say(stopped=watcher.stop(), took=time.monotonic() - began)
"""


class Follower(Program):
    """A program that tells of each change as it handles it."""

    def __init__(
        self,
        uri: str,
        database: str,
        folder: Path,
        *,
        patched: bool,
        collections: Sequence[str] = (),
        **config: Any,
    ) -> None:
        self.name = f"{'patched' if patched else 'unpatched'} {config}"
        self._store = str(folder / f"{uuid4().hex}.db")
        self._lines: list[dict[str, Any]] = []
        self._read = 0
        super().__init__(
            FOLLOWING,
            folder,
            patched=patched,
            uri=uri,
            database=database,
            store=self._store,
            collections=list(collections),
            config=config,
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        # Only what is new, because it is asked for again and again while the program must not be disturbed.
        with self._said.open("rb") as said:
            said.seek(self._read)
            new = said.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        self._lines += [json.loads(line) for line in new.splitlines()]
        return self._lines

    @property
    def changes(self) -> dict[Change, float]:
        """What was handled, and when; nothing twice, and each document's changes in their order."""
        found: dict[Change, float] = {}
        latest: dict[int, int] = {}
        for line in self.lines:
            if "change" in line:
                key, n = line["change"]
                assert n > latest.get(key, -1), f"{self.name}: {n} of {key} comes after {latest[key]}"
                latest[key] = n
                found[key, n] = line["at"]
        return found

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """What it was told before each attempt to reconnect."""
        return [line for line in self.lines if "attempt" in line]

    @property
    def told_of_the_stream(self) -> list[str]:
        """What was logged of the state of the stream: the level and the first word."""
        return [
            f"{level} {message.partition(': ')[2].split()[0]}"
            for level, name, message in self.said("log")
            if name == "rigatoni.stream"
        ]

    @property
    def complained_of(self) -> list[str]:
        """Every line at WARNING or above, but for the one about an empty store."""
        return [text for level, _, text in self.said("log") if level != "INFO" and "starts from now" not in text]

    def status(self) -> Any:
        """Read the status row, as operators do."""
        store = SQLiteStore(self._store)
        store.open()
        try:
            return store.status("default")
        finally:
            store.close()

    def wait_for_all(self, writer: Writer) -> None:
        """Wait until everything is handled that is acknowledged by now."""
        due = set(writer.acknowledged)
        self.wait_for(lambda: due <= self.changes.keys())

    def stop(self) -> float:
        """Have it call ``stop()``; return the seconds that took."""
        self.signal(signal.SIGUSR1)
        assert self.wait_said("stopped")
        assert self.end() == 0, self.complaints
        took: float = self.said("took")[0]
        return took


class Writer(threading.Thread):
    """Insert and update documents, and keep which of that a majority has acknowledged, and when."""

    def __init__(self, uri: str, database: str) -> None:
        super().__init__(daemon=True)
        self._client: MongoClient[Any] = MongoClient(f"{uri}&{QUICK}")
        self._orders = self._client[database].get_collection("orders", write_concern=WriteConcern("majority"))
        self._end = threading.Event()
        self._crash: BaseException | None = None
        self.attempted: set[Change] = set()
        self.acknowledged: dict[Change, float] = {}

    def run(self) -> None:
        number = 0
        try:
            while not self._end.wait(PACE):
                self._try(number, 0, partial(self._orders.insert_one, {"_id": number, "n": 0}))
                key, n = number % ROUND, number + 1
                self._try(key, n, partial(self._orders.update_one, {"_id": key}, {"$set": {"n": n}}))
                number += 1
        except BaseException as error:
            self._crash = error

    def _try(self, key: int, n: int, write: Callable[[], Any]) -> None:
        self.attempted.add((key, n))
        try:
            result = write()
        except PyMongoError:
            # What became of it nobody knows: it may be handled, or not.
            return
        if getattr(result, "matched_count", 1):
            self.acknowledged[key, n] = monotonic()

    def wait_for_more(self, count: int = 50) -> None:
        """Wait until so many more writes are acknowledged."""
        enough = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= enough or self._crash)
        assert self._crash is None

    def insert(self, collections: Iterable[str]) -> None:
        """Insert a document into each of some other collections."""
        for collection in collections:
            self._orders.database[collection].insert_one({})

    def finish(self) -> None:
        self._end.set()
        self.join()
        self._client.close()
        assert self._crash is None


@contextmanager
def following(
    replica_set: ReplicaSet, database: str, folder: Path, options: str = "", **given: Any
) -> Iterator[tuple[Writer, list[Follower]]]:
    """Have a writer write, and a patched and an unpatched program follow it.

    :param options: of the programs' URI.
    """
    uri, writer = f"{replica_set.uri}{options}", Writer(replica_set.uri, database)
    given = {"max_reconnect_attempts": 0, **given}
    with (
        Follower(uri, database, folder, patched=True, **given) as patched,
        Follower(uri, database, folder, patched=False, **given) as unpatched,
    ):
        followers = [patched, unpatched]
        for follower in followers:
            assert follower.wait_said("state") == "running"
        writer.start()
        try:
            writer.wait_for_more()
            yield writer, followers
        finally:
            writer.finish()


def settle(writer: Writer, followers: list[Follower]) -> dict[str, float]:
    """Check that nothing is lost, repeated or out of order, and give the figures of the worse of the followers.

    :return: "late": the longest time from the acknowledgement of a write to its handling; "silent": the longest time
        without a change; "stalled": the longest time in which no write was acknowledged; "stop": what ``stop()`` took,
        and "best stop" that of the better one.
    """
    writer.finish()
    late, silent, stopped = 0.0, 0.0, []
    for follower in followers:
        follower.wait_for_all(writer)
        changes = follower.changes
        assert changes.keys() <= writer.attempted
        stopped.append(follower.stop())
        assert follower.said("failed") == ["NoneType"]
        late = max(late, *(changes[change] - when for change, when in writer.acknowledged.items()))
        silent = max(silent, longest(changes.values()))
    stalled = longest(writer.acknowledged.values())
    figures = {"late": late, "silent": silent, "stalled": stalled, "stop": max(stopped)}
    figures["best stop"] = min(stopped)
    return {name: round(seconds, 2) for name, seconds in figures.items()}


def longest(times: Iterable[float]) -> float:
    """Give the longest time between two of these."""
    return max(after - before for before, after in pairwise(sorted(times)))
