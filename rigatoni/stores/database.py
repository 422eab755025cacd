"""Open a SQLite file, or refuse it and leave it as it is."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ResumeTokenPersistenceError

if TYPE_CHECKING:
    from sqlite_utils import Database

#: Says in the header of a SQLite file whose it is: "RGTN". https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x5247544E
#: Of the tables; a file with a higher one was written by a later rigatoni.
SCHEMA_VERSION = 1

_SCHEMA = (
    """
    create table resume_tokens (
        name text not null, scope text not null, token text, cluster_time text not null, fingerprint text not null,
        cluster text not null, saved_at float not null, primary key (name, scope)
    )
    """,
    # AUTOINCREMENT: an id that a person has read must never come to mean another letter.
    """
    create table dead_letters (
        id integer primary key autoincrement, name text not null, handler text not null, event_id text not null,
        event text not null, error text not null, traceback text not null, attempts integer not null,
        buried_at float not null, unique (name, handler, event_id)
    )
    """,
    "create table status (name text primary key, saved_at float not null, status text not null)",
    f"pragma application_id={APPLICATION_ID}",
    f"pragma user_version={SCHEMA_VERSION}",
)

#: Where Linux lists what is mounted; absent on other systems.
MOUNT_TABLE = Path("/proc/self/mountinfo")
#: WAL needs memory that all its processes share, which files of other hosts do not give. https://www.sqlite.org/wal.html
NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs"})

_DAMAGED = "it is damaged or no database, and was left as it is: restore it from a backup, or give store= another path"
_CHANGED = "its tables were changed by hand: restore it from a backup, or give store= another path"
_MENDS = {
    "not a database": _DAMAGED,
    "malformed": _DAMAGED,
    "disk is full": "free some space on its disk",
    "disk I/O error": "free some space on its disk, or have the disk looked after",
    "readonly": "make the file and its directory writable for this user",
    "unable to open": "make the file and its directory readable and writable for this user",
    "lock": "another process holds a transaction on it: end that one (a database browser, a backup, a shell)",
    "no such": _CHANGED,
    "no column": _CHANGED,
}


def unusable(path: str, reason: str) -> ResumeTokenPersistenceError:
    """Make the error that names the file.

    :param reason: what is wrong, and the mend.
    """
    return ResumeTokenPersistenceError(f"the store {path} cannot be used: {reason}")


def failed(path: str, error: sqlite3.Error) -> ResumeTokenPersistenceError:
    """Make the error that names the file, what SQLite says of it, and the mend."""
    text = str(error)
    return unusable(path, "; ".join([text, *(mend for part, mend in _MENDS.items() if part in text)]))


def prepare(path: str) -> None:
    """Make the file, readable for its owner only, when it is not there; refuse places where it cannot be kept.

    :param path: absolute.
    :raises ResumeTokenPersistenceError: naming the mend.
    """
    real = os.path.realpath(path)
    directory = check_place(path)
    try:
        _make(real)
    except OSError as error:
        raise unusable(
            path, f"{error.strerror}; make the directory {directory} writable for user id {os.geteuid()}"
        ) from error
    _refuse_unwritable(path, directory)


def check_place(path: str) -> str:
    """Give the directory where the file is, or would be, and refuse one where it cannot be kept; nothing is made.

    :param path: absolute.
    :raises ResumeTokenPersistenceError: naming the mend.
    """
    directory = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(directory):
        raise unusable(path, f"there is no directory {directory}; make it, or give store= another path")
    _refuse_unsafe_place(path, directory)
    return directory


def connect(path: str) -> Database:
    """Open the file, making it when it is not there, and make its tables when it is empty.

    Waits for nothing.

    :param path: absolute; :func:`prepare` was called with it.
    :raises sqlite3.Error: when it is damaged, or while another process has it locked.
    :raises ResumeTokenPersistenceError: when it is another program's or a later version's, or cannot be kept safely
        where it is.
    """
    # Imported here because it takes a tenth of a second, which a program that uses another store should not pay.
    import sqlite_utils

    # mode=rw: prepare() made the file with its mode; SQLite alone would make it readable for everybody. No isolation
    # level: the only transactions are those of transaction() below.
    connection = sqlite3.connect(
        f"{Path(path).as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        # A damaged row must be found where it is read, by its name, and not by a text that shows it.
        connection.text_factory = lambda data: data.decode("utf-8", "backslashreplace")
        database = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
        _make_ready(database, path)
    except BaseException:
        connection.close()
        raise
    return database


@contextmanager
def transaction(database: Database, begin: str = "begin immediate") -> Iterator[None]:
    """Write all or nothing. What runs inside must not switch greenlets: another one could use the same connection.

    :param begin: default immediate, so that a lock of another process is met here and not at the first write.
    """
    try:
        database.execute(begin)
        yield
        database.execute("commit")
    except BaseException:
        if database.conn.in_transaction:
            database.execute("rollback")
        raise


def check_rows(database: Database, path: str) -> None:
    """Find out whether the pages that hold the positions are sound."""
    [answer] = database.execute("pragma quick_check(resume_tokens)").fetchone()
    if answer != "ok":
        raise unusable(path, f"SQLite finds in it: {answer!r:.200}; {_DAMAGED}")


def _make_ready(database: Database, path: str) -> None:
    # All of one moment, because another process may be making the tables.
    with transaction(database, "begin"):
        is_new = _is_new(database, path)
    [mode] = database.execute("pragma journal_mode=wal").fetchone()
    if mode != "wal":
        raise unusable(path, f"SQLite keeps its journal mode {mode!r} where WAL was asked for; put it on a local disk")
    database.execute("pragma synchronous=normal")
    if is_new:
        with transaction(database):
            # Asked again, because another process may have been faster.
            if _is_new(database, path):
                for statement in _SCHEMA:
                    database.execute(statement)


def _is_new(database: Database, path: str) -> bool:
    [application] = database.execute("pragma application_id").fetchone()
    [version] = database.execute("pragma user_version").fetchone()
    if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
        return False
    if (application, version) == (0, 0) and not database.table_names():
        return True
    if application == APPLICATION_ID:
        raise unusable(
            path, f"its schema is version {version}, and this rigatoni knows version {SCHEMA_VERSION}; upgrade rigatoni"
        )
    raise unusable(path, "it is another program's SQLite database and was left as it is; give store= another path")


def _make(path: str) -> None:
    try:
        # O_EXCL: closing a descriptor of a file that SQLite has open in this process would drop its locks.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    # Also one that was made beforehand (touch, a volume); with something in it, its mode is its owner's will.
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        os.chmod(path, 0o600)


def _refuse_unsafe_place(path: str, directory: str) -> None:
    file_system = file_system_of(directory)
    if file_system in NETWORK_FILE_SYSTEMS:
        raise unusable(
            path,
            f"it is on a network file system ({file_system}), where SQLite is not safe; put it on a local disk",
        )
    if os.path.islink(path) and os.stat(os.path.dirname(path)).st_mode & stat.S_IWOTH:
        raise unusable(
            path, "it is a symbolic link in a directory that everybody may write; give the path of the file itself"
        )


def _refuse_unwritable(path: str, directory: str) -> None:
    if not os.path.isfile(path):
        raise unusable(path, "it is a directory or a device; give store= the path of a file")
    # SQLite makes its -wal and -shm files beside it.
    for place in (path, directory):
        if not os.access(place, os.R_OK | os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise unusable(
                path, f"user id {os.geteuid()} may not read and write {place}; change its owner or mode, or the mount"
            )


def file_system_of(directory: str) -> str | None:
    """Name the file system of a directory; None where the system does not say.

    The last of the longest mount points that lead there decides.
    """
    try:
        table = MOUNT_TABLE.read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    longest, found = "", ""
    for line in table.splitlines():
        # https://docs.kernel.org/filesystems/proc.html (mountinfo): white space in a path is written in octal.
        mount, _, source = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split()[4])
        if os.path.commonpath([point, directory]) == point and len(point) >= len(longest):
            longest, found = point, source.split()[0]
    return found or None
