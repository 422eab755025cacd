"""What a Watcher refuses there and then, saying what to do instead."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, ConfigurationError, Hooks, MemoryStore, RetryPolicy, SQLiteStore, Watcher
from rigatoni.errors import StreamError

CLOSED = "mongodb://127.0.0.1:9/"


def handle(event: Any) -> None:
    """A handler like any other."""


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"client": "localhost:27017"}, "begins with mongodb://"),
        ({"client": "http://localhost"}, "begins with mongodb://"),
        ({"client": "mongodb://"}, "mongodb://user:password@host"),
        ({"client": None}, "a URI or a MongoClient, not NoneType"),
        ({"client": b"mongodb://localhost"}, "a URI or a MongoClient, not bytes"),
        ({"client": MongoClient(CLOSED, connect=False).shop}, "a URI or a MongoClient, not Database"),
        ({"name": ""}, "letters, digits, dot, underscore and hyphen"),
        ({"name": "a b"}, "letters, digits, dot, underscore and hyphen"),
        ({"name": "a/b"}, "letters, digits, dot, underscore and hyphen"),
        ({"name": "a\n"}, "letters, digits, dot, underscore and hyphen"),
        ({"name": "ä"}, "letters, digits, dot, underscore and hyphen"),
        ({"name": "n" * 65}, "at most 64"),
        ({"name": None}, "letters, digits"),
        ({"database": ""}, "database must be the name of a database"),
        ({"database": "shop.orders"}, "database must be the name of a database"),
        ({"database": "a\0b"}, "database must be the name of a database"),
        ({"database": ["shop"]}, "database must be the name of a database"),
        ({"store": ":memory:"}, r"MemoryStore\(\)"),
        ({"store": ""}, "path"),
        ({"store": 5}, "store"),
        ({"store": None}, "store"),
        ({"store": MemoryStore}, "store"),
        ({"config": {"batch_size": 5}}, "config must be a ChangeStreamConfig, not dict"),
        ({"config": ChangeStreamConfig}, "config must be a ChangeStreamConfig"),
        ({"config": ChangeStreamConfig(resume_token={"_data": "82"})}, "start_at"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1"),
        ({"concurrency": 1.5}, "concurrency must be a whole number from 1"),
        ({"concurrency": True}, "concurrency must be a whole number from 1"),
        ({"max_in_flight": 0}, "max_in_flight must be a whole number from 1"),
        ({"max_in_flight": "10"}, "max_in_flight must be a whole number from 1"),
        ({"retry": 3}, "retry must be a RetryPolicy"),
        ({"on_error": "ignore"}, "'dead_letter', 'stop' or 'skip'"),
        ({"on_error": None}, "'dead_letter', 'stop' or 'skip'"),
        ({"save_interval": 0}, "save_interval must be a number of seconds"),
        ({"save_interval": float("nan")}, "save_interval must be a number of seconds"),
        ({"save_interval": "1"}, "save_interval must be a number of seconds"),
        ({"on_invalidate": "ignore"}, "'resume' or 'stop'"),
        ({"on_history_lost": "resume"}, "'stop', 'now' or 'earliest'"),
        ({"on_oversize": "skip"}, "'stub' or 'stop'"),
        ({"hooks": [Hooks]}, "hooks"),
        ({"hooks": Hooks()}, "hooks"),
        ({"hooks": [print]}, "hooks"),
    ],
)
def test_an_option_that_could_never_work_is_refused_by_the_constructor(options: dict[str, Any], mend: str) -> None:
    with pytest.raises(ConfigurationError, match=mend) as caught:
        Watcher(**{"store": MemoryStore(), **options})
    assert caught.value.category == "configuration"
    assert not caught.value.is_retryable


def test_an_option_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(TypeError, match="concurency"):
        Watcher(store=MemoryStore(), concurency=5)  # type: ignore[call-arg]


def test_a_constructor_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    watcher = Watcher(CLOSED)
    assert isinstance(watcher.store, SQLiteStore)
    assert watcher.store.location == str(tmp_path / "rigatoni.db")
    assert (watcher.name, watcher.database, watcher.state, watcher.error) == ("default", None, "created", None)
    assert list(tmp_path.iterdir()) == []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert watcher.store.location == str(tmp_path / "rigatoni.db")


def test_before_a_start_there_is_nothing_to_wait_for() -> None:
    watcher = Watcher(CLOSED, store=MemoryStore())
    assert watcher.stop() and watcher.join()
    assert watcher.state == "created"


@pytest.mark.parametrize("attribute", ["name", "store", "database", "state", "error"])
def test_what_a_watcher_was_told_is_read_only(attribute: str) -> None:
    watcher = Watcher(CLOSED, store=MemoryStore())
    with pytest.raises(AttributeError):
        setattr(watcher, attribute, "other")


@pytest.mark.parametrize(
    ("arguments", "options", "mend"),
    [
        (("orders",), {"database": "other"}, "'shop'"),
        (("",), {}, "name"),
        ((None,), {}, "name"),
        (("a\0b",), {}, "name"),
        (("a{2}b",), {}, r"on\(collection="),
        (("orders",), {"colation": {}}, "'colation'"),
        (("orders",), {"concurrency": 0}, "concurrency must be a whole number from 1"),
        (("orders",), {"batch_size": 0}, "batch_size"),
        (("orders",), {"pipeline": "[]"}, "pipeline"),
        (("orders",), {"resume_token": {"_data": "82"}}, "start_at"),
    ],
)
def test_a_wrong_watch_is_refused_at_once(arguments: Any, options: dict[str, Any], mend: str) -> None:
    watcher = Watcher(CLOSED, "shop", store=MemoryStore())
    with pytest.raises(ConfigurationError, match=mend):
        watcher.watch(*arguments, **options)
    watcher.watch("orders")


def test_a_watch_of_a_deployment_says_of_which_database() -> None:
    watcher = Watcher(CLOSED, store=MemoryStore())
    with pytest.raises(ConfigurationError, match="database="):
        watcher.watch("orders")
    for wrong in ("a.b", "a\0b", 5):
        with pytest.raises(ConfigurationError, match="the name of one database"):
            watcher.watch("orders", wrong)  # type: ignore[arg-type]
    watcher.watch("orders", "shop")
    watcher.watch("orders", "store")


def test_a_second_watch_of_one_collection_is_refused() -> None:
    watcher = Watcher(CLOSED, "shop", store=MemoryStore())
    watcher.watch("orders")
    with pytest.raises(ConfigurationError, match="before"):
        watcher.watch("orders", "shop", batch_size=5)


def test_a_start_without_any_handler_is_refused_and_touches_nothing(tmp_path: Path) -> None:
    watcher = Watcher(CLOSED, store=tmp_path / "tokens.db")
    with pytest.raises(ConfigurationError, match=r"@watcher\.on\(…\) before start\(\)"):
        watcher.start()
    assert watcher.state == "created"
    assert list(tmp_path.iterdir()) == []
    # It is no start, so that the handler may still be registered.
    watcher.on()(handle)


def test_a_start_with_a_watch_that_has_no_handler_is_refused() -> None:
    watcher = Watcher(CLOSED, "shop", store=MemoryStore())
    watcher.on("insert", collection="customers")(handle)
    watcher.watch("orders")
    with pytest.raises(ConfigurationError, match=r"@watcher\.on\(…, collection='orders'\)"):
        watcher.start()


def test_an_operation_that_the_server_would_never_send_is_refused_at_the_start() -> None:
    watcher = Watcher(CLOSED, "shop", store=MemoryStore())
    watcher.on("create")(handle)
    with pytest.raises(ConfigurationError, match="show_expanded_events=True"):
        watcher.start()


@pytest.mark.parametrize("is_apart", [False, True], ids=["the Watcher's", "a watch()'s"])
def test_a_pipeline_that_splits_large_events_is_refused_before_anything_is_opened(
    tmp_path: Path, is_apart: bool
) -> None:
    splits = [{"$match": {}}, {"$changeStreamSplitLargeEvent": {}}]
    with pytest.raises(ConfigurationError, match=r"\$changeStreamSplitLargeEvent"):
        config = ChangeStreamConfig(pipeline=() if is_apart else splits)
        watcher = Watcher(CLOSED, "shop", store=tmp_path / "tokens.db", config=config)
        watcher.on("insert", collection="orders")(handle)
        if is_apart:
            watcher.watch("orders", pipeline=splits)
        watcher.start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("start_at", "mend"),
    [
        (datetime(2026, 1, 1), r"datetime\.now\(timezone\.utc\)"),
        (datetime.now().astimezone() + timedelta(days=1), "ahead of the server"),
        (Timestamp(2**32 - 1, 1), "ahead of the server"),
        (timedelta(seconds=-1), "positive"),
        ("now", "'earliest'"),
        (5, "an aware datetime"),
        ({"token": 1}, "resume token"),
        ({"_data": "no token at all"}, "token"),
    ],
)
def test_a_start_at_that_would_be_silent_or_means_nothing_is_refused_by_the_start(
    database: Any, mongodb_replica_set: Any, start_at: object, mend: str
) -> None:
    watcher = Watcher(mongodb_replica_set.uri, database.name, store=MemoryStore(), start_at=start_at)
    watcher.on()(handle)
    with pytest.raises(StreamError, match=mend) as caught:
        watcher.start()
    assert caught.value.category in ("configuration", "invalid_token")
    assert watcher.state == "failed" and watcher.error is caught.value


@pytest.mark.parametrize("start_at", ["earliest", timedelta(0), timedelta(days=400), "now", "token"])
def test_a_start_at_that_makes_sense_is_taken(database: Any, mongodb_replica_set: Any, start_at: Any) -> None:
    moments = {"now": datetime.now().astimezone() - timedelta(seconds=1)}
    if start_at == "token":
        with database.orders.watch() as stream:
            database.orders.insert_one({})
            moments["token"] = next(stream)["_id"]
    watcher = Watcher(
        mongodb_replica_set.uri, database.name, store=MemoryStore(), start_at=moments.get(start_at, start_at)
    )
    watcher.on()(handle)
    assert watcher.start() == "running"
    assert watcher.stop()


def test_a_standalone_server_is_refused_with_the_mend(tmp_path: Path) -> None:
    from rigatoni.mongod import ReplicaSet

    with ReplicaSet(replicated=False) as server:
        watcher = Watcher(server.uri, store=MemoryStore(), retry=RetryPolicy(max_attempts=1))
        watcher.on()(handle)
        with pytest.raises(ConfigurationError, match="replica set"):
            watcher.start()
    assert watcher.state == "failed"
