"""Handlers that fail, on a real server and a real SQLite file, with a restart after each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from programs import Program, run_program
from shop import Shop

from rigatoni import AckableEvent, ChangeEvent, DeadLetter, Hooks, RetryPolicy, SQLiteStore, Watcher

AT_ONCE = RetryPolicy(max_attempts=3, initial_backoff=0.001, max_backoff=0.001)


@pytest.fixture
def shop(mongodb_replica_set: Any, database: Any, store_path: str) -> Shop:
    return Shop(mongodb_replica_set.uri, database, store_path)


class Heard(Hooks):
    """Every call of the hooks that concern handlers."""

    def __init__(self) -> None:
        self.handled_keys: list[Any] = []
        self.attempts: list[tuple[Any, int]] = []
        self.buried: list[Any] = []

    def handled(self, event: ChangeEvent, seconds: float) -> None:
        self.handled_keys.append(key_of(event))

    def failed(self, event: ChangeEvent, error: BaseException, attempt: int) -> None:
        self.attempts.append((key_of(event), attempt))

    def dead_lettered(self, event: ChangeEvent, error: BaseException) -> None:
        self.buried.append(key_of(event))


def key_of(event: ChangeEvent) -> Any:
    return (event.document_key or {}).get("_id")


def letters(shop: Shop) -> list[DeadLetter]:
    store = SQLiteStore(shop.store)
    store.open()
    try:
        return store.letters("default")
    finally:
        store.close()


@contextmanager
def running(watcher: Watcher) -> Iterator[Watcher]:
    """Run a watcher, which must stop in order."""
    watcher.start()
    try:
        yield watcher
    finally:
        assert watcher.stop(), "a handler did not return"
    assert watcher.error is None


def assert_nothing_is_repeated(shop: Shop, **options: Any) -> None:
    """Start again, and see only what is written from now on."""
    seen: list[Any] = []
    watcher = shop.watcher(**options)
    watcher.on("insert")(lambda event: seen.append(key_of(event)))
    with running(watcher):
        shop.database.orders.insert_one({"_id": "after the restart"})
        wait_until(lambda: seen)
    assert seen == ["after the restart"]


def test_a_handler_that_fails_twice_and_then_works_handles_once_and_acknowledges_once(shop: Shop) -> None:
    heard, calls = Heard(), list[Any]()
    watcher = shop.watcher(retry=AT_ONCE, hooks=[heard])

    @watcher.on("insert", collection="orders")
    def moody(event: ChangeEvent) -> None:
        calls.append(key_of(event))
        if key_of(event) == 1 and calls.count(1) < 3:
            raise ConnectionError("the parcel service is away")

    with running(watcher):
        shop.database.orders.insert_many({"_id": number} for number in range(3))
        wait_until(lambda: 2 in calls)
    assert calls == [0, 1, 1, 1, 2]
    assert heard.handled_keys == [0, 1, 2]
    assert heard.attempts == [(1, 1), (1, 2)]
    counted = {name: watcher.stats()[name] for name in ("received", "handled", "failed", "retried", "dead_lettered")}
    assert counted == {"received": 3, "handled": 3, "failed": 2, "retried": 2, "dead_lettered": 0}
    assert letters(shop) == []
    assert_nothing_is_repeated(shop)


def test_what_always_fails_is_kept_with_its_traceback_and_can_be_replayed_once_mended(shop: Shop) -> None:
    heard, shipped, is_mended = Heard(), list[Any](), False
    watcher = shop.watcher(retry=AT_ONCE, hooks=[heard])

    def address_of(document: Any) -> Any:
        return document["address"] if not is_mended else document.get("address", "unknown")

    @watcher.on("insert", collection="orders")
    def ship(event: ChangeEvent) -> None:
        shipped.append((key_of(event), address_of(event.full_document)))

    with running(watcher):
        shop.database.orders.insert_many(
            {"_id": number, **({} if number == 2 else {"address": f"street {number}"})} for number in range(5)
        )
        wait_until(lambda: len(shipped) == 4)
    assert [number for number, _ in shipped] == [0, 1, 3, 4], "later events of the collection go on"
    (letter,) = letters(shop)
    assert letter.attempts == 3
    assert letter.error == "KeyError: 'address'"
    assert "in address_of" in letter.traceback and "in ship" in letter.traceback
    assert letter.event["fullDocument"] == {"_id": 2}
    assert heard.attempts == [(2, 1), (2, 2), (2, 3)] and heard.buried == [2]
    assert_nothing_is_repeated(shop)

    with pytest.raises(KeyError):
        watcher.dispatch(letter.event, handler=letter.handler)
    is_mended = True
    watcher.dispatch(letter.event, handler=letter.handler)
    assert shipped[4:] == [(2, "unknown")]


@pytest.mark.parametrize("patched, concurrency", [(True, 1), (False, 1), (True, 8)])
def test_stop_raises_what_failed_and_the_next_start_delivers_that_very_event_first(
    patched: bool, concurrency: int, shop: Shop, tmp_path: Path
) -> None:
    text = """
from rigatoni import HandlerError, Hooks, RetryPolicy, Watcher


class Told(Hooks):
    def opened(self, stream):
        say(opened=stream)


