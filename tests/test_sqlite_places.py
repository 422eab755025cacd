"""Where a SQLite file may lie, and who may read it."""

import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rigatoni import ConfigurationError, Position, ResumeTokenPersistenceError, SQLiteStore
from rigatoni.stores import database

POSITION = Position.of({"_data": "82000000010000000A2B022C0100296E5A1004"})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "positions.db"


def refused(path):
    """Open a store that must be refused, and give the text of the refusal."""
    with pytest.raises(ResumeTokenPersistenceError) as refusal:
        SQLiteStore(path, patience=0.05).open()
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def test_the_constructor_touches_nothing_and_makes_the_path_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/nobody")
    store = SQLiteStore("positions.db")
    assert SQLiteStore("~/positions.db").location == "/home/nobody/positions.db"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir("/")
    assert store.location == str(tmp_path / "positions.db")
    assert store.location in repr(store)


@pytest.mark.parametrize(("path", "mend"), [(":memory:", "MemoryStore"), ("a\0b", "NUL"), ("", "empty")])
def test_a_path_that_cannot_be_one_is_refused_by_the_constructor(path, mend):
    with pytest.raises(ConfigurationError, match=mend):
        SQLiteStore(path)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a\0b"])
def test_a_name_that_cannot_be_part_of_a_file_name_has_no_lock(path, name):
    with pytest.raises(ConfigurationError, match="name"):
        SQLiteStore(path).lock(name)


@pytest.mark.parametrize("mask", [0o000, 0o077, 0o777])
def test_all_files_are_for_the_owner_only_whatever_the_umask(path, mask):
    store = SQLiteStore(path)
    before = os.umask(mask)
    try:
        store.save("shop", {"": POSITION})
        store.lock("shop")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    files = ["positions.db", "positions.db-shm", "positions.db-wal", "positions.db.shop.lock"]
    assert modes == dict.fromkeys(files, 0o600)
    store.unlock("shop")
    store.close()


def test_an_empty_file_becomes_a_store_for_its_owner_only(path):
    path.touch(0o644)
    store = SQLiteStore(path)
    assert store.load("shop") == {}
    assert path.stat().st_mode & 0o777 == 0o600
    store.close()


def test_a_directory_a_device_and_a_missing_directory_are_refused_with_the_mend(tmp_path):
    assert "the path of a file" in refused(tmp_path)
    assert "the path of a file" in refused(Path("/dev/null"))
    assert "make it" in refused(tmp_path / "missing" / "positions.db")
    assert list(tmp_path.iterdir()) == []


UNPRIVILEGED = """
import os, sys, json, sqlite_utils
from rigatoni import SQLiteStore, ResumeTokenPersistenceError
if os.geteuid() == 0:
    os.setuid(65534)
texts = []
for path in sys.argv[1:]:
    try:
        SQLiteStore(path).open()
        texts.append(None)
    except ResumeTokenPersistenceError as error:
        texts.append(str(error))
print(json.dumps(texts))
"""


def test_files_and_directories_that_may_not_be_written_are_refused_with_the_user_named():
    # Not in pytest's directory, which other users may not enter; a superuser, who may write everything, becomes nobody.
    with tempfile.TemporaryDirectory() as directory:
        unwritable, unreadable = Path(directory, "unwritable"), Path(directory, "unreadable")
        for folder in (unwritable, unreadable):
            folder.mkdir()
            store = SQLiteStore(folder / "old.db")
            store.open()
            store.close()
        os.chmod(unreadable / "old.db", 0o000)
        for folder, mode in ((unreadable, 0o777), (unwritable, 0o555), (Path(directory), 0o755)):
            os.chmod(folder, mode)
        paths = [str(unwritable / "old.db"), str(unwritable / "new.db"), str(unreadable / "old.db")]
        answer = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, *paths], capture_output=True, text=True, check=True
        )
        os.chmod(unwritable, 0o755)
    for path, text in zip(paths, json.loads(answer.stdout), strict=True):
        assert path in text and "user id" in text


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3"])
def test_a_network_file_system_is_refused_and_left_untouched(tmp_path, monkeypatch, kind):
    share = tmp_path / "with space"
    share.mkdir()
    escaped = str(share).replace(" ", r"\040")
    table = tmp_path / "mountinfo"
    table.write_text(
        f"21 1 0:1 / / rw - ext4 /dev/sda rw\n36 21 0:2 / {escaped} rw,noatime shared:1 - {kind} server:/x rw\n"
    )
    monkeypatch.setattr(database, "MOUNT_TABLE", table)
    assert f"({kind})" in refused(share / "positions.db")
    assert list(share.iterdir()) == []
    local = SQLiteStore(tmp_path / "positions.db")
    local.open()
    local.close()


def test_a_local_disk_mounted_inside_a_network_file_system_is_accepted(path, tmp_path, monkeypatch):
    table = tmp_path / "mountinfo"
    table.write_text(
        f"37 36 0:3 / {tmp_path} rw - ext4 /dev/sdb rw\n36 21 0:2 / {tmp_path.parent} rw - nfs4 server:/x rw\n"
    )
    monkeypatch.setattr(database, "MOUNT_TABLE", table)
    store = SQLiteStore(path)
    assert store.load("shop") == {}
    store.close()


def test_a_symbolic_link_where_everybody_may_write_is_refused(tmp_path):
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    (public / "positions.db").symlink_to(tmp_path / "target.db")
    assert "symbolic link" in refused(public / "positions.db")
    assert not (tmp_path / "target.db").exists()


def test_a_lock_file_that_is_no_file_of_ours_is_refused_with_its_path(path):
    lock = path.with_name("positions.db.shop.lock")
    lock.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(ResumeTokenPersistenceError) as raised:
        SQLiteStore(path).lock("shop")
    assert str(lock) in str(raised.value)
    assert not path.with_name("elsewhere").exists()


def test_sqlite_utils_is_imported_only_when_a_file_is_opened(path):
    code = """
import sys
from rigatoni import SQLiteStore
store = SQLiteStore(sys.argv[1])
before = "sqlite_utils" in sys.modules
store.open()
print(before, "sqlite_utils" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert answer.stdout == "False True\n"


def test_a_store_that_nobody_closed_closes_when_it_is_gone(path):
    store = SQLiteStore(path)
    store.open()
    ((database, _),) = store._connections._open.values()

    del store
    gc.collect()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.conn.execute("select 1")
