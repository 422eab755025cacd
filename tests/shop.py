"""A small shop on a real server, and watchers of it that come and go with other handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from conftest import wait_until

from rigatoni import ChangeEvent, Watcher

#: Collection and ``_id`` of a document that was inserted.
Written = tuple[str | None, Any]
Note = Callable[[ChangeEvent], object]


class Shop:
    """Write into collections, and watch them with one program after the other, all with one store.

    :ivar uri: of the server.
    :ivar database: its database.
    :ivar store: the path of the store.
    """

    def __init__(self, uri: str, database: Any, store: str) -> None:
        self.uri = uri
        self.database = database
        self.store = store
        self._numbers = count()

    def write(self, *collections: str, times: int = 3) -> list[Written]:
        """Insert into each collection in turn, and say what was inserted."""
        written: list[Written] = []
        for _ in range(times):
            for collection in collections:
                number = next(self._numbers)
                self.database[collection].insert_one({"_id": number})
                written.append((collection, number))
        return written

    def watcher(self, **options: Any) -> Watcher:
        options = {"database": self.database.name, "store": self.store, **options}
        return Watcher(self.uri, **options)

    def watch(self, register: Callable[[Watcher, Note], object], due: Iterable[Written] = (), **options: Any) -> None:
        """Run a watcher until it has seen what is due and what is written meanwhile, in order, and nothing else.

        :param register: registers handlers, which must call the note that it is given with each event.
        :param due: what was written before and is to be delivered now.
        """
        seen: list[Written] = []
        watcher = self.watcher(**options)
        register(watcher, lambda event: seen.append((event.collection, (event.document_key or {}).get("_id"))))
        due = list(due)
        with watcher:
            wait_until(lambda: len(seen) >= len(due) or watcher.error)
            # Behind whatever would be repeated.
            due += self.write(*self._watched(watcher))
            wait_until(lambda: len(seen) >= len(due) or watcher.error)
        assert by_collection(seen) == by_collection(due)

    def _watched(self, watcher: Watcher) -> list[str]:
        return [name for handler in watcher._handlers for name in handler.collections or ()]


def by_collection(written: Iterable[Written]) -> dict[str | None, list[Any]]:
    """Sort what was written by collection, each in order, for between collections there is none."""
    found: dict[str | None, list[Any]] = {}
    for collection, key in written:
        found.setdefault(collection, []).append(key)
    return found


def on(*collections: str, **options: Any) -> Callable[[Watcher, Note], object]:
    """Register a handler of inserts for each of these collections."""

    def register(watcher: Watcher, note: Note) -> None:
        for collection in collections:
            watcher.on("insert", collection=collection, **options)(note)

    return register
