"""``rigatoni tokens``: positions are shown, moved and deleted, and the next start begins exactly there."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from commands import COMMAND, ENVIRONMENT, rigatoni_ends
from conftest import wait_until
from watchers import Make, keeping, watchers

from rigatoni import Position, SQLiteStore
from rigatoni.mongod import ReplicaSet


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


@pytest.fixture
def make(database: Any, uri: str, store_path: str) -> Any:
    with watchers(uri, database.name) as make:
        yield lambda **options: make(store=store_path, **options)


def tokens(store_path: str, *arguments: str, **environment: str) -> Any:
    return rigatoni_ends("tokens", *arguments, "--store", store_path, **environment)


def numbers(watcher: Any) -> list[int]:
    return keeping(watcher, lambda event: event.full_document["n"], "insert", collection="orders")


def save(store_path: str, name: str = "default", *scopes: str, seconds: int = 1_700_000_000) -> None:
    store = SQLiteStore(store_path)
    store.save(name, {scope: Position(None, Timestamp(seconds, 1)) for scope in scopes})
    store.close()


def load(store_path: str, name: str = "default") -> dict[str, Position]:
    store = SQLiteStore(store_path)
    found = store.load(name)
    store.close()
    return found


def later_second(database: Any) -> datetime:
    """Let the server's time pass into the next second, and say which that is."""

    def now() -> int:
        database.ticks.insert_one({})
        return int(database.command("ping")["operationTime"].time)

    begin = now()
    wait_until(lambda: now() > begin)
    return datetime.fromtimestamp(now(), timezone.utc)


def run_once(make: Make, database: Any, *wanted: int) -> list[int]:
    """Run a watcher until it has seen the last of what is wanted, and a marker written now."""
    watcher = make()
    seen = numbers(watcher)
    watcher.start()
    database.orders.insert_one({"n": -1})
    wait_until(lambda: seen.count(-1) >= 1 and len(seen) > len(wanted))
    assert watcher.stop()
    return seen


# Showing.


def test_list_shows_every_position_on_one_line_and_no_whole_token(make: Make, database: Any, store_path: str) -> None:
    run_once(make, database)
    [position] = load(store_path).values()
    assert position.token is not None
    save(store_path, "other", "shop\n\x1b[31m.orders", "")
    run = tokens(store_path, "list")

    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "default", "other", "other"]
    assert lines[1].split()[1] == database.name
    assert r"'shop\n\x1b[31m.orders'" in run.stdout and "\x1b" not in run.stdout
    assert position.token["_data"] not in run.stdout
    assert position.token["_data"][:18] + ".." in run.stdout


