"""Rehearsals: the same handlers and options on another client, without waits."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from programs import BOTH, run_program
from rehearsing import NOWHERE, shop
from watchers import collecting, keeping

from rigatoni import (
    ChangeStreamConfig,
    ConfigurationError,
    MemoryStore,
    TokenStore,
    Watcher,
)
from rigatoni.testing import FakeClient


def test_a_stage_that_only_a_real_server_knows_is_an_error_of_start() -> None:
    watcher, client = shop(config=ChangeStreamConfig(pipeline=[{"$set": {"seen": True}}])), FakeClient()
    collecting(watcher)

    with pytest.raises(ConfigurationError, match=r"does not know what to do with the stage \$set"):
        watcher.rehearsal(client).start()


def test_a_rehearsal_leaves_the_watcher_as_it_was(tmp_path: Path) -> None:
    watcher = shop(store=tmp_path / "tokens.db")
    seen, later = collecting(watcher, "insert"), list[Any]()
    first, second = FakeClient(), FakeClient()
    with watcher.rehearsal(first) as one, watcher.rehearsal(second) as two:
        first.insert("orders", {"_id": 1})
        second.insert("orders", {"_id": 2})
        first.drain(one)
        second.drain(two)

    assert sorted(seen) == [1, 2]
    assert (watcher.state, list(tmp_path.iterdir())) == ("created", [])
    watcher.on("delete")(later.append)


def test_a_rehearsal_of_a_running_watcher_is_another_watcher() -> None:
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as one, one.rehearsal(client) as two:
        client.insert("orders", {"_id": 1})
        client.drain(one)
        client.drain(two)

    assert seen == [1, 1]


def test_a_rehearsal_runs_on_a_real_server_too(mongodb_replica_set: Any, database: Any) -> None:
    watcher = Watcher(NOWHERE, database.name)
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(mongodb_replica_set.uri):
        database.orders.insert_one({"_id": 1})
        wait_until(lambda: seen == [1])


@pytest.mark.parametrize("wrong", [None, 7, "http://example.com"])
def test_a_rehearsal_needs_a_client(wrong: Any) -> None:
    with pytest.raises(ConfigurationError):
        shop().rehearsal(wrong)


def test_a_fake_client_is_passed_to_a_watcher_like_any_client(caplog: pytest.LogCaptureFixture) -> None:
    client = FakeClient()
    watcher = Watcher(client, "shop", store=MemoryStore(), save_interval=0.001)
    seen = collecting(watcher)
    with watcher:
        client.insert("orders", {"_id": 1})
        client.drain(watcher)

    assert seen == [1]
    assert "used as it is" not in caplog.text


def test_a_watcher_that_has_ended_leaves_nothing_behind() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    with watcher.rehearsal(client) as rehearsed:
        client.drain(rehearsed)
    gone = weakref.ref(client)
    del client, rehearsed

    def is_gone() -> bool:
        # The thread of its last call may have a moment to live.
        gc.collect()
        return gone() is None

    wait_until(is_gone)


# -- patched or not


PROGRAM = """
import threading
from rigatoni import ChangeStreamConfig, MemoryStore, Watcher
from rigatoni.testing import FakeClient

client = FakeClient()
config = ChangeStreamConfig(max_await_time=60.0)
watcher = Watcher(client, "shop", store=MemoryStore(), save_interval=0.001, config=config)
seen = []


@watcher.on("insert", collection="orders")
def see(event):
    seen.append(event.document_key["_id"])


def play():
    for number in range(100):
        client.insert("orders", {"_id": number})


with watcher:
    thread = threading.Thread(target=play)
    thread.start()
    thread.join()
    client.fail(43)
    client.drain(watcher)
    begin = time.monotonic()
say(seen=seen, stopping=time.monotonic() - begin, threads=threading.active_count())
"""


@BOTH
def test_it_works_in_a_process_that_is_patched_and_in_one_that_is_not(patched: bool, tmp_path: Path) -> None:
    (line,) = run_program(PROGRAM, tmp_path, patched=patched).lines

    assert line["seen"] == list(range(100))
    # Nobody waits for the getMore, which has a minute to wait for events.
    assert line["stopping"] < 15


def test_many_threads_play_and_nothing_is_lost_or_out_of_order() -> None:
    watcher, client = shop(), FakeClient()
    seen = keeping(watcher, lambda event: (event.full_document["player"], event.full_document["number"]))

    def player(name: int) -> Callable[[], None]:
        return lambda: [client.insert("orders", {"player": name, "number": n}) for n in range(50)] and None

    with watcher.rehearsal(client) as rehearsed:
        threads = [threading.Thread(target=player(name)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.drain(rehearsed)

    assert [[n for who, n in seen if who == name] for name in range(4)] == [list(range(50))] * 4


def test_a_store_of_ones_own_needs_nothing_but_the_methods_of_the_contract() -> None:
    def kept(name: str) -> Callable[..., Any]:
        return lambda self, *arguments, **options: getattr(self.inner, name)(*arguments, **options)

    methods = {name: kept(name) for name in TokenStore.__abstractmethods__}
    own = type("Own", (TokenStore,), {"inner": MemoryStore(), **methods})()
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client, store=own) as rehearsed:
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)

    assert seen == [1]
    assert own.inner.names() == ["default"]
