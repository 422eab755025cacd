"""Watchers that tests make in their own process, which is not patched."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rigatoni import MemoryStore, Watcher

Make = Callable[..., Watcher]


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
    seen: list[Any] = []

    @watcher.on(*operations, **options)
    def collect(event: Any) -> None:
        seen.append(event.document_key["_id"])

    return seen


def failing(watcher: Watcher) -> Watcher:
    """Let a watcher fail with the first insert."""

    @watcher.on("insert", on_error="stop")
    def fail(event: Any) -> None:
        raise ValueError("no such parcel")

    return watcher


def messages(caplog: Any, level: int = logging.ERROR) -> list[str]:
    """Return what was logged at one level."""
    return [record.getMessage() for record in caplog.records if record.levelno == level]
