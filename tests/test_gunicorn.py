"""gunicorn: one worker watches, the others stand by, whichever way workers come and go."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from programs import PATCH
from serving import HOOKS, gunicorn

GEVENT = ("--worker-class", "gevent", "--workers", "4")


@contextmanager
def writing(database: Any) -> Iterator[list[int]]:
    """Insert orders, one after the other, until the block ends."""
    written: list[int] = []
    enough = threading.Event()

    def write() -> None:
        while not enough.wait(0.005):
            database.orders.insert_one({"_id": len(written)})
            written.append(len(written))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield written
    finally:
        enough.set()
        writer.join()


def fill(database: Any, first: int, count: int = 20) -> None:
    database.orders.insert_many([{"_id": number} for number in range(first, first + count)])


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


def test_of_four_gevent_workers_one_watches_and_the_others_stand_by(tmp_path: Path, uri: str, database: Any) -> None:
    with gunicorn(tmp_path, uri, database.name, *GEVENT) as server:
        wanted = ["running", "standby", "standby", "standby"]
        server.wait_for(lambda: sorted(server.states(4).values()) == wanted)
        fill(database, 0)
        server.wait_seen(20)

        assert server.states(4)[server.active() or 0] == "running"
        assert server.end() == 0
    assert set(server.seen.values()) == {1}


def test_when_the_active_worker_is_killed_another_takes_over_and_nothing_is_lost(
    tmp_path: Path, uri: str, database: Any
) -> None:
    with gunicorn(tmp_path, uri, database.name, *GEVENT) as server, writing(database) as written:
        server.wait_seen(20)
        killed = server.active()
        assert killed
        os.kill(killed, signal.SIGKILL)
        server.wait_for(lambda: server.active() not in (None, killed))
        handled = len(server.seen)
        server.wait_seen(handled + 50)
    with gunicorn(tmp_path, uri, database.name, *GEVENT) as server:
        server.wait_for(lambda: server.seen.keys() == set(written))


@pytest.mark.parametrize("options", [GEVENT, ("--threads", "2", "--workers", "2")], ids=["gevent", "gthread"])
def test_a_graceful_reload_repeats_nothing(tmp_path: Path, uri: str, database: Any, options: tuple[str, ...]) -> None:
    with gunicorn(tmp_path, uri, database.name, *options) as server, writing(database) as written:
        server.wait_seen(20)
        before = server.states(4 if options == GEVENT else 2).keys()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: server.active() not in (None, *before))
        handled = len(server.seen)
        server.wait_seen(handled + 50)
        assert server.end() == 0
    with gunicorn(tmp_path, uri, database.name, *options) as server:
        server.wait_for(lambda: server.seen.keys() == set(written))
    assert set(server.seen.values()) == {1}


KINDS = {
    "gevent": (4, HOOKS, GEVENT),
    "gevent, preloaded": (4, PATCH + HOOKS, ("--preload", *GEVENT)),
    "sync": (2, HOOKS, ("--workers", "2")),
    "sync, preloaded": (2, HOOKS, ("--preload", "--workers", "2")),
    "gthread": (2, HOOKS, ("--workers", "2", "--threads", "2")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_every_kind_of_worker_watches_and_ends_cleanly(
    tmp_path: Path, uri: str, database: Any, kind: str, number: signal.Signals
) -> None:
    workers, conf, options = KINDS[kind]
    for first in (0, 20):
        with gunicorn(tmp_path, uri, database.name, *options, conf=conf) as server:
            # gunicorn forgets a signal that comes before a worker has booted.
            server.states(workers)
            fill(database, first)
            server.wait_seen(first + 20)

            assert server.end(number) == 0
        assert not [word for word in ("TIMEOUT", "SIGKILL", "PatchWarning") if word in server.log]
        # gunicorn may signal a worker once more while pymongo's exit handler waits for its threads.
        assert "Traceback" not in server.log or "atexit callback: <function _shutdown_resources" in server.log
        assert server.status()["state"] == "stopped"
    assert set(server.seen.values()) == {1}


@pytest.mark.parametrize("options", [("--worker-class", "gevent"), ("--threads", "2")], ids=["gevent", "gthread"])
def test_workers_that_end_after_some_requests_repeat_nothing(
    tmp_path: Path, uri: str, database: Any, options: tuple[str, ...]
) -> None:
    with gunicorn(tmp_path, uri, database.name, *options, "--max-requests", "5") as server:
        with writing(database) as written:
            server.wait_seen(20)
            first = server.active()
            server.states(3)
            server.wait_for(lambda: server.active() not in (None, first))
        server.wait_seen(len(written))
    assert set(server.seen.values()) == {1}
