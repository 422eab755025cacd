"""The programs on the other pages of the manual do what is said there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import wait_until
from documents import Page
from pymongo import MongoClient
from reader import Reader

from rigatoni import DeadLetter, SQLiteStore
from rigatoni.testing import make_event

URI = "mongodb://localhost:27017"
ORDERS = Page("README.rst").take("def ship(event):\n    print(")
TESTING = Page("docs/testing.rst")
SHOP = TESTING.take("shipped = []")
RUNNING = Page("docs/running.rst")
MEANWHILE = RUNNING.take("time.sleep(60)")
PATCHED = RUNNING.take("patch_all")
REPLAY = Page("docs/stores.rst").take("watcher.store.discard(")
LISTENER = Page("docs/listener.rst").take("ChangeStreamListener(")


def test_the_tests_of_the_chapter_on_testing_pass(tmp_path: Path, mongodb_replica_set: Any) -> None:
    reader = Reader(tmp_path, mongodb_replica_set.uri)
    tests = [TESTING.take(block) for block in TESTING.blocks if block != SHOP]
    reader.save("shop.py", SHOP)
    reader.save("test_shop.py", "\n\n".join(tests))

    ended = reader.runs("python", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_shop.py")

    assert f"{''.join(tests).count('def test_')} passed" in ended


def pointed_at(uri: str, database: Any, text: str) -> str:
    """Put a real server and a fresh database in place of those of a page."""
    assert URI in text and "shop" in text
    return text.replace(URI, uri).replace('"shop"', repr(database.name)).replace(".shop.", f".{database.name}.")


def test_a_program_does_something_else_meanwhile(tmp_path: Path, mongodb_replica_set: Any, database: Any) -> None:
    reader = Reader(tmp_path, mongodb_replica_set.uri)
    reader.save("orders.py", pointed_at(mongodb_replica_set.uri, database, ORDERS))
    for name, text in (("meanwhile.py", MEANWHILE), ("patched.py", PATCHED)):
        reader.save(name, text)
        with reader.starts("python", name) as running:
            store = SQLiteStore(tmp_path / "rigatoni.db")
            wait_until(lambda store=store, running=running: is_active(store, running.process.pid))
            store.close()
            database.orders.insert_one({"item": name})
            wait_until(lambda running=running, name=name: f"shipping {name}" in running.out)


def is_active(store: SQLiteStore, pid: int) -> bool:
    status = store.status("default") or {}
    return (status.get("state"), status.get("pid")) == ("running", pid)


def test_a_dead_letter_is_replayed_and_discarded(tmp_path: Path) -> None:
    event = make_event("insert", "orders", "shop", {"item": "pasta"})
    store = SQLiteStore(tmp_path / "rigatoni.db")
    store.bury("default", DeadLetter(None, "orders:ship", event.raw, "ValueError: no pasta", "", 3, 0.0))
    reader = Reader(tmp_path, URI)
    reader.save("orders.py", ORDERS)
    reader.save("replay.py", REPLAY)

    assert reader.runs("python", "replay.py") == "shipping pasta\n"
    assert store.letters("default") == []
    store.close()


def test_the_listener_prints_what_it_reads(tmp_path: Path, mongodb_replica_set: Any, database: Any) -> None:
    reader = Reader(tmp_path, mongodb_replica_set.uri)
    reader.save("listen.py", pointed_at(mongodb_replica_set.uri, database, LISTENER))
    with reader.starts("python", "listen.py") as running, MongoClient(mongodb_replica_set.uri) as client:

        def is_finished() -> bool:
            client[database.name].orders.insert_one({"item": "pasta"})
            return "insert {'_id'" in running.out and "finished up to" in running.out

        wait_until(is_finished)


def test_every_program_of_these_pages_is_run() -> None:
    pages = [TESTING, RUNNING]

    assert [page.left for page in pages] == [[], []]
