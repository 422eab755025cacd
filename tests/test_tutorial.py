"""The tutorial does what it says: each of its programs is run, on a real server, as its reader would."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from commands import ENVIRONMENT, Running, running
from conftest import wait_until
from documents import Page
from pymongo import MongoClient
from reader import Reader
from test_examples import address

TUTORIAL = Page("docs/tutorial.rst")
SERVER = TUTORIAL.take("ReplicaSet()")
ORDERS = TUTORIAL.take('print("packing"')
SELL = TUTORIAL.take("sys.argv")
FAILING = TUTORIAL.take("raise LookupError")
EVENTS = TUTORIAL.take("def reprice")
MANUAL = TUTORIAL.take('ack="manual"')
BATCH = TUTORIAL.take("on_batch")
MAILS = TUTORIAL.take("concurrency=50")
TEST = TUTORIAL.take("make_event")
WEB = TUTORIAL.take("Rigatoni(app")
SERVICE = TUTORIAL.take('name="shipping"')


@pytest.fixture
def reader(tmp_path: Path, mongodb_replica_set: Any) -> Reader:
    reader = Reader(tmp_path, mongodb_replica_set.uri)
    reader.save("sell.py", SELL)
    return reader


def is_running(reader: Reader, name: str = "default") -> bool:
    return '"state": "running"' in status(reader, name)


def status(reader: Reader, name: str = "default") -> str:
    return rows(reader, "select status from status where name = ?", name)


def rows(reader: Reader, query: str, *values: str) -> str:
    """Look into the store beside a program that uses it; empty as long as there is nothing."""
    path = reader.folder / "rigatoni.db"
    if not path.exists():
        return ""
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute(query, values).fetchall())
    except sqlite3.OperationalError:
        return ""
    finally:
        connection.close()


def wait_said(running: Running, *lines: str) -> None:
    wait_until(lambda: running.process.poll() is not None or all(line in running.out for line in lines))
    assert all(line in running.out for line in lines), running.out + running.err


def told_after(command: str) -> list[str]:
    """Give the lines that the tutorial shows below a command."""
    return (
        TUTORIAL.text.split(f"    $ {command}\n    packing", 1)[1]
        .join(["packing", ""])
        .split("\n\n")[0]
        .split("\n    ")
    )


def test_a_server_that_is_started_by_the_reader_is_a_replica_set(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    command = [sys.executable, "server.py"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        uri = server.stdout.readline().split("'")[1]
        with MongoClient(uri) as client, client.shop.orders.watch() as stream:
            client.shop.orders.insert_one({})
            assert stream.next()["operationType"] == "insert"
        server.communicate("\n", timeout=60)
    assert server.returncode == 0


def test_a_killed_program_goes_on_as_the_tutorial_shows(reader: Reader, shop: Any) -> None:
    reader.save("orders.py", ORDERS)
    with reader.starts("python", "orders.py") as first:
        wait_until(lambda: is_running(reader))
        reader.runs("python", "sell.py", "pasta")
        wait_said(first, "packing pasta", "shipped pasta")
        assert first.end(signal.SIGINT) == 0
    assert "starts from now" in first.err
    with reader.starts("python", "orders.py") as second:
        wait_until(lambda: is_running(reader))
        before = rows(reader, "select token from resume_tokens")
        reader.runs("python", "sell.py", "pasta", "rice", "beans")
        wait_said(second, "packing rice")
        wait_until(lambda: rows(reader, "select token from resume_tokens") != before)
        assert second.end(signal.SIGKILL) != 0
    reader.runs("python", "sell.py", "bread")
    with reader.starts("python", "orders.py") as third:
        wait_said(third, "shipped bread")
        assert third.out.splitlines() == told_after("python orders.py")
        assert "running" in reader.runs("rigatoni", "status")
        assert third.end(signal.SIGINT) == 0
    assert "shop" in reader.runs("rigatoni", "tokens", "list")
    assert third.err == ""


def test_a_dead_letter_is_listed_and_handled_once_the_handler_is_mended(reader: Reader, shop: Any) -> None:
    reader.save("orders.py", FAILING)
    with reader.starts("rigatoni", "run", "orders:watcher") as running:
        wait_until(lambda: is_running(reader))
        reader.runs("python", "sell.py", "capers", "rice")
        wait_said(running, "shipped rice")
        assert running.end(signal.SIGTERM) == 0
    assert "no capers left" in reader.runs("rigatoni", "dead-letters", "list")
    assert "LookupError" in reader.runs("rigatoni", "dead-letters", "show", "1")
    reader.save("orders.py", FAILING.replace('{"pasta", "rice"}', '{"pasta", "rice", "capers"}'))

    assert "shipped capers" in reader.runs("rigatoni", "dead-letters", "replay", "orders:watcher", "--all")
    assert "capers" not in reader.runs("rigatoni", "dead-letters", "list")


def test_handlers_get_the_events_that_they_asked_for(reader: Reader, shop: Any) -> None:
    reader.save("products.py", EVENTS)
    with reader.starts("python", "products.py") as running:
        wait_until(lambda: is_running(reader))
        shop.products.insert_one({"_id": 1, "name": "pasta", "price": 2, "stock": {"left": 5}})
        shop.products.update_one({"_id": 1}, {"$set": {"seen": True}})
        shop.products.update_one({"_id": 1}, {"$set": {"stock.left": 4}})
        shop.archive_2025.insert_one({"_id": 2})
        shop.archive_2025.delete_one({"_id": 2})
        wait_said(running, "pasta changed: {'stock.left': 4}", "gone: archive_2025 2")
        shop.products.drop()
        wait_said(running, "drop products")
    assert "seen" not in running.out


def test_an_event_that_was_passed_on_is_acknowledged_later(reader: Reader, shop: Any) -> None:
    reader.save("uploads.py", MANUAL)
    with reader.starts("python", "uploads.py") as running:
        wait_until(lambda: is_running(reader))
        before = rows(reader, "select token from resume_tokens")
        shop.uploads.insert_one({"_id": 1})
        wait_said(running, "converted 1")
        wait_until(lambda: rows(reader, "select token from resume_tokens") != before)
        assert running.end(signal.SIGINT) == 0


def test_a_batch_handler_gets_what_came_at_once(reader: Reader, shop: Any) -> None:
    reader.save("clicks.py", BATCH)
    with reader.starts("python", "clicks.py") as running:
        wait_until(lambda: is_running(reader))
        shop.clicks.insert_many([{} for _ in range(100)])
        counts: list[int] = []

        def is_counted() -> bool:
            counts[:] = [int(line.split()[0]) for line in running.out.splitlines()]
            return sum(counts) == 100

        wait_until(is_counted)
    assert len(counts) < 10


def test_handlers_that_wait_do_so_at_the_same_time(reader: Reader, shop: Any) -> None:
    reader.save("mails.py", MAILS)
    with reader.starts("rigatoni", "run", "mails:watcher") as running:
        wait_until(lambda: is_running(reader))
        shop.mails.insert_many([{"_id": number} for number in range(50)])
        wait_until(lambda: running.out.count("sent") == 50)
        times = [float(line.split()[-1]) for line in running.out.splitlines()]
    # One after the other they would take 25 seconds.
    assert max(times) - min(times) < 12


def test_the_test_of_the_tutorial_passes(reader: Reader) -> None:
    reader.save("orders.py", ORDERS)
    reader.save("test_orders.py", TEST)

    assert "1 passed" in reader.runs("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py")


def test_a_service_that_is_started_twice_goes_on_when_the_first_is_killed(reader: Reader, shop: Any) -> None:
    reader.save("shipping.py", SERVICE)
    with reader.starts("rigatoni", "run", "shipping:watcher") as first:
        wait_until(lambda: is_running(reader, "shipping"))
        other = Reader(reader.folder / "other", "")
        other.folder.mkdir()
        with reader.starts("rigatoni", "run", "shipping:watcher") as second:
            second.wait_for_error_line("stand")
            assert first.end(signal.SIGKILL) != 0
            reader.runs("python", "sell.py", "pasta")
            wait_said(second, "shipped pasta")


def test_a_flask_application_handles_events_and_shows_how_it_goes(reader: Reader, shop: Any) -> None:
    reader.save("web.py", WEB)
    flask = (sys.executable, "-m", "flask")
    arguments = ("--app", "web", "run", "--port", "0")
    with running(reader.folder, *arguments, command=flask, RIGATONI_URI=reader.uri) as server:
        url = address(server)
        with urlopen(url, timeout=60) as answer:
            assert b"How it goes" in answer.read()
        wait_until(lambda: is_running(reader))
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: "shipped pasta" in server.err)
        with urlopen(f"{url}/rigatoni/", timeout=60) as answer:
            assert b"Running" in answer.read()


def test_every_program_of_the_tutorial_is_run() -> None:
    assert TUTORIAL.left == []
