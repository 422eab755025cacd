"""A lock among the processes of one host, which the system frees with the process that holds it.

It is `flock`, on a file of its own, because closing any descriptor of the database would drop SQLite's locks on it. The
file is never deleted: whoever still had it open would lock a file that nobody else can find.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress

from ..errors import ConfigurationError, ResumeTokenPersistenceError

#: What the system has none of at the moment: descriptors, memory. Who stands by asks again.
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})

#: The lock files of this process, by device and inode. The pid in a file tells nothing: in two containers on one volume
#: both may be 1.
_held: dict[tuple[int, int], LockFile] = {}


class LockFile:
    """Hold an exclusive lock; made by :func:`acquire`."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._process = os.getpid()
        self._identity = _identity(os.fstat(descriptor))

    def is_in_place(self) -> bool:
        """Tell whether the path still leads to the file that is locked."""
        try:
            return _identity(os.stat(self._path)) == self._identity
        except OSError:
            return False

    def release(self) -> None:
        """Free the lock; does nothing in a child of the process that took it."""
        if self._process == os.getpid():
            os.ftruncate(self._descriptor, 0)
            # Not by closing alone: a child that is being forked at this moment may still have a copy.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._forget()

    def _take(self) -> bool:
        """Lock the file and write into it who did."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Unlinked between open and flock: another process may lock the new file of this name.
        if not self.is_in_place():
            return False
        os.fchmod(self._descriptor, 0o600)
        os.ftruncate(self._descriptor, 0)
        # Who it is, is only told to people: a full disk keeps nobody from watching.
        with suppress(OSError):
            os.pwrite(self._descriptor, f"pid {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        return True

    def _forget(self) -> None:
        del _held[self._identity]
        os.close(self._descriptor)


def acquire(path: str) -> LockFile | None:
    """Lock a file, making it when it is not there; None when another process has it locked, or nobody can say now.

    :param path: of the lock file.
    :raises ConfigurationError: when this process has it locked.
    :raises ResumeTokenPersistenceError: when the file cannot be opened or written.
    """
    try:
        lock = LockFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        # Entered before it is locked, so that of two threads that ask at once one is refused.
        if _held.setdefault(lock._identity, lock) is not lock:
            os.close(lock._descriptor)
            raise ConfigurationError(
                f"this process already holds the lock {path}: two watchers share one name and one store; "
                "give one of them another name="
            )
        taken = False
        try:
            taken = lock._take()
        finally:
            if not taken:
                lock._forget()
    except OSError as error:
        if error.errno in _SCARCE:
            return None
        raise ResumeTokenPersistenceError(
            f"the lock file {path} cannot be used: {error.strerror}; "
            f"it must be a regular file on a local disk, and user id {os.geteuid()} must be able to write it"
        ) from error
    return lock if taken else None


def holder(path: str) -> str | None:
    """Read from a lock file who locked it; None when there is no file, or nobody in it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return " ".join(file.read(1000).split()) or None
    except OSError:
        return None


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _close_copies() -> None:
    # A lock is freed only when every copy of its descriptor is closed, so that a child would keep the name after the
    # death of its parent. Closed and not unlocked: LOCK_UN by any copy would free the parent's lock.
    for lock in _held.values():
        os.close(lock._descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_copies)
