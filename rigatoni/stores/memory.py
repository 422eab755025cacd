"""A store that ends with its process: for tests, and where every start should begin anew."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gevent import monkey

from ..errors import ConfigurationError
from ..events import DeadLetter
from ..position import Position
from . import TokenStore
from .encoding import decode, encode_event, encode_status, event_id, readable

# Native, because the threads may have different hubs; never held across a switch of greenlets. Reentrant, because a
# signal handler may fork at any time, and held meanwhile: a child has no other thread that would release it.
_mutex = monkey.get_original("_thread", "RLock")()
os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_mutex.release)


class MemoryStore(TokenStore):
    """Keep everything in memory: what one process sees, and no other.

    What it gives back is what :class:`~rigatoni.SQLiteStore` would give back. A lock belongs to this object and
    excludes a second watcher of the name that was given this object.
    """

    def __init__(self) -> None:
        self.location = "memory"
        self._positions: dict[str, dict[str, Position]] = {}
        self._statuses: dict[str, str] = {}
        self._letters: dict[str, dict[tuple[str, str], DeadLetter]] = {}
        self._last_id = 0
        # By process: a child that was forked holds no lock.
        self._locked: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def open(self) -> None:
        pass

    def close(self) -> None:
        pass

    def load(self, name: str) -> dict[str, Position]:
        with _mutex:
            return dict(self._positions.get(name, {}))

    def names(self) -> list[str]:
        with _mutex:
            return sorted(name for name in {*self._positions, *self._statuses, *self._letters} if self._keeps(name))

    def save(
        self, name: str, positions: Mapping[str, Position | None], status: Mapping[str, Any] | None = None
    ) -> None:
        now = time.time()
        kept = {scope: replace(position, saved_at=now) for scope, position in positions.items() if position is not None}
        text = None if status is None else encode_status({**status, "saved_at": now})
        with _mutex:
            before = self._positions.get(name, {}).items()
            self._positions[name] = {scope: position for scope, position in before if scope not in positions} | kept
            if text is not None:
                self._statuses[name] = text

    def status(self, name: str) -> dict[str, Any] | None:
        text = self._statuses.get(name)
        return None if text is None else json.loads(text)

    def bury(self, name: str, letter: DeadLetter) -> None:
        text = encode_event(letter.event)
        key = readable(letter.handler), event_id(letter.event, text)
        with _mutex:
            letters = self._letters.setdefault(name, {})
            if key not in letters:
                self._last_id += 1
            id = letters[key].id if key in letters else self._last_id
            error, traceback = readable(letter.error), readable(letter.traceback)
            letters[key] = DeadLetter(id, key[0], decode(text), error, traceback, letter.attempts, letter.buried_at)

    def letters(self, name: str) -> list[DeadLetter]:
        with _mutex:
            return list(self._letters.get(name, {}).values())

    def discard(self, name: str, id: int) -> bool:
        with _mutex:
            letters = self._letters.get(name, {})
            found = [key for key, letter in letters.items() if letter.id == id]
            for key in found:
                del letters[key]
            return bool(found)

    def lock(self, name: str) -> bool:
        with _mutex:
            if self._locked.get(name) == os.getpid():
                raise ConfigurationError(
                    f"two watchers of the name {name!r} share one MemoryStore; give one of them another name= or store="
                )
            self._locked[name] = os.getpid()
            return True

    def unlock(self, name: str) -> None:
        with _mutex:
            self._locked.pop(name, None)

    def holder(self, name: str) -> str | None:
        with _mutex:
            process = self._locked.get(name)
        return None if process is None else f"pid {process} on {os.uname().nodename}"

    def _keeps(self, name: str) -> bool:
        return bool(self._positions.get(name) or name in self._statuses or self._letters.get(name))
