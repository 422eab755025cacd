"""A disk that is full under the token file, or may not be written: a small file system of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import BOTH, Program
from watchers import collecting

from rigatoni import ResumeTokenPersistenceError, SQLiteStore, Watcher

pytestmark = pytest.mark.faults

WATCH = """
from rigatoni import SQLiteStore, Watcher

store = SQLiteStore(given["store"], patience=given["patience"])
watcher = Watcher(given["uri"], given["database"], store=store)


@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"], id=event.id)


say(state=watcher.start())
watcher.join()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert "No space" in str(error)
    return filler


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any, disk: Path) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name, "store": str(disk / "tokens.db")}


@BOTH
def test_a_full_disk_ends_the_watcher_after_its_patience_and_once_freed_it_goes_on_where_it_was(
    database: Any, given: Any, disk: Path, tmp_path: Path, patched: bool
) -> None:
    reader = SQLiteStore(given["store"])
    with Program(WATCH, tmp_path, patched=patched, patience=1.0, **given) as program:
        program.wait_said("state")
        database.orders.insert_one({"_id": 1})
        first = program.wait_said("id")
        program.wait_for(lambda: reader.load("default")[database.name].token["_data"] >= first)
        filler = fill(disk)
        handled = 1
        # The log of SQLite may still have a page to spare.
        while program.process.poll() is None:
            handled += 1
            database.orders.insert_one({"_id": handled})
            gevent.sleep(0.02)
        assert program.end() == 1
    reader.close()
    assert "database or disk is full; free some space on its disk" in program.complaints
    assert given["store"] in program.complaints
    seen = program.said("handled")
    assert seen == list(range(1, len(seen) + 1))
    filler.unlink()
    with Program(WATCH, tmp_path, patched=patched, patience=1.0, **given) as again:
        again.wait_for(lambda: handled in again.said("handled"))
    assert {*seen, *again.said("handled")} == set(range(1, handled + 1))
    # What was done on the full disk comes again, and nothing older.
    repeated = again.said("handled")
    assert 1 not in repeated and repeated == list(range(repeated[0], handled + 1))


@BOTH
def test_when_space_is_freed_in_time_the_watcher_goes_on_and_nothing_is_repeated(
    database: Any, given: Any, disk: Path, tmp_path: Path, patched: bool
) -> None:
    reader = SQLiteStore(given["store"])
    with Program(WATCH, tmp_path, patched=patched, patience=60.0, **given) as program:
        program.wait_said("state")
        filler, number, stored = fill(disk), 0, None
        while stored is None or reader.load("default") != stored:
            stored = reader.load("default")
            database.orders.insert_one({"_id": (number := number + 1)})
            program.wait_for(lambda n=number: n in program.said("handled"))
            # Longer than it takes to save.
            gevent.sleep(0.5)
        database.orders.insert_one({"_id": (number := number + 1)})
        program.wait_for(lambda: number in program.said("handled"))
        filler.unlink()
        wait_until(lambda: reader.load("default") != stored)
        database.orders.insert_one({"_id": number + 1})
        program.wait_for(lambda: number + 1 in program.said("handled"))
        assert program.said("handled") == list(range(1, number + 2))
    reader.close()


def test_a_read_only_mount_stops_the_start_with_the_path_and_once_mended_nothing_is_lost(
    database: Any, given: Any, disk: Path
) -> None:
    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    watcher = Watcher(given["uri"], given["database"], store=given["store"])
    seen = collecting(watcher, "insert")
    with watcher:
        database.orders.insert_one({"_id": 1})
        wait_until(lambda: seen)
    remount("ro")
    with pytest.raises(ResumeTokenPersistenceError, match="may not read and write .* or the mount") as raised:
        watcher.start()
    assert given["store"] in str(raised.value)
    database.orders.insert_one({"_id": 2})
    remount("rw")
    with watcher:
        wait_until(lambda: len(seen) == 2)
    assert seen == [1, 2]