retry = RetryPolicy(max_attempts=2, initial_backoff=0.001, max_backoff=0.001)
watcher = Watcher(
    given["uri"], given["database"], store=given["store"], on_error="stop", retry=retry, hooks=[Told()],
    concurrency=given["concurrency"],
)


@watcher.on("insert", collection="orders")
def handle(event):
    number = event.document_key["_id"]
    if number == given["poison"]:
        raise ValueError("poison")
    say(number=number)
    if number == 99 and given["poison"] is None:
        watcher.stop()


try:
    watcher.run()
except HandlerError as error:
    say(raised=error.event.document_key["_id"], cause=type(error.__cause__).__name__, state=watcher.state)
"""
    given = {
        "uri": shop.uri,
        "database": shop.database.name,
        "store": shop.store,
        "concurrency": concurrency,
    }
    with Program(text, tmp_path, patched=patched, poison=50, **given) as failing:
        failing.wait_said("opened")
        shop.database.orders.insert_many({"_id": number} for number in range(100))
        assert failing.end() == 0, failing.complaints
    assert failing.lines[-1] == {"raised": 50, "cause": "ValueError", "state": "failed"}
    again = run_program(text, tmp_path, patched=patched, poison=50, **given)
    assert again.said("raised") == [50], "it is not passed by starting again"
    mended = run_program(text, tmp_path, patched=patched, poison=None, **given)
    if concurrency == 1:
        assert failing.said("number") == list(range(50))
        assert again.said("number") == []
        assert mended.said("number") == list(range(50, 100))
    else:
        everything = failing.said("number") + again.said("number") + mended.said("number")
        assert set(everything) == set(range(100))
        assert 50 in mended.said("number")


def test_skip_goes_on_without_a_letter(shop: Shop) -> None:
    seen: list[Any] = []
    watcher = shop.watcher(retry=AT_ONCE, on_error="skip")

    @watcher.on("insert", collection="orders")
    def handle(event: ChangeEvent) -> None:
        if key_of(event) == 1:
            raise ValueError("never mind")
        seen.append(key_of(event))

    with running(watcher):
        shop.database.orders.insert_many({"_id": number} for number in range(3))
        wait_until(lambda: len(seen) == 2)
    assert seen == [0, 2]
    assert letters(shop) == []
    assert_nothing_is_repeated(shop)


def test_an_event_that_is_never_acknowledged_holds_its_stream_and_comes_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("rigatoni.pipe.HELD", 0.1)
    seen: list[Any] = []

    def manual(never: object) -> Watcher:
        watcher = shop.watcher(max_in_flight=10)

        @watcher.on("insert", collection="orders", ack="manual")
        def handle(event: AckableEvent) -> None:
            seen.append(key_of(event))
            if key_of(event) != never:
                event.ack()

        return watcher

    with running(manual(never=3)) as watcher:
        shop.database.orders.insert_many({"_id": number} for number in range(40))
        wait_until(lambda: "is held" in caplog.text and watcher.stats()["in_flight"] == 10)
    # On a busy machine it may have been held before by the ten that the handler had not come to.
    *_, warning = [record.getMessage() for record in caplog.records if "is held" in record.getMessage()]
    assert "_id=3>" in warning
    assert seen == list(range(13)), "three are finished, ten are in flight"
    seen.clear()
    with running(manual(never=None)):
        wait_until(lambda: 39 in seen)
    assert seen == list(range(3, 40))
    assert_nothing_is_repeated(shop)


def test_of_a_batch_with_one_poisonous_event_only_that_one_is_buried(shop: Shop) -> None:
    batches: list[list[Any]] = []
    watcher = shop.watcher(retry=AT_ONCE)

    @watcher.on_batch("insert", collection="orders", max_size=10, max_wait=0.5)
    def handle(events: list[ChangeEvent]) -> None:
        keys = [key_of(event) for event in events]
        if 14 in keys:
            raise ValueError("poison")
        batches.append(keys)

    with running(watcher):
        shop.database.orders.insert_many({"_id": number} for number in range(30))
        wait_until(lambda: sum(map(len, batches)) == 29)
    handled = [key for batch in batches for key in batch]
    assert handled == [number for number in range(30) if number != 14]
    assert max(map(len, batches)) == 10
    assert [letter.event["documentKey"]["_id"] for letter in letters(shop)] == [14]
    assert_nothing_is_repeated(shop)


class Unspeakable(Exception):
    """Made from what a service answered, which is no text."""

    def __str__(self) -> str:
        return self.args[0]  # type: ignore[no-any-return]


def test_an_error_that_cannot_be_put_into_words_is_retried_and_buried_like_any_other(shop: Shop) -> None:
    heard, calls = Heard(), list[Any]()
    watcher = shop.watcher(retry=AT_ONCE, hooks=[heard])

    @watcher.on("insert", collection="orders")
    def handle(event: ChangeEvent) -> None:
        calls.append(key_of(event))
        if key_of(event) == 1:
            raise Unspeakable({"code": 7})

    with running(watcher):
        shop.database.orders.insert_many({"_id": number} for number in range(3))
        wait_until(lambda: 2 in calls or watcher.error)
    assert calls == [0, 1, 1, 1, 2]
    assert heard.attempts == [(1, 1), (1, 2), (1, 3)] and heard.buried == [1]
    (letter,) = letters(shop)
    assert letter.error.startswith("Unspeakable: ") and "in handle" in letter.traceback
    assert_nothing_is_repeated(shop)
