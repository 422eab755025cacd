"""Names that others chose: whatever they hold, a log line stays one line and shows it escaped."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import running
from conftest import wait_until
from watchers import Make, places, watchers

from rigatoni import ConfigurationError, RetryPolicy, SQLiteStore, StreamError

NAMES = [
    "a\nCRITICAL:root:forged",
    "a\r\nb",
    "\x1b[2J\x1b[31mred",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "'\"`;--",
    "%s%d%(name)s",
    "a\u2028b\x85c",
    "n" * 200,
]


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def assert_plain(text: str) -> None:
    """Each character may be shown on a terminal, and none begins a line."""
    assert text
    assert text.isprintable(), ascii(text)


def assert_one_line_each(records: list[logging.LogRecord]) -> None:
    assert records
    for record in records:
        assert_plain(record.getMessage())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "watch"])
def test_every_log_line_of_such_a_collection_is_one_line(
    name: str, own: bool, database: Any, make: Make, store_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")

    def failing(**options: Any) -> Any:
        watcher = make(store=store_path, retry=RetryPolicy(max_attempts=1), **options)
        seen = places(watcher, "insert", collection=name)

        @watcher.on("insert", collection=name)
        def fail(event: Any) -> None:
            raise ValueError("no such parcel")

        if own:
            watcher.watch(name)
        watcher.start()
        return watcher, seen

    watcher, seen = failing()
    database[name].insert_one({"_id": name})
    database.others.insert_one({"_id": name})
    wait_until(lambda: watcher.stats()["dead_lettered"])
    assert seen == [(database.name, name, "insert")]
    scope = f"{database.name}.{name}" if own else database.name
    assert scope in watcher.stats()["streams"]
    assert_plain(repr(watcher))
    watcher.stop()

    ending, _ = failing(on_error="stop")
    database[name].insert_one({"_id": f"{name} once more"})
    with pytest.raises(StreamError) as raised:
        ending.join(60)
    assert_plain(str(raised.value))
    assert_plain(repr(raised.value.event))
    store = SQLiteStore(store_path)
    store.open()
    assert scope in store.load("default")
    assert scope in store.status("default")["streams"]
    store.close()
    assert_one_line_each([record for record in caplog.records if record.name.startswith("rigatoni")])
    assert any("fail" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["n" * 300, "d" * 64])
def test_a_name_that_is_too_long_for_the_server_is_refused_or_means_nothing_else(
    name: str, database: Any, make: Make, mongodb_replica_set: Any
) -> None:
    with watchers(mongodb_replica_set.uri, name) as make_there:
        there = make_there()
        places(there, "insert")
        with pytest.raises(StreamError) as raised:
            there.start()
        assert isinstance(raised.value, ConfigurationError)
        assert_plain(str(raised.value))
    watcher = make()
    seen, every = places(watcher, "insert", collection=name), places(watcher, "insert")
    watcher.start()
    database[name[:50]].insert_one({})
    wait_until(lambda: every)
    assert seen == []


def test_the_command_line_shows_a_database_escaped_and_events_as_they_are(
    tmp_path: Path, mongodb_replica_set: Any, database: Any
) -> None:
    odd = database.client[f"{database.name[-12:]}a\x1b\nb"]
    try:
        with running(tmp_path, "watch", mongodb_replica_set.uri, "-d", odd.name, stdout=subprocess.PIPE) as watch:
            watch.wait_for_error_line("watching")
            odd["\x1b\n"].insert_one({"_id": 1})
            assert watch.process.stdout is not None
            line = watch.process.stdout.readline()
            assert watch.end(signal.SIGTERM) == 0
        assert_plain(line.decode().removesuffix("\n"))
        assert json.loads(line)["ns"] == {"db": odd.name, "coll": "\x1b\n"}
        for said in watch.err.split("\n")[:-1]:
            assert said.startswith("rigatoni: ")
            assert_plain(said)
    finally:
        database.client.drop_database(odd.name)
