"""Where the store is, or would be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..consumer import is_there
from .finding import Finding, note, ok, problem, warning

if TYPE_CHECKING:
    from rigatoni import SQLiteStore

#: Bytes that should be free on the disk.
_FREE = 100 * 2**20
_FLEETING = {
    "overlay": "the container's own layer, which goes with the container",
    "tmpfs": "memory, which is lost when the machine restarts",
}


def examine_place(path: str) -> Iterator[Finding]:
    """Look whether positions can be kept there, without making anything."""
    from rigatoni import SQLiteStore, StreamError
    from rigatoni.stores.database import check_place

    try:
        store = SQLiteStore(path)
        directory = check_place(store.location)
        if is_there(store.location):
            yield from _examine_file(store)
        else:
            yield _examine_absent(store.location, directory)
    except StreamError as error:
        yield problem("store", str(error))
        return
    yield from _examine_disk(directory)


def _examine_file(store: SQLiteStore) -> Iterator[Finding]:
    # Opened, because only so it is known whether it is sound.
    store.open()
    try:
        names = store.names()
    finally:
        store.close()
    yield ok("store", f"{store.location} is sound; names in it: {', '.join(map(ascii, names)) or 'none'}")
    found = os.stat(store.location)
    if found.st_uid != os.geteuid():
        mend = f"run as that user, or: chown {os.geteuid()} {store.location}*"
        yield warning("store", f"it belongs to user id {found.st_uid}, and this is {os.geteuid()}", mend)
    if found.st_mode & 0o077:
        mend = f"chmod 600 {store.location}"
        yield warning("store", "others may read or write it, and tokens and letters hold data", mend)


def _examine_absent(path: str, directory: str) -> Finding:
    if os.path.islink(path) or not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        mend = f"make {directory} writable for this user: chown {os.geteuid()} {directory}"
        return problem("store", f"{path} is not there, and user id {os.geteuid()} cannot make it", mend)
    return note("store", f"{path} is not there yet: the first start makes it")


def _examine_disk(directory: str) -> Iterator[Finding]:
    from rigatoni.stores.database import file_system_of

    kind = file_system_of(directory)
    if kind in _FLEETING:
        mend = "mount a volume, and put the store there: --store, RIGATONI_STORE or store="
        yield warning("store", f"{directory} lies in {_FLEETING[kind]}", mend)
    free = shutil.disk_usage(directory).free
    if free < _FREE:
        yield warning("disk", f"only {free // 2**20} MB are free in {directory}", "free some space there")
    else:
        yield ok("disk", f"{free / 2**30:.1f} GB are free in {directory}")
