"""An event that waits for all earlier ones of its reach, and holds back all later ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from .events import namespace_of
from .hub import Flag
from .selection import Namespace

T = TypeVar("T")


class Barrier(Generic[T]):
    """Hold the lanes of a collection, a database or a stream until an event without a document is handled.

    The last lane that arrives handles it.

    :param item: what is to be handled then.
    :param raw: the event.
    :param namespace: where it happened.
    """

    def __init__(self, item: T, raw: Mapping[str, Any], namespace: Namespace) -> None:
        self.item = item
        self.missing = 0
        self.is_open = False
        self.is_cancelled = False
        self.passed = Flag()
        self._reach = _reach(raw, namespace)

    def covers(self, namespace: Namespace) -> bool:
        """Tell whether this collection is held."""
        # None reaches everything, (database, None) a database.
        return self._reach is None or namespace in self._reach or (namespace[0], None) in self._reach

    def cancel(self) -> None:
        """Let go whoever waits: the event will not be handled, nor what comes after it."""
        self.is_cancelled = True
        self.passed.set()


def _reach(raw: Mapping[str, Any], namespace: Namespace) -> tuple[Namespace, ...] | None:
    operation = raw.get("operationType")
    if operation == "invalidate":
        return None
    if operation == "rename":
        return namespace, namespace_of(raw.get("to"))
    return (namespace,)
