"""What a SQLite file can suffer: damage, foreign hands, full disks. It is reported, never overwritten."""

import json
import os
import sqlite3
import threading
import traceback
from pathlib import Path

import pytest
import sqlite_utils
from bson import Timestamp

from rigatoni import DeadLetter, Position, ResumeTokenPersistenceError, SQLiteStore

DATA = "82000000010000000A2B022C0100296E5A1004"
POSITION = Position.of({"_data": DATA})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "positions.db"


@pytest.fixture
def store(path):
    store = SQLiteStore(path, patience=0.05)
    store.open()
    yield store
    store.unlock("shop")
    store.close()


def by_hand(path, *statements):
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def refused(path):
    """Open a store that must be refused, and give the text of the refusal."""
    store = SQLiteStore(path, patience=0.05)
    with pytest.raises(ResumeTokenPersistenceError) as refusal:
        store.open()
    store.close()
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def test_the_file_is_in_wal_mode_and_other_tools_can_read_it(store, path):
    store.save("shop", {"shop.orders": POSITION}, {"state": "running"})
    tool = sqlite_utils.Database(path)
    [row] = tool["resume_tokens"].rows
    assert (row["name"], row["scope"], json.loads(row["token"])) == ("shop", "shop.orders", {"_data": DATA})
    assert json.loads(row["cluster_time"]) == {"$timestamp": {"t": 1, "i": 10}}
    assert [json.loads(row["status"]) for row in tool["status"].rows] == [{"state": "running"}]
    assert tool.journal_mode == "wal"
    tool.conn.close()


def test_synchronous_is_normal(store):
    asked = store._connections.run(lambda opened: opened.execute("pragma synchronous").fetchone())
    assert asked == (1,)


def flip(header):
    return lambda path: path.write_bytes(header + path.read_bytes()[len(header) :])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("name = 'shop'\n" * 400),
        flip(b"SQLite was here!"),
        flip(b"\0" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:6000]),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * (path.stat().st_size - 4096)),
    ],
    ids=["text", "magic", "header", "truncated", "pages"],
)
def test_a_damaged_file_is_refused_and_kept(store, path, damage):
    store.save("shop", {"": POSITION})
    store.close()
    damage(path)
    damaged = path.read_bytes()
    assert "restore it from a backup" in refused(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("mark", ["create table users (name)", "pragma application_id=42", "pragma user_version=3"])
def test_the_database_of_another_program_is_refused_and_kept(path, mark):
    by_hand(path, mark)
    before = path.read_bytes()
    assert "another program's" in refused(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == ["positions.db"]


def test_the_database_of_a_newer_version_is_refused_and_kept(store, path):
    store.close()
    by_hand(path, "pragma user_version=99")
    before = path.read_bytes()
    assert "upgrade rigatoni" in refused(path)
    assert path.read_bytes() == before


def test_tables_that_were_dropped_by_hand_are_not_taken_for_an_empty_store(store, path):
    store.close()
    by_hand(path, "drop table resume_tokens")
    with pytest.raises(ResumeTokenPersistenceError, match="changed by hand"):
        store.load("shop")


@pytest.mark.parametrize(
    "change",
    [
        f"token = '{DATA}'",
        """token = '{"_data": 5}'""",
        """token = '{"_data": "secret"}'""",
        """token = '["secret"]'""",
        "token = ''",
        "token = x'ff00'",
        "token = cast(x'ff00' as text)",
        "cluster_time = 'secret'",
        "cluster_time = '5'",
        """cluster_time = '{"$timestamp": {"t": 9, "i": 9}}'""",
        "saved_at = 'yesterday'",
    ],
)
def test_a_corrupt_row_stops_the_load_and_names_it(store, path, change):
    store.save("shop", {"shop.orders": POSITION, "shop": POSITION})
    by_hand(path, f"update resume_tokens set {change} where scope = 'shop.orders'")
    with pytest.raises(ResumeTokenPersistenceError) as raised:
        store.load("shop")
    text = "".join(traceback.format_exception(raised.value))
    for part in ("resume_tokens", "'shop'", "'shop.orders'", str(path), "restore"):
        assert part in str(raised.value)
    assert DATA not in text and "secret" not in text
    tool = sqlite_utils.Database(path)
    assert tool["resume_tokens"].count == 2
    tool.conn.close()


def test_a_corrupt_status_row_is_named_and_the_next_save_mends_it(store, path):
    store.save("shop", {}, {"state": "running"})
    for garbage in ("junk", "[1]"):
        by_hand(path, f"update status set status = '{garbage}'")
        with pytest.raises(ResumeTokenPersistenceError, match="table status .*'shop'"):
            store.status("shop")
    store.save("shop", {}, {"state": "stopped"})
    assert store.status("shop")["state"] == "stopped"


@pytest.mark.parametrize("garbage", ["junk", "[1]"])
def test_a_corrupt_letter_is_named_and_can_be_discarded(store, path, garbage):
    store.bury("shop", DeadLetter(None, "app:ship", {"_id": {"_data": DATA}}, "", "", 1, 0.0))
    [letter] = store.letters("shop")
    by_hand(path, f"update dead_letters set event = '{garbage}'")
    with pytest.raises(ResumeTokenPersistenceError, match=f"dead_letters .*id {letter.id} "):
        store.letters("shop")
    assert store.discard("shop", letter.id) is True
    assert store.letters("shop") == []


def test_a_full_disk_fails_clearly_keeps_what_there_was_and_is_left_when_there_is_space(store):
    store.save("shop", {"": POSITION}, {"state": "running"})

    def limit(pages):
        return store._connections.run(lambda opened: opened.execute(f"pragma max_page_count={pages}").fetchone()[0])

    limit(limit(1))
    long = Position.of({"_data": DATA + 100_000 * "AB"})
    with pytest.raises(ResumeTokenPersistenceError, match="free some space"):
        store.save("shop", {"": long, "shop": POSITION}, {"state": "stopping"})
    assert store.load("shop")[""].cluster_time == Timestamp(1, 10) and list(store.load("shop")) == [""]
    assert store.status("shop")["state"] == "running"
    limit(1_000_000)
    store.save("shop", {"": long})
    assert store.load("shop")[""].token == long.token


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("suffix", ["", ".shop.lock"])
def test_a_file_that_was_removed_or_replaced_is_noticed_by_the_next_status(store, path, suffix, replace):
    store.lock("shop")
    store.save("shop", {"": POSITION}, {"state": "running"})
    file = Path(str(path) + suffix)
    if replace:
        other = path.with_name("other")
        other.touch()
        os.replace(other, file)
    else:
        file.unlink()
    with pytest.raises(ResumeTokenPersistenceError, match="removed or replaced") as raised:
        store.save("shop", {"": POSITION}, {"state": "running"})
    assert str(file) in str(raised.value)


def test_a_removed_file_does_not_come_back_as_an_empty_store(store, path):
    store.save("shop", {"": POSITION})
    path.unlink()
    errors = []

    def load():
        try:
            store.load("shop")
        except ResumeTokenPersistenceError as error:
            errors.append(str(error))

    # Another thread opens a connection of its own, as every thread does after a fork.
    thread = threading.Thread(target=load)
    thread.start()
    thread.join(10)
    assert len(errors) == 1 and "removed or replaced" in errors[0]
    assert not path.exists()
