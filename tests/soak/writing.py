"""Writers: each changes documents of its own, one change after the other, and remembers which were acknowledged."""

from __future__ import annotations

import threading
from collections import Counter
from random import Random
from typing import Any

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from .oracle import DELETED, Change, Write
from .watching import COLLECTIONS

#: Seconds between two writes, on average.
PAUSE = 0.01
#: Documents of a writer that live at a time, about.
LIVING = 200

#: A writer that hears nothing for so long looks for another primary.
OPTIONS: dict[str, Any] = {
    "w": "majority",
    "connectTimeoutMS": 2000,
    "socketTimeoutMS": 5000,
    "serverSelectionTimeoutMS": 10_000,
    "heartbeatFrequencyMS": 1000,
}

#: An operation, a collection, an ``_id``, the number of the change.
Step = tuple[str, str, str, int]


class Writer:
    """Insert, update, replace and delete documents, many at once or in transactions now and then.

    A document whose change has an unknown outcome is never touched again: that change may still come, much later.

    :ivar writes: in their order, per document.
    :ivar unknown: why outcomes are unknown, counted.
    """

    def __init__(self, number: int, uri: str, database: str, seed: int) -> None:
        self.writes: list[Write] = []
        self.unknown: Counter[str] = Counter()
        self._number, self._uri, self._database = number, uri, database
        self._random = Random(f"{seed} writer {number}")
        self._living: dict[tuple[str, str], int] = {}
        self._count = 0

    def run(self, stop: threading.Event) -> None:
        """Write until told to stop."""
        with MongoClient[dict[str, Any]](self._uri, **OPTIONS) as client:
            while not stop.wait(self._random.expovariate(1 / PAUSE)):
                how = self._random.choices([self._one, self._many, self._transaction], [90, 4, 6])[0]
                how(client)

    def _one(self, client: MongoClient[Any]) -> None:
        steps = [self._draw()]
        self._try(steps, lambda: self._perform(client, steps))

    def _many(self, client: MongoClient[Any]) -> None:
        collection = self._random.choice(COLLECTIONS)
        count = self._random.choice([3, 10, 30, 200])
        steps = [self._new(collection) for _ in range(count)]
        documents = [{"_id": key, "number": number} for _, _, key, number in steps]
        self._try(steps, lambda: client[self._database][collection].insert_many(documents))

    def _transaction(self, client: MongoClient[Any]) -> None:
        steps = [self._draw() for _ in range(self._random.randint(2, 8))]

        def transact() -> None:
            with client.start_session() as session:
                session.with_transaction(lambda session: self._perform(client, steps, session))

        self._try(steps, transact)

    def _draw(self) -> Step:
        """Choose a change; the number of living documents stays about the same."""
        if not self._living or self._random.random() < 0.5 - 0.4 * len(self._living) / LIVING:
            return self._new(self._random.choice(COLLECTIONS))
        document = self._random.choice(list(self._living))
        if self._random.random() < 0.15 * len(self._living) / LIVING:
            del self._living[document]
            return "delete", *document, DELETED
        self._living[document] += 1
        return self._random.choice(["update", "update", "replace"]), *document, self._living[document]

    def _new(self, collection: str) -> Step:
        self._count += 1
        key = f"{self._number}-{self._count}"
        self._living[collection, key] = 0
        return "insert", collection, key, 0

    def _try(self, steps: list[Step], perform: Any) -> None:
        acknowledged = True
        try:
            perform()
        except PyMongoError as error:
            acknowledged = False
            self.unknown[type(error).__name__] += 1
            for _, collection, key, _ in steps:
                self._living.pop((collection, key), None)
        self.writes += [Write(change(collection, key, number), acknowledged) for _, collection, key, number in steps]

    def _perform(self, client: MongoClient[Any], steps: list[Step], session: Any = None) -> None:
        for operation, collection, key, number in steps:
            documents, which = client[self._database][collection], {"_id": key}
            if operation == "insert":
                documents.insert_one({**which, "number": number}, session=session)
                continue
            if operation == "update":
                found = documents.update_one(which, {"$set": {"number": number}}, session=session).matched_count
            elif operation == "replace":
                found = documents.replace_one(which, {"number": number}, session=session).matched_count
            else:
                found = documents.delete_one(which, session=session).deleted_count
            assert found == 1, f"{collection}/{key} is gone: the server lost what it had acknowledged"


def change(collection: str, key: str, number: int) -> Change:
    """Name a change as the notes do."""
    return f"{collection}/{key}", number


def marked(uri: str, database: str, mark: str) -> list[Write]:
    """Insert one last document into each collection."""
    with MongoClient[dict[str, Any]](uri, **OPTIONS) as client:
        for collection in COLLECTIONS:
            client[database][collection].insert_one({"_id": mark, "number": 0})
    return [Write(change(collection, mark, 0), True) for collection in COLLECTIONS]
