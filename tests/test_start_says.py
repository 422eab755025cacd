"""What a start tells the operator, once, and what it leaves behind when it fails."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from bson.codec_options import CodecOptions
from conftest import wait_until
from pymongo import MongoClient
from watchers import Make, collecting, messages, watchers

from rigatoni import ChangeStreamConfig, ConfigurationError, Hooks, MaxReconnectAttemptsExceededError, cursor
from rigatoni.client import connect, warn_of
from rigatoni.config import URI


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


def test_all_streams_that_start_from_now_are_told_of_in_one_warning_with_the_path(
    make: Make, store_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    watcher = make(store=store_path)
    collecting(watcher, "insert")
    watcher.watch("orders")
    watcher.watch("customers", start_at=timedelta(seconds=1))
    watcher.start()
    (warning,) = messages(caplog, logging.WARNING)
    assert f"from now: {store_path}" in warning and Path(store_path).is_absolute()
    assert f"{watcher.database}.orders" in warning and "customers" not in warning


def test_with_a_stored_position_it_says_that_start_at_is_not_used(
    make: Make, store_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        watcher = make(store=store_path, start_at=timedelta(seconds=1))
        collecting(watcher, "insert")
        assert watcher.start() == "running" and watcher.stop()
    assert not messages(caplog, logging.WARNING)
    assert [text for text in messages(caplog, logging.INFO) if "start_at is not used" in text] == [
        f"stream {watcher.database!r} goes on where it was: start_at is not used"
    ]


def test_a_start_at_this_moment_is_in_no_future_on_a_set_that_was_not_written_to_for_a_while(
    make: Make, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor, "AHEAD", 0)

    def is_quiet() -> bool:
        hello = database.client.admin.command("hello", codec_options=CodecOptions(tz_aware=True))
        return bool(hello["localTime"].timestamp() - hello["$clusterTime"]["clusterTime"].time > 3)

    wait_until(is_quiet)
    watcher = make(start_at=timedelta(0))
    seen = collecting(watcher, "insert")
    assert watcher.start() == "running"
    database.orders.insert_one({"_id": 1})
    wait_until(lambda: seen == [1])


def test_lanes_that_only_a_watch_asks_for_have_no_effect_either(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    watcher = make(start_at=timedelta(0))
    collecting(watcher, "insert")
    watcher.watch("orders", concurrency=5)
    watcher.start()
    (warning,) = messages(caplog, logging.WARNING)
    assert "concurrency and timeout= have no effect" in warning


WEAK = {
    "maxPoolSize": 50,
    "serverSelectionTimeoutMS": 30_000,
    "socketTimeoutMS": 60_000,
    "readPreference": "primaryPreferred",
}


@pytest.mark.parametrize("options", [{}, WEAK], ids=["strong", "weak"])
def test_a_client_that_is_passed_in_is_used_as_it_is_and_one_warning_says_what_it_weakens(
    make: Make, mongodb_replica_set: Any, caplog: pytest.LogCaptureFixture, options: dict[str, Any]
) -> None:
    strong = {"maxPoolSize": None, "serverSelectionTimeoutMS": 5000}
    with MongoClient(mongodb_replica_set.uri, **{**strong, **options}) as client:
        watcher = make(client=client, start_at=timedelta(0))
        collecting(watcher, "insert")
        assert watcher.start() == "running" and watcher.stop()
        warnings = messages(caplog, logging.WARNING)
        assert len(warnings) == bool(options)
        for told in ("maxPoolSize=50", "serverSelectionTimeoutMS=30000", "socketTimeoutMS", "read preference"):
            assert not options or told in warnings[0]
        # It is not closed.
        client.admin.command("ping")


def test_a_client_that_was_made_before_a_fork_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    client = MongoClient("mongodb://127.0.0.1:9/", maxPoolSize=None, serverSelectionTimeoutMS=5000, connect=False)
    warn_of(client, made_by=os.getppid())
    (warning,) = messages(caplog, logging.WARNING)
    assert "made before a fork" in warning


def test_a_limit_in_the_uri_on_connections_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    connect(URI("mongodb://127.0.0.1:9/?maxPoolSize=1"), "shop").close()
    (warning,) = messages(caplog, logging.WARNING)
    assert "maxPoolSize" in warning and "each stream holds a connection" in warning


def test_a_limit_in_the_uri_that_ends_quiet_streams_is_warned_of_and_blamed(
    make: Make, mongodb_replica_set: Any, caplog: pytest.LogCaptureFixture
) -> None:
    patience = ChangeStreamConfig(max_reconnect_attempts=2, initial_backoff=0.01)
    watcher = make(client=f"{mongodb_replica_set.uri}&socketTimeoutMS=200", start_at=timedelta(0), config=patience)
    collecting(watcher, "insert")
    watcher.start()
    with pytest.raises(MaxReconnectAttemptsExceededError, match="socketTimeoutMS: 200") as caught:
        watcher.join(60)
    # A server that hangs up is one that cannot send its reply; this one was only not waited for.
    assert "hangs up" not in str(caught.value)
    assert "the URI sets sockettimeoutms" in messages(caplog, logging.WARNING)[0]


def test_load_balanced_is_refused_in_a_uri_and_in_a_client(make: Make) -> None:
    uri = "mongodb://127.0.0.1:9/?loadBalanced=true"
    for client in (uri, MongoClient(uri, connect=False)):
        watcher = make(client=client)
        collecting(watcher, "insert")
        with pytest.raises(ConfigurationError, match="loadBalanced=true is not supported"):
            watcher.start()


def test_a_start_that_fails_closes_the_streams_that_were_open_already(
    make: Make, database: Any, mongodb_replica_set: Any
) -> None:
    heard: list[Any] = []

    class Noting(Hooks):
        def opened(self, stream: str) -> None:
            heard.append(("opened", stream))

        def closed(self, stream: str, error: BaseException | None) -> None:
            heard.append(("closed", stream, type(error)))

    # A client of ours closes its cursors when it is closed; this one stays open.
    with MongoClient(mongodb_replica_set.uri) as client:
        watcher = make(client=client, hooks=[Noting()])
        collecting(watcher, "insert")
        watcher.watch("orders")
        watcher.watch("customers", pipeline=[{"$nonsense": 1}], comment="wrong")
        with pytest.raises(ConfigurationError):
            watcher.start()
        orders = f"{database.name}.orders"
        assert heard == [("opened", orders), ("closed", orders, ConfigurationError)]
        idle = [{"$currentOp": {"idleCursors": True}}, {"$match": {"ns": orders, "cursor": {"$exists": True}}}]
        wait_until(lambda: not list(client.admin.aggregate(idle)))
