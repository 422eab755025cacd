"""The default store: a SQLite file beside the program, which `sqlite-utils rows` and Datasette can show."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bson import Timestamp

from ..errors import ConfigurationError, ResumeTokenPersistenceError
from ..events import DeadLetter
from ..hub import is_patched, let_others_run
from ..position import Position
from . import TokenStore
from .connections import Connections, removed
from .database import check_rows
from .encoding import decode, encode, encode_event, encode_status, event_id, readable
from .lockfile import LockFile, acquire
from .lockfile import holder as holder_of

#: Letters that are read between two turns of the rest of the hub; an event takes some 0.1 ms to decode.
LETTERS = 20

# Plain SQL, because the write methods of sqlite-utils 3 end the transaction that they are called in.
_SAVE = """
    insert or replace into resume_tokens (name, scope, token, cluster_time, fingerprint, cluster, saved_at)
    values (?, ?, ?, ?, ?, ?, ?)
"""
_FORGET = "delete from resume_tokens where name = ? and scope = ?"
_REPORT = "insert or replace into status (name, saved_at, status) values (?, ?, ?)"
_BURY = """
    insert into dead_letters (name, handler, event_id, event, error, traceback, attempts, buried_at)
    values (?, ?, ?, ?, ?, ?, ?, ?)
    on conflict (name, handler, event_id) do update set
        event = excluded.event, error = excluded.error, traceback = excluded.traceback,
        attempts = excluded.attempts, buried_at = excluded.buried_at
