"""At least once, on a real server: the stored position of a watcher never passes an event that is not acknowledged."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from programs import Program

from rigatoni import ChangeStreamConfig, MemoryStore, SQLiteStore, Watcher


class Manual:
    """A watcher whose handler keeps its events for the test to acknowledge."""

    def __init__(self, uri: str, name: str, store: Any) -> None:
        self.events: list[Any] = []
        self.store = store
        self.scope = name
        self.watcher = Watcher(
            uri, name, store=store, config=ChangeStreamConfig(max_await_time=0.1), save_interval=0.01
        )
        self.watcher.on("insert", collection="orders", ack="manual")(self.keep)

    def keep(self, event: Any) -> None:
        self.events.append(event)

    @property
    def ids(self) -> list[int]:
        return [event.document_key["_id"] for event in self.events]

    def wait_for(self, *ids: int) -> None:
        wait_until(lambda: len(self.events) >= len(ids) or self.watcher.error)
        assert self.ids == list(ids)

    @property
    def position(self) -> str:
        """Give what is stored, as something that sorts as the events do."""
        return str(self.store.load("default")[self.scope].token["_data"])

    def __enter__(self) -> Manual:
        self.watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watcher.stop()


def test_the_stored_position_follows_the_acknowledged_prefix(database: Any, mongodb_replica_set: Any) -> None:
    with Manual(mongodb_replica_set.uri, database.name, MemoryStore()) as manual:
        database.orders.insert_many([{"_id": number} for number in range(5)])
        manual.wait_for(*range(5))
        places = [event.id for event in manual.events]
        assert manual.position < places[0]

        for number, reached in ((3, None), (0, 0), (2, 0), (1, 3)):
            manual.events[number].ack()
            wait_until(lambda reached=reached: reached is None or manual.position >= places[reached])  # type: ignore[misc]
            assert manual.position < places[0 if reached is None else reached + 1]


def test_a_quiet_stream_goes_on_but_never_past_an_event_that_is_not_acknowledged(
    database: Any, mongodb_replica_set: Any
) -> None:
    with Manual(mongodb_replica_set.uri, database.name, MemoryStore()) as manual:
        for key in (1, 2):
            database.orders.insert_one({"_id": key})
            database.elsewhere.insert_many([{} for _ in range(50)])
        manual.wait_for(1, 2)
        first, second = manual.events
        assert manual.position < first.id

        first.ack()
        wait_until(lambda: manual.position >= first.id)
        assert manual.position < second.id

        second.ack()
        wait_until(lambda: database.elsewhere.insert_one({}) and manual.position > second.id)


def test_what_was_not_acknowledged_comes_again_with_all_that_came_after_it(
    database: Any, mongodb_replica_set: Any, store_path: str
) -> None:
    with Manual(mongodb_replica_set.uri, database.name, SQLiteStore(store_path)) as manual:
        database.orders.insert_many([{"_id": number} for number in range(6)])
        manual.wait_for(*range(6))
        for number in (0, 1, 3, 5):
            manual.events[number].ack()
    assert manual.watcher.state == "stopped"

    with Manual(mongodb_replica_set.uri, database.name, SQLiteStore(store_path)) as again:
        again.wait_for(2, 3, 4, 5)
        for event in (*again.events, *again.events):
            event.ack()

    with Manual(mongodb_replica_set.uri, database.name, SQLiteStore(store_path)) as finally_:
        database.orders.insert_one({"_id": 6})
        finally_.wait_for(6)


def test_an_ack_after_the_stop_does_nothing(database: Any, mongodb_replica_set: Any) -> None:
    store = MemoryStore()
    with Manual(mongodb_replica_set.uri, database.name, store) as manual:
        database.orders.insert_one({"_id": 1})
        manual.wait_for(1)
    for event in manual.events:
        event.ack()

    with Manual(mongodb_replica_set.uri, database.name, store) as again:
        again.wait_for(1)


def test_an_event_is_done_only_when_its_manual_and_its_automatic_handlers_are(
    database: Any, mongodb_replica_set: Any
) -> None:
    seen = []
    with_both = Manual(mongodb_replica_set.uri, database.name, MemoryStore())
    with_both.watcher.on("insert", collection="orders")(seen.append)
    with with_both as manual:
        database.orders.insert_one({"_id": 1})
        manual.wait_for(1)
        wait_until(lambda: seen)
        assert manual.position < seen[0].id

        threading.Thread(target=manual.events[0].ack).start()
        wait_until(lambda: manual.position >= seen[0].id)


KILLED = """
import random
import gevent
from rigatoni import ChangeStreamConfig, Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"], save_interval=0.01, concurrency=3,
                  config=ChangeStreamConfig(max_await_time=0.1, batch_size=20))
choose = random.Random(given["seed"])
waiting = []

@watcher.on("insert", collection="orders", ack="manual")
def keep(event):
    waiting.append(event)

@watcher.on("insert", collection="orders")
def handle(event):
    gevent.sleep(choose.random() / 200)
    say(handled=event.document_key["_id"])

def acknowledge():
    while True:
        gevent.sleep(0.005)
        # Most of them late, in any order.
        for event in choose.sample(waiting, len(waiting) // 3 or len(waiting)):
            waiting.remove(event)
            say(acknowledged=event.document_key["_id"])
            event.ack()

gevent.spawn(acknowledge)
watcher.start()
say(started=True)
watcher.join()
"""


@pytest.mark.parametrize("patched", [True, False])
def test_killing_the_process_again_and_again_loses_no_event(
    database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    handled: set[int] = set()
    acknowledged: set[int] = set()
    for seed, enough in enumerate((30, 60, 90, 400)):
        with Program(KILLED, tmp_path, patched=patched, seed=seed, **given) as program:
            program.wait_said("started")
            database.orders.insert_many([{"_id": 100 * seed + number} for number in range(100)])
            for said, known in (("acknowledged", acknowledged), ("handled", handled)):
                program.wait_for(partial(is_enough, program, said, known, enough))
            program.kill()
            handled |= set(program.said("handled"))
            acknowledged |= set(program.said("acknowledged"))

    assert handled == acknowledged == set(range(400))


def is_enough(program: Program, said: str, known: set[int], enough: int) -> bool:
    return len(known | set(program.said(said))) >= enough
