"""Watchers that tests make in their own process, which is not patched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from rigatoni import MemoryStore, Watcher

Make = Callable[..., Watcher]

_numbers = count()


@contextmanager
def watchers(uri: str, database: str | None) -> Iterator[Make]:
    """Give a function that makes watchers of one database; all of them are stopped at the end."""
    made: list[Watcher] = []

    def make(**options: Any) -> Watcher:
        made.append(Watcher(**{"client": uri, "database": database, "store": MemoryStore(), **options}))
        return made[-1]

    try:
        yield make
    finally:
        for watcher in made:
            watcher.stop(timeout=0.1)


def collecting(watcher: Watcher, *operations: str, **options: Any) -> list[Any]:
    """Register a handler that keeps the keys of the documents."""
    return keeping(watcher, lambda event: event.document_key["_id"], *operations, **options)


def keeping(watcher: Watcher, what: Callable[[Any], Any], *operations: str, **options: Any) -> list[Any]:
    """Register a handler, of a name of its own, that keeps something of each event."""
    seen: list[Any] = []

    def keep(event: Any) -> None:
        seen.append(what(event))

    keep.__qualname__ = f"keep{next(_numbers)}"
    watcher.on(*operations, **options)(keep)
    return seen


def places(watcher: Any, *operations: str, **options: Any) -> list[Any]:
    """Register a handler that keeps where events come from."""
    return keeping(watcher, lambda event: (event.database, event.collection, event.operation), *operations, **options)


def operations_of(places: list[Any]) -> list[str]:
    """Return the operations of what :func:`places` keeps."""
    return [place[-1] for place in places]


def level(watcher: Any) -> Any:
    """Say at which level the one cursor is opened, by what the stream would say of itself."""
    (pipe,) = watcher._life._pipes
    return pipe._stream._cursor.level


def failing(watcher: Watcher) -> Watcher:
    """Let a watcher fail with the first insert."""

    @watcher.on("insert", on_error="stop")
    def fail(event: Any) -> None:
        raise ValueError("no such parcel")

    return watcher


def messages(caplog: Any, level: int = logging.ERROR) -> list[str]:
    """Return what was logged at one level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]