"""
_DISCARD = "delete from dead_letters where name = ? and id = ?"
_NAMES = (
    "select name from resume_tokens union select name from status union select name from dead_letters order by name"
)


class SQLiteStore(TokenStore):
    """Keep everything in one SQLite file, in WAL mode, readable for its owner only.

    Beside it lie ``-wal`` and ``-shm`` (SQLite's own) and one ``.<name>.lock`` for each consumer. Another program's or
    a later version's database, a damaged one, and one on a network file system are refused and left as they are.

    :param path: of the file (default "rigatoni.db"), made absolute now; ``~`` is the home directory. The file is made
        when it is opened, its directory is not.
    :param patience: how long a method tries again while another process has the file locked, or its disk is full, in
        seconds; default 30. Greenlets go on meanwhile.
    :raises ConfigurationError: when the path cannot be one.

    https://www.sqlite.org/wal.html
    """

    def __init__(self, path: str | os.PathLike[str] = "rigatoni.db", *, patience: float = 30.0) -> None:
        text = os.fspath(path)
        if text == ":memory:":
            raise ConfigurationError(
                "a store in memory is rigatoni.MemoryStore(); ':memory:' would be a file of this name"
            )
        if not text or "\0" in text:
            raise ConfigurationError(f"the path of a store cannot be empty or hold a NUL character: {text!r}")
        self.location = os.path.abspath(os.path.expanduser(text))
        self._connections = Connections(self.location, patience)
        self._locks: dict[str, LockFile] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.location!r})"

    def open(self) -> None:
        self._connections.run(lambda database: check_rows(database, self.location))

    def close(self) -> None:
        self._connections.close()

    def load(self, name: str) -> dict[str, Position]:
        rows = self._connections.read("select * from resume_tokens where name = ?", name)
        return {row["scope"]: self._position(row) for row in rows}

    def names(self) -> list[str]:
        return [row["name"] for row in self._connections.read(_NAMES)]

    def save(
        self, name: str, positions: Mapping[str, Position | None], status: Mapping[str, Any] | None = None
    ) -> None:
        now = time.time()
        statements: list[tuple[str, tuple[Any, ...]]] = []
        for scope, position in positions.items():
            if position is None:
                statements.append((_FORGET, (name, scope)))
            else:
                token = None if position.token is None else encode(position.token)
                time_text = encode(position.cluster_time)
                statements.append((_SAVE, (name, scope, token, time_text, position.fingerprint, position.cluster, now)))
        if status is not None:
            self._check_in_place(name)
            statements.append((_REPORT, (name, now, encode_status(status))))
        self._connections.write(statements)

    def status(self, name: str) -> dict[str, Any] | None:
        for row in self._connections.read("select saved_at, status from status where name = ?", name):
            try:
                return {**json.loads(row["status"]), "saved_at": float(row["saved_at"])}
            except (ValueError, TypeError) as error:
                raise self._corrupt("status", f"name {name!r}", error, "the watcher writes a new one") from error
        return None

    def bury(self, name: str, letter: DeadLetter) -> None:
        event = encode_event(letter.event)
        key = name, readable(letter.handler), event_id(letter.event, event)
        failure = readable(letter.error), readable(letter.traceback), letter.attempts, letter.buried_at
        self._connections.write([(_BURY, (*key, event, *failure))])

    def letters(self, name: str) -> list[DeadLetter]:
        rows = self._connections.read("select * from dead_letters where name = ? order by id", name)
        letters = []
        for row in rows:
            letters.append(self._letter(row))
            if len(letters) % LETTERS == 0 and is_patched():
                let_others_run()
        return letters

    def discard(self, name: str, id: int) -> bool:
        return self._connections.write([(_DISCARD, (name, id))]) > 0

    def lock(self, name: str) -> bool:
        lock = acquire(self._lock_path(name))
        if lock is not None:
            self._locks[name] = lock
        return lock is not None

    def unlock(self, name: str) -> None:
        lock = self._locks.pop(name, None)
        if lock is not None:
            lock.release()

    def holder(self, name: str) -> str | None:
        return holder_of(self._lock_path(name))

    def _lock_path(self, name: str) -> str:
        if not name or "/" in name or "\0" in name:
            raise ConfigurationError(
                f"the name of a consumer is part of a file name: {name!r} is empty, or holds a slash or a NUL character"
            )
        # By the real path, as SQLite does it for its -wal: whoever comes by another link must meet the same lock.
        return f"{os.path.realpath(self.location)}.{name}.lock"

    def _check_in_place(self, name: str) -> None:
        lock = self._locks.get(name)
        if lock is not None and not lock.is_in_place():
            raise removed(self._lock_path(name))
        self._connections.check_in_place()
        # What cleans up by age, as systemd-tmpfiles does, must not take what is in use for forgotten.
        for path in (self._lock_path(name), self.location, f"{os.path.realpath(self.location)}-shm"):
            with suppress(OSError):
                os.utime(path)

    def _position(self, row: Mapping[str, Any]) -> Position:
        try:
            token = None if row["token"] is None else decode(row["token"])
            cluster_time = decode(row["cluster_time"])
            if not isinstance(cluster_time, Timestamp):
                raise ValueError("a cluster_time that is no Timestamp")
            return Position(token, cluster_time, str(row["fingerprint"]), str(row["cluster"]), float(row["saved_at"]))
        except (ValueError, TypeError) as error:
            key = f"name {row['name']!r}, scope {row['scope']!r}"
            without = "a watcher without it begins at its start_at, and misses what came in between"
            raise self._corrupt("resume_tokens", key, error, without) from error

    def _letter(self, row: Mapping[str, Any]) -> DeadLetter:
        try:
            event = decode(row["event"])
            if not isinstance(event, Mapping):
                raise ValueError("an event that is no document")
            failure = row["error"], row["traceback"], row["attempts"], row["buried_at"]
            return DeadLetter(row["id"], row["handler"], event, *failure)
        except ValueError as error:
            key = f"name {row['name']!r}, id {row['id']}"
            raise self._corrupt("dead_letters", key, error, "its event is lost") from error

    def _corrupt(self, table: str, row: str, error: Exception, without: str) -> ResumeTokenPersistenceError:
        return ResumeTokenPersistenceError(
            f"a corrupt row in table {table} of {self.location}: {row} ({error}); "
            f"restore the file from a backup, or delete this row: {without}"
        )
