"""No server where the URI says: the start tells what is wrong after the configured attempts, and never the password."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from dns import resolver
from programs import run_program
from pymongo import MongoClient
from watchers import collecting

from rigatoni import (
    ChangeStreamConfig,
    Hooks,
    MaxReconnectAttemptsExceededError,
    MemoryStore,
    StreamConnectionError,
    Watcher,
)
from rigatoni.mongod import ReplicaSet

PASSWORD = "s3cret"
WRONG = ["closed port", "unknown host", "TLS where there is none"]


@pytest.fixture
def wrong(mongodb_replica_set: Any) -> dict[str, tuple[str, str]]:
    """URIs, and what must be said of each."""
    server = mongodb_replica_set.uri_of(0).replace("://", f"://me:{PASSWORD}@")
    options = "serverSelectionTimeoutMS=100"
    return {
        "closed port": (f"mongodb://me:{PASSWORD}@127.0.0.1:9/?{options}", "127.0.0.1:9: .*refused"),
        "unknown host": (f"mongodb://me:{PASSWORD}@nowhere.invalid/?{options}", "nowhere.invalid:27017: "),
        "TLS where there is none": (f"{server}&tls=true&{options}", "SSL handshake failed: 127.0.0.1:"),
    }


class Attempts(Hooks):
    def __init__(self) -> None:
        self.told: list[str] = []

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        self.told.append(str(error))


def watcher_of(uri: str, *hooks: Hooks, **config: Any) -> Watcher:
    watcher = Watcher(
        uri, "shop", store=MemoryStore(), hooks=hooks, config=ChangeStreamConfig(**{"initial_backoff": 0.01, **config})
    )
    collecting(watcher)
    return watcher


def refused(watcher: Watcher) -> MaxReconnectAttemptsExceededError:
    with pytest.raises(MaxReconnectAttemptsExceededError) as raised:
        watcher.start()
    assert watcher.state == "failed" and watcher.error is raised.value
    return raised.value


@pytest.mark.parametrize("what", WRONG)
def test_a_start_that_reaches_nobody_says_whom_and_why_after_the_attempts_and_keeps_the_password(
    wrong: dict[str, tuple[str, str]], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    uri, expected = wrong[what]
    attempts = Attempts()
    watcher = watcher_of(uri, attempts, max_reconnect_attempts=2)

    error = refused(watcher)

    # The first attempt is made at once; before the second it is told.
    assert error.attempts == 1 + len(attempts.told) == 2
    assert error.category == "max_retries"
    assert re.search(expected, str(error))
    told = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    everything = [*told, caplog.text, *attempts.told, repr(watcher), repr(error)]
    assert not any(PASSWORD in text for text in everything)


PATCHED = """
import traceback
from rigatoni import ChangeStreamConfig, MemoryStore, StreamError, Watcher

for uri in given["uris"]:
    watcher = Watcher(uri, "shop", store=MemoryStore(),
                      config=ChangeStreamConfig(max_reconnect_attempts=1, initial_backoff=0.01))
    watcher.on("insert")(print)
    try:
        watcher.start()
    except StreamError as error:
        say(category=error.category, error=str(error), traceback=traceback.format_exc())
"""


def test_a_patched_program_is_told_likewise(wrong: dict[str, tuple[str, str]], tmp_path: Path) -> None:
    program = run_program(PATCHED, tmp_path, patched=True, uris=[uri for uri, _ in wrong.values()])

    assert program.said("category") == ["max_retries"] * len(wrong)
    for error, (_, expected) in zip(program.said("error"), wrong.values(), strict=True):
        assert expected.split(".*")[0] in error
    assert PASSWORD not in "".join(program.said("traceback")) + program.complaints


def test_a_server_without_a_set_is_waited_for_and_said_to_be_one() -> None:
    with (
        ReplicaSet(replicated=False, arguments=["--replSet", "late"]) as server,
        MongoClient(server.uri_of(0)) as client,
    ):
        direct = watcher_of(server.uri_of(0), max_reconnect_attempts=0, max_backoff=0.1)
        with pytest.raises(StreamConnectionError, match="rs.initiate"):
            direct.start()
        attempts, states = Attempts(), []
        anywhere = server.uri + "?serverSelectionTimeoutMS=100"
        watcher = watcher_of(anywhere, attempts, max_reconnect_attempts=0, max_backoff=0.1)
        seen = collecting(watcher, "insert")
        starting = threading.Thread(target=lambda: states.append(watcher.start()))
        starting.start()
        wait_until(lambda: len(attempts.told) > 2)

        client.admin.command("replSetInitiate")

        starting.join(60)
        assert states == ["running"]
        client.shop.orders.insert_one({"_id": 1})
        wait_until(lambda: seen == [1])
        watcher.stop()


@pytest.mark.faults
def test_by_default_a_start_without_a_server_ends_after_half_a_minute() -> None:
    watcher = Watcher("mongodb://127.0.0.1:9/", "shop", store=MemoryStore())
    collecting(watcher)
    began = time.monotonic()

    error = refused(watcher)

    assert error.attempts == 5
    assert 25 < time.monotonic() - began < 45


@pytest.fixture
def silent_dns(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A name server that takes questions and answers none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.setblocking(False)
        asking = resolver.Resolver(configure=False)
        asking.nameservers, asking.port = ["127.0.0.1"], server.getsockname()[1]
        monkeypatch.setattr(resolver, "default_resolver", asking)
        yield server


SRV = f"mongodb+srv://me:{PASSWORD}@shop.example.net/"


def test_a_name_server_that_does_not_answer_is_asked_as_often_as_a_server(
    silent_dns: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = Attempts()

    error = refused(watcher_of(f"{SRV}?connectTimeoutMS=50", attempts, max_reconnect_attempts=2))

    # The first attempt is made at once; before the second it is told.
    assert error.attempts == 1 + len(attempts.told) == 2
    assert "the DNS" in str(error) and "shop.example.net" in str(error)
    assert PASSWORD not in str(error) + caplog.text


def test_a_stop_does_not_wait_for_a_name_server(silent_dns: socket.socket) -> None:
    watcher, states = watcher_of(SRV), []
    starting = threading.Thread(target=lambda: states.append(watcher.start()))
    starting.start()

    def is_asked() -> bool:
        try:
            return bool(silent_dns.recv(4096))
        except BlockingIOError:
            return False

    wait_until(is_asked)
    began = time.monotonic()
    assert watcher.stop()
    # The driver alone waits 5 s for the name server, and then asks again.
    assert time.monotonic() - began < 4.5
    starting.join(30)
    assert states == ["stopped"]