def test_list_says_how_much_headroom_the_oplog_leaves(make: Make, database: Any, uri: str, store_path: str) -> None:
    run_once(make, database)
    [told] = [json.loads(line) for line in tokens(store_path, "list", "--json", RIGATONI_URI=uri).stdout.splitlines()]
    [untold] = [
        json.loads(line) for line in tokens(store_path, "list", "--json", "--name", "default").stdout.splitlines()
    ]
    away = tokens(store_path, "list", "--uri", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1")

    assert told["headroom"] >= 0 and told["scope"] == database.name
    # The watcher's own word, while it is fresh.
    assert untold["headroom"] is None or untold["headroom"] >= 0
    assert (away.returncode, "the oplog window is unknown" in away.stderr) == (0, True)


def test_show_gives_the_whole_token_only_when_asked(make: Make, database: Any, store_path: str) -> None:
    run_once(make, database)
    [position] = load(store_path).values()
    plain, whole = tokens(store_path, "show"), tokens(store_path, "show", database.name, "--token", "--json")

    assert position.token is not None
    assert position.token["_data"] not in plain.stdout and f"scope:        {database.name}" in plain.stdout
    assert json.loads(whole.stdout)["token"] == position.token


@pytest.mark.parametrize("arguments", [["list"], ["show"], ["seek", "--to", "1h", "--uri", "mongodb://x"], ["reset"]])
def test_an_absent_store_is_an_error_and_stays_absent(arguments: list[str], tmp_path: Path) -> None:
    run = rigatoni_ends("tokens", *arguments, cwd=tmp_path)

    assert (run.returncode, [*tmp_path.iterdir()]) == (16, [])
    assert f"there is no store {tmp_path}/rigatoni.db" in run.stderr


def test_what_is_not_there_is_said_with_what_there_is(store_path: str) -> None:
    save(store_path, "default", "shop")
    name, scope = tokens(store_path, "show", "--name", "defualt"), tokens(store_path, "reset", "--scope", "shpo", "-y")

    assert (name.returncode, scope.returncode) == (2, 2)
    assert "its names are default" in name.stderr
    assert "it has shop" in scope.stderr
    assert list(load(store_path)) == ["shop"]


# Moving.


def test_after_a_seek_the_next_start_hands_over_exactly_what_came_since(
    make: Make, database: Any, uri: str, store_path: str
) -> None:
    run_once(make, database)
    database.orders.insert_many([{"n": n} for n in range(5)])
    since = later_second(database)
    database.orders.insert_many([{"n": n} for n in range(5, 10)])
    run_once(make, database, *range(10))

    run = tokens(store_path, "seek", "--to", since.isoformat(), "--uri", uri)
    seen = run_once(make, database, *range(5, 10), -1)

    assert run.returncode == 0, run.stderr
    assert seen == [5, 6, 7, 8, 9, -1, -1]


def test_seek_to_now_leaves_out_what_came_before_and_nothing_after(
    make: Make, database: Any, uri: str, store_path: str
) -> None:
    run_once(make, database)
    database.orders.insert_many([{"n": n} for n in range(5)])
    refused = tokens(store_path, "seek", "--to", "now", "--uri", uri)
    run = tokens(store_path, "seek", "--to", "now", "--yes", "--uri", uri)

    assert (refused.returncode, run.returncode) == (2, 0)
    assert "confirm it by --yes" in refused.stderr
    assert run_once(make, database) == [-1]


def test_of_two_streams_only_the_one_that_was_moved_repeats(
    make: Make, database: Any, uri: str, store_path: str
) -> None:
    def run(wanted: int) -> list[str]:
        watcher = make()
        watcher.watch("orders")
        seen = keeping(watcher, lambda event: event.collection, "insert", collection=["orders", "customers"])
        watcher.start()
        database.orders.insert_one({})
        database.customers.insert_one({})
        wait_until(lambda: len(seen) >= wanted)
        assert watcher.stop()
        return sorted(seen)

    since = later_second(database).isoformat()
    assert run(2) == ["customers", "orders"]
    moved = tokens(store_path, "seek", "--to", since, "--scope", f"{database.name}.orders", "--uri", uri)

    assert moved.returncode == 0, moved.stderr
    assert run(3) == ["customers", "orders", "orders"]


def test_seek_moves_only_the_scopes_that_it_is_given(database: Any, uri: str, store_path: str) -> None:
    later_second(database)
    save(store_path, "default", "", "shop", "shop.orders", seconds=4_000_000_000)
    run = tokens(store_path, "seek", "--to", "earliest", "--scope", "shop", "--scope", "", "--uri", uri)
    found = load(store_path)

    assert run.returncode == 0, run.stderr
    assert found["shop.orders"].cluster_time == Timestamp(4_000_000_000, 1)
    assert found[""].cluster_time == found["shop"].cluster_time < Timestamp(4_000_000_000, 1)
    assert found["shop"].token is None and found["shop"].cluster.partition("/")[0]


@pytest.mark.parametrize(
    ("to", "code", "mistake"),
    [
        ("2100-01-01T00:00Z", 10, "ahead of the server's time"),
        ("yesterday", 2, "is neither a way back"),
        ("2030-01-31T12:00", 2, "has no time zone"),
    ],
)
def test_seek_refuses_what_is_no_past_time(to: str, code: int, mistake: str, uri: str, store_path: str) -> None:
    save(store_path, "default", "shop")
    run = tokens(store_path, "seek", "--to", to, "--yes", "--uri", uri)

    assert run.returncode == code
    assert mistake in " ".join(run.stderr.split())
    assert load(store_path)["shop"].cluster_time == Timestamp(1_700_000_000, 1)


def test_seek_refuses_a_position_of_another_cluster(uri: str, store_path: str) -> None:
    store = SQLiteStore(store_path)
    store.save("default", {"shop": Position(None, Timestamp(1_700_000_000, 1), cluster="another-set/")})
    store.close()
    run = tokens(store_path, "seek", "--to", "earliest", "--uri", uri)

    assert (run.returncode, "is of another cluster" in run.stderr) == (13, True)


def test_seek_refuses_a_time_that_the_oplog_has_forgotten(short_oplog: str, store_path: str) -> None:
    save(store_path, "default", "shop")
    run = tokens(store_path, "seek", "--to", "7d", "--yes", "--uri", short_oplog)
    earliest = tokens(store_path, "seek", "--to", "earliest", "--yes", "--uri", short_oplog)

    assert (run.returncode, earliest.returncode) == (13, 0), earliest.stderr
    assert "--to earliest is as far back as it goes" in run.stderr


def test_seek_needs_a_server_with_an_oplog_and_says_which_one_it_asked(store_path: str) -> None:
    save(store_path, "default", "shop")
    nobody = tokens(store_path, "seek", "--to", "1h")
    away = tokens(
        store_path, "seek", "--to", "1h", "--uri", "mongodb://u:secret@127.0.0.1:1/?serverSelectionTimeoutMS=1"
    )
    with ReplicaSet(replicated=False) as standalone:
        alone = tokens(store_path, "seek", "--to", "1h", "--uri", standalone.uri)

    assert (nobody.returncode, away.returncode, alone.returncode) == (2, 11, 10)
    assert "RIGATONI_URI" in nobody.stderr
    assert "other users can see a password" in away.stderr and "secret" not in away.stderr
    assert "need a replica set" in alone.stderr


# Deleting, and who may.


def test_after_a_reset_the_next_start_is_like_the_first(make: Make, database: Any, store_path: str) -> None:
    run_once(make, database)
    database.orders.insert_one({"n": 0})
    run = tokens(store_path, "reset", "--yes")

    assert (run.returncode, load(store_path)) == (0, {})
    assert run_once(make, database) == [-1]


def test_reset_asks_on_a_terminal_and_elsewhere_for_yes(store_path: str) -> None:
    save(store_path, "default", "shop", "shop.orders")
    unasked = tokens(store_path, "reset")
    ours, theirs = pty.openpty()
    codes = []
    for answer in (b"n\n", b"y\n"):
        os.write(ours, answer)
        command = [*COMMAND, "tokens", "reset", "--scope", "shop", "--store", store_path]
        run = subprocess.run(command, stdin=theirs, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
        assert "Delete the positions of default: shop?" in run.stderr
        codes.append((run.returncode, len(load(store_path))))
    os.close(ours)
    os.close(theirs)

    assert (unasked.returncode, codes) == (2, [(130, 2), (0, 1)])


@pytest.mark.parametrize("arguments", [["reset"], ["seek", "--to", "earliest"]])
def test_nothing_is_changed_while_a_watcher_holds_the_name(
    arguments: list[str], make: Make, database: Any, uri: str, store_path: str
) -> None:
    watcher = make()
    numbers(watcher)
    watcher.start()
    before = load(store_path)
    run = tokens(store_path, *arguments, "--yes", RIGATONI_URI=uri)

    assert run.returncode == 4
    assert f"held by pid {os.getpid()} on {os.uname().nodename}" in run.stderr
    assert load(store_path).keys() == before.keys()
    assert tokens(store_path, *arguments, "--yes", "--name", "other", RIGATONI_URI=uri).returncode == 2
