"""One SQLite connection for each native thread, and patience with other processes that does not hold up a hub."""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from gevent import monkey

from ..errors import ResumeTokenPersistenceError
from ..hub import native_ident, pause
from .database import connect, failed, prepare, transaction, unusable

if TYPE_CHECKING:
    from sqlite_utils import Database

T = TypeVar("T")

#: Seconds between two attempts, a cooperative wait, while another process has the database locked.
RETRY_DELAY = 0.02

# What other processes, or another thread that closes or forks, may end at any time. Told by their texts: Python 3.10
# gives no error codes.
_PASSING = ("lock", "disk is full", "closed database")

# Native locks, because the threads may have different hubs: held for one transaction at most, and never across a switch
# of greenlets. Reentrant, because a signal handler may fork at any time.
_native_lock: Callable[[], Any] = monkey.get_original("_thread", "RLock")

_opening = _native_lock()
_all: weakref.WeakSet[Connections] = weakref.WeakSet()


class Connections:
    """Give every native thread a connection of its own; greenlets of one thread share it.

    :param path: of the database, absolute.
    :param patience: how long a locked or full database is tried again, in seconds.
    """

    def __init__(self, path: str, patience: float) -> None:
        self._path = path
        self._patience = patience
        # By process too, for forks that Python's hooks do not see. Never by threading.get_ident: patched, that is the
        # greenlet's.
        self._open: dict[tuple[int, int], tuple[Database, Any]] = {}
        self._identity: tuple[int, int] | None = None
        with _opening:
            # Not while another thread forks and goes through them.
            _all.add(self)
        # A store that nobody closes closes itself: Python 3.13 warns of connections that it has to collect.
        weakref.finalize(self, _close, self._open).atexit = False

    def read(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """Run one query and give all its rows."""
        return self.run(lambda database: list(database.query(sql, values)))

    def write(self, statements: Iterable[tuple[str, tuple[Any, ...]]]) -> int:
        """Run statements in one transaction and tell how many rows the last one concerned."""

        def work(database: Database) -> int:
            concerned = 0
            with transaction(database):
                for sql, values in statements:
                    concerned = database.execute(sql, values).rowcount
            return concerned

        return self.run(work)

    def run(self, work: Callable[[Database], T]) -> T:
        """Run `work` with this thread's connection, again and again while another process is in the way.

        :param work: must not switch greenlets.
        :raises ResumeTokenPersistenceError: when it fails for another reason, or for longer than the patience.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                database, lock = self._mine()
                with lock:
                    return work(database)
            except sqlite3.Error as error:
                passing = any(text in str(error) for text in _PASSING)
                if not passing or time.monotonic() >= deadline:
                    raise failed(self._path, error) from error
            pause(RETRY_DELAY)

    def check_in_place(self) -> None:
        """Find out whether the path still leads to the file that was opened.

        :raises ResumeTokenPersistenceError: when it does not.
        """
        identity = self._identity
        if identity is not None and identity != _identity(self._path):
            raise removed(self._path)

    def close(self) -> None:
        """Close the connections of all threads of this process; whoever uses one next opens it anew."""
        with _opening:
            _close(self._open)
            self._identity = None

    def _mine(self) -> tuple[Database, Any]:
        key = (os.getpid(), native_ident())
        found = self._open.get(key)
        if found is None:
            with _opening:
                # Before anything is made: a file that was removed must not come back as an empty store.
                self.check_in_place()
                prepare(self._path)
                # Taken before SQLite opens the file: if it is replaced in between, the next check finds out.
                self._identity = _identity(self._path)
                found = self._open[key] = (connect(self._path), _native_lock())
        return found


def removed(path: str) -> ResumeTokenPersistenceError:
    """Make the error for a file that is no longer where it was opened."""
    return unusable(
        path,
        "it was removed or replaced while it was in use; what is saved would be lost, or another process could take "
        "the name. Put the file back, then start the watcher again",
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _close(opened: dict[tuple[int, int], tuple[Database, Any]]) -> None:
    for key, (database, lock) in tuple(opened.items()):
        if key[0] == os.getpid():
            with lock:
                opened.pop(key, None)
                database.conn.close()


def _before_fork() -> None:
    # SQLite in a child believes to hold the locks of its parent's connections. It would not take its own: measured, a
    # parent that closes the database then deletes the -wal file into which its child goes on writing.
    # https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_across_a_fork_
    _opening.acquire()
    for connections in list(_all):
        _close(connections._open)


os.register_at_fork(before=_before_fork, after_in_parent=_opening.release, after_in_child=_opening.release)
