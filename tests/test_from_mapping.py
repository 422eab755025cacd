"""Watchers whose options come from an environment or a Flask configuration."""

from __future__ import annotations

import dataclasses
import logging
import traceback
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, ConfigurationError, Hooks, MemoryStore, RetryPolicy, SQLiteStore, Watcher
from rigatoni.settings import Settings

CLOSED = "mongodb://u:s3cret@127.0.0.1:9/"
HOOKS, STORE = Hooks(), MemoryStore()

#: By option: as text in an environment (None: it has no text), as an object, and what becomes of both.
OPTIONS: dict[str, tuple[str | None, Any, Any]] = {
    "database": ("shop", "shop", "shop"),
    "name": ("search", "search", "search"),
    "concurrency": ("4", 4, 4),
    "max_in_flight": ("500", 500, 500),
    "on_error": ("skip", "skip", "skip"),
    "save_interval": ("0.5", 0.5, 0.5),
    "start_at": ("2h", timedelta(hours=2), timedelta(hours=2)),
    "on_invalidate": ("stop", "stop", "stop"),
    "on_history_lost": ("earliest", "earliest", "earliest"),
    "on_oversize": ("stop", "stop", "stop"),
    "store": (None, STORE, STORE),
    "hooks": (None, [HOOKS], (HOOKS,)),
}


def said(watcher: Watcher, option: str) -> Any:
    value = getattr(watcher._settings, option)
    return value._hooks if option == "hooks" else value


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_can_be_text_or_the_thing_itself(option: str) -> None:
    text, value, found = OPTIONS[option]
    for given in (text, value):
        if given is not None:
            watcher = Watcher.from_mapping({"RIGATONI_URI": CLOSED, f"RIGATONI_{option.upper()}": given})
            assert said(watcher, option) == found
    empty = Watcher.from_mapping({"RIGATONI_URI": CLOSED, f"RIGATONI_{option.upper()}": ""})
    if option not in ("store", "hooks"):
        assert said(empty, option) == said(Watcher(CLOSED), option)


def test_no_option_is_missing() -> None:
    others = {"client", "config", "retry", "made_by"}
    assert {field.name for field in dataclasses.fields(Settings)} == OPTIONS.keys() | others


def test_the_server_the_store_and_the_parts_have_their_names(tmp_path: Path) -> None:
    watcher = Watcher.from_mapping(
        {
            "RIGATONI_URI": CLOSED,
            "RIGATONI_STORE": str(tmp_path / "tokens.db"),
            "RIGATONI_BATCH_SIZE": "50",
            "RIGATONI_MAX_BACKOFF": "9",
            "RIGATONI_RETRY_MAX_BACKOFF": "7",
        }
    )
    assert watcher._settings.client.hosts == ("127.0.0.1:9",)  # type: ignore[union-attr]
    assert isinstance(watcher.store, SQLiteStore) and watcher.store.location == str(tmp_path / "tokens.db")
    assert watcher._settings.config == ChangeStreamConfig(batch_size=50, max_backoff=9)
    assert watcher._settings.retry == RetryPolicy(max_backoff=7)
    assert Watcher.from_mapping({}).name == "default"
    assert Watcher.from_mapping({"SHOP_NAME": "a"}, "SHOP_").name == "a"
    with MongoClient("mongodb://127.0.0.1:9/", connect=False) as client:
        assert Watcher.from_mapping({"RIGATONI_URI": client})._settings.client is client
    assert Watcher.from_mapping({"RIGATONI_STORE": tmp_path / "b.db"}).store.location == str(tmp_path / "b.db")


@pytest.mark.parametrize(
    ("text", "start_at"),
    [
        ("45s", timedelta(seconds=45)),
        ("30m", timedelta(minutes=30)),
        ("7d", timedelta(days=7)),
        ("earliest", "earliest"),
        ("2030-01-31T12:00Z", datetime(2030, 1, 31, 12, tzinfo=timezone.utc)),
        ("2030-01-31T12:00+01:00", datetime(2030, 1, 31, 11, tzinfo=timezone.utc)),
        (Timestamp(5, 1), Timestamp(5, 1)),
    ],
)
def test_a_start_can_be_written_down(text: Any, start_at: object) -> None:
    assert Watcher.from_mapping({"RIGATONI_START_AT": text})._settings.start_at == start_at


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("URI", "localhost/s3cret"),
        ("URI", 5),
        ("DATABASE", "s3cret.orders"),
        ("DATABASE", "s3cret{2}"),
        ("NAME", "s3cret!"),
        ("STORE", ":memory:"),
        ("STORE", ["s3cret"]),
        ("CONCURRENCY", "s3cret"),
        ("CONCURRENCY", "0"),
        ("MAX_IN_FLIGHT", "1e3"),
        ("ON_ERROR", "s3cret"),
        ("ON_ERROR", None),
        ("SAVE_INTERVAL", "s3cret"),
        ("SAVE_INTERVAL", "nan"),
        ("START_AT", "s3cret"),
        ("START_AT", "2030-01-31T12:00"),
        ("START_AT", "-2h"),
        ("ON_INVALIDATE", "s3cret"),
        ("HOOKS", "s3cret"),
        ("HOOKS", [Hooks]),
        ("BATCH_SIZE", "s3cret"),
        ("RETRY_MAX_ATTEMPTS", "s3cret"),
        ("RETRY_RETRY_ON", "s3cret"),
        ("RESUME_TOKEN", '{"_data": "s3cret"}'),
    ],
)
def test_a_bad_value_is_refused_by_its_key_and_never_shown(key: str, value: object) -> None:
    mapping = {"RIGATONI_URI": CLOSED} | {f"RIGATONI_{key}": value}
    with pytest.raises(ConfigurationError, match=rf"^RIGATONI_{key}\b") as refused:
        Watcher.from_mapping(mapping)

    shown = traceback.TracebackException.from_exception(refused.value, capture_locals=True)
    # The frame of this test holds the mapping itself; those of the library must not.
    frames = [frame.locals for frame in shown.stack if frame.filename != __file__]
    assert frames and "s3cret" not in f"{refused.value} {frames}"
    assert refused.value.__context__ is None


def test_misspelt_names_of_all_three_kinds_are_told_in_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    Watcher.from_mapping(
        {
            "RIGATONI_DATABSE": "s3cret",
            "RIGATONI_BACH_SIZE": "1",
            "RIGATONI_RETRY_MAX_ATEMPTS": "1",
            "RIGATONI_MOGNOD": "",
            "RIGATONI_MONGOD": "/usr/bin/mongod",
            "RIGATONI_MINE": "1",
            "RIGATONI_CLIENT": CLOSED,
        },
        known=("RIGATONI_MINE",),
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "s3cret" not in record.getMessage()
    for name in ("DATABSE", "BACH_SIZE", "RETRY_MAX_ATEMPTS", "MOGNOD", "CLIENT"):
        assert f"'RIGATONI_{name}'" in record.getMessage()
    assert "MINE" not in record.getMessage() and "RIGATONI_MONGOD'" not in record.getMessage()


def test_a_config_alone_takes_no_option_of_a_watcher_for_misspelt(caplog: pytest.LogCaptureFixture) -> None:
    names = {"URI", *(option.upper() for option in OPTIONS)}
    ChangeStreamConfig.from_mapping({f"RIGATONI_{name}": "1" for name in names})
    assert not caplog.records
