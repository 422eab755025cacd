"""Watchers on a fake server: everything of theirs is real, and nothing waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId, tz_util
from bson.codec_options import CodecOptions
from conftest import wait_until
from programs import BOTH, run_program
from pymongo.errors import AutoReconnect, InvalidOperation, OperationFailure, ServerSelectionTimeoutError
from watchers import collecting, keeping, operations_of, places

from rigatoni import (
    AckableEvent,
    ChangeEvent,
    ChangeStreamConfig,
    ConfigurationError,
    Hooks,
    InvalidResumeTokenError,
    MaxReconnectAttemptsExceededError,
    MemoryStore,
    RetryPolicy,
    StreamConnectionError,
    StreamInvalidatedError,
    Watcher,
)
from rigatoni.testing import FakeClient, make_event

#: A server that nobody may ask: only rehearsals run.
NOWHERE = "mongodb://nobody.invalid"


def shop(**options: Any) -> Watcher:
    return Watcher(NOWHERE, "shop", **{"store": MemoryStore(), **options})


class Told(Hooks):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.gaps: list[str] = []
        self.opened_streams = 0

    def opened(self, stream: str) -> None:
        self.opened_streams += 1

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        self.errors.append(error)

    def gap(self, stream: str, since: object, until: object) -> None:
        self.gaps.append(stream)


# -- what is played


def test_every_change_of_everyday_life_reaches_its_handlers() -> None:
    watcher = shop()
    seen = places(watcher)
    client = FakeClient()
    with watcher.rehearsal(client) as rehearsed:
        key = {"_id": ObjectId()}
        client.insert("orders", {**key, "item": "pasta"})
        client.update("orders", key, {"item": "rice"})
        client.replace("orders", {**key, "item": "oil"})
        client.delete("orders", key)
        client.rename("orders", "old")
        client.drop("old")
        client.insert("invoices")
        client.drop_database()
        client.drain(rehearsed)

    assert operations_of(seen) == (
        ["insert", "update", "replace", "delete", "rename", "drop", "insert", "drop", "dropDatabase", "invalidate"]
    )
    assert seen[7] == ("shop", "invoices", "drop")


def test_what_is_played_is_returned_as_handlers_see_it() -> None:
    options: CodecOptions[Any] = CodecOptions(tz_aware=True)
    client = FakeClient("books", codec_options=options)
    watcher = Watcher(NOWHERE, store=MemoryStore())
    seen = keeping(watcher, lambda event: event)
    noon = datetime(2030, 1, 31, 12, tzinfo=tz_util.utc)

    with watcher.rehearsal(client) as rehearsed:
        played = client.insert("orders", {"at": noon})
        client.drain(rehearsed)

    (event,) = seen
    assert played.raw == event.raw
    assert (event.database, event.full_document["at"]) == ("books", noon)


def test_events_that_were_made_before_happen_when_they_are_played() -> None:
    old = [make_event(document={"_id": number}) for number in range(3)]
    watcher, client = shop(), FakeClient()
    seen = keeping(watcher, lambda event: (event.document_key["_id"], event.id))
    with watcher.rehearsal(client) as rehearsed:
        played = client.play(old[2], old[0], old[0].raw, old[1])
        client.drain(rehearsed)

    assert seen == [(event.document_key["_id"], event.id) for event in played]  # type: ignore[index]
    assert [key for key, _ in seen] == [2, 0, 0, 1]
    assert sorted({each for _, each in seen}) == [each for _, each in seen]


def test_what_is_played_together_comes_in_one_batch() -> None:
    watcher, client, batches = shop(), FakeClient(), list[int]()
    watcher.on_batch("insert", max_wait=60, max_size=3)(lambda events: batches.append(len(events)))
    with watcher.rehearsal(client) as rehearsed:
        client.play(*(make_event() for _ in range(6)))
        client.drain(rehearsed)

    assert batches == [3, 3]


@pytest.mark.parametrize(
    ("event", "mistake"),
    [
        (make_event("invalidate"), "the server makes 'invalidate' itself"),
        ({"operationType": "insert"}, "must be a whole change event"),
        ({"_id": {"_data": "82"}, "operationType": "insert", "ns": {"db": "shop"}}, "must be a whole change event"),
        ({**make_event("rename").raw, "to": None}, "says in 'to' where it goes"),
    ],
)
def test_what_no_server_would_write_is_refused(event: Any, mistake: str) -> None:
    with pytest.raises(ConfigurationError, match=mistake):
        FakeClient().play(event)


# -- the engine


def test_a_failing_handler_is_tried_again_at_once_and_its_event_kept_as_a_dead_letter() -> None:
    slow = RetryPolicy(max_attempts=4, initial_backoff=1000, max_backoff=1000)
    watcher, client = shop(retry=slow), FakeClient()
    attempts: list[str] = []

    def fail(event: ChangeEvent) -> None:
        attempts.append(event.id)
        raise ValueError("too heavy")

    watcher.on("insert")(fail)
    watcher.on("delete", retry=slow)(lambda event: fail(event))
    with watcher.rehearsal(client) as rehearsed:
        events = [client.insert("orders"), client.delete("orders")]
        client.drain(rehearsed)
        letters = rehearsed.store.letters(rehearsed.name)

    assert attempts == [event.id for event in events for _ in range(4)]
    assert [(letter.error, letter.attempts) for letter in letters] == [("ValueError: too heavy", 4)] * 2


def test_an_event_that_is_not_acknowledged_keeps_it_from_being_drained() -> None:
    watcher, client, held = shop(), FakeClient(), list[AckableEvent]()
    watcher.on("insert", ack="manual")(held.append)
    with watcher.rehearsal(client) as rehearsed:
        client.insert("orders")
        with pytest.raises(TimeoutError, match="'in_flight': 1"):
            client.drain(rehearsed, timeout=0.1)
        held[0].ack()
        client.drain(rehearsed)


def test_what_ends_the_watcher_is_raised_by_drain() -> None:
    watcher, client = shop(on_error="stop", retry=RetryPolicy(max_attempts=1)), FakeClient()

    @watcher.on("insert")
    def fail(event: ChangeEvent) -> None:
        raise ValueError("too heavy")

    rehearsed = watcher.rehearsal(client)
    rehearsed.start()
    client.insert("orders")
    with pytest.raises(Exception, match="failed 1 times") as raised:
        client.drain(rehearsed)
    rehearsed.stop()

    assert rehearsed.error is raised.value


def test_a_watcher_that_does_not_run_cannot_be_drained() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)

    with pytest.raises(ConfigurationError, match="write 'with watcher:' around drain"):
        client.drain(watcher.rehearsal(client))


def test_a_second_run_goes_on_where_the_first_was() -> None:
    watcher, client, store = shop(), FakeClient(), MemoryStore()
    seen = collecting(watcher, "insert")
    for number in range(3):
        with watcher.rehearsal(client, store=store) as rehearsed:
            client.insert("orders", {"_id": 2 * number})
            client.drain(rehearsed)
        client.insert("orders", {"_id": 2 * number + 1})
    with watcher.rehearsal(client, store=store) as rehearsed:
        client.drain(rehearsed)

    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("start_at", ["earliest", datetime(2000, 1, 1, tzinfo=timezone.utc)])
def test_a_watcher_may_begin_in_the_past(start_at: object) -> None:
    watcher, client = shop(start_at=start_at), FakeClient()
    seen = collecting(watcher)
    client.insert("orders", {"_id": 1})
    with watcher.rehearsal(client) as rehearsed:
        client.drain(rehearsed)

    assert seen == [1]


def test_streams_of_their_own_and_shared_ones_are_drained_together() -> None:
    watcher, client = Watcher(NOWHERE, store=MemoryStore()), FakeClient()
    watcher.watch("orders", "shop", full_document="updateLookup")
    seen = keeping(watcher, lambda event: (event.database, event.collection, event.full_document))
    with watcher.rehearsal(client) as rehearsed:
        client.update("orders", {"_id": 1}, {"n": 2}, document={"n": 2})
        client.update("invoices", {"_id": 1}, {"n": 2}, document={"n": 2})
        client.insert("orders", {"_id": 1}, database="bar")
        client.drain(rehearsed)

    assert sorted(seen, key=repr) == [
        ("bar", "orders", {"_id": 1}),
        ("shop", "invoices", None),
        ("shop", "orders", {"_id": 1, "n": 2}),
    ]


def test_an_invalidate_of_what_was_declared_ends_a_watcher_that_asks_for_it() -> None:
    watcher, client = shop(on_invalidate="stop"), FakeClient()
    collecting(watcher, "insert")
    rehearsed = watcher.rehearsal(client)
    rehearsed.start()
    client.drop_database()

    with pytest.raises(StreamInvalidatedError) as ended:
        rehearsed.join(timeout=60)
    assert ended.value.reason == "dropDatabase"


# -- what goes wrong on cue


@pytest.mark.parametrize("error", [43, 10107, 91, 136, 262, 11602, AutoReconnect("connection closed")])
def test_an_interruption_costs_nothing_but_a_reopening(error: int | Exception) -> None:
    told = Told()
    watcher, client = shop(hooks=[told], on_history_lost="now"), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)
        client.fail(error)
        client.drain(rehearsed)
        client.insert("orders", {"_id": 2})
        client.drain(rehearsed)

    assert seen == [1, 2]
    assert told.opened_streams == 2


def test_errors_have_the_classes_that_pymongo_gives_them() -> None:
    told = Told()
    watcher, client = shop(hooks=[told]), FakeClient()
    collecting(watcher)
    with watcher.rehearsal(client) as rehearsed:
        for code in (43, 50, 10107, 89):
            client.fail(code)
            client.drain(rehearsed)

    causes = [type(error.__cause__).__name__ for error in told.errors]
    assert causes == ["CursorNotFound", "ExecutionTimeout", "NotPrimaryError", "OperationFailure"]
    assert [getattr(error, "code", None) for error in told.errors] == [43, 50, 10107, 89]


def test_an_opening_fails_as_often_as_it_is_told_to() -> None:
    told = Told()
    watcher, client = shop(hooks=[told]), FakeClient()
    collecting(watcher)
    client.fail(ServerSelectionTimeoutError("nobody"), times=2, command="hello")
    client.fail(189, times=3, command="aggregate")
    with watcher.rehearsal(client) as rehearsed:
        client.drain(rehearsed)

    assert len(told.errors) == 5


@pytest.mark.parametrize(
    ("code", "error"), [(13, ConfigurationError), (280, InvalidResumeTokenError), (286, InvalidResumeTokenError)]
)
def test_what_no_reopening_mends_is_raised_by_start(code: int, error: type[Exception]) -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    client.fail(code, command="aggregate")

    with pytest.raises(error) as raised:
        watcher.rehearsal(client).start()
    assert isinstance(raised.value.__cause__, OperationFailure)


def test_an_event_that_is_said_to_be_too_large_comes_through_the_guard() -> None:
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.fail(10334)
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)

    assert seen == [1]


def test_an_outage_lasts_from_down_to_up() -> None:
    told = Told()
    watcher, client = shop(hooks=[told]), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.down()
        wait_until(lambda: len(told.errors) > 20)
        client.insert("orders", {"_id": 1})
        assert rehearsed.stats()["streams"]["shop"]["state"] == "reconnecting"
        client.up()
        client.drain(rehearsed)

    assert seen == [1]
    assert isinstance(told.errors[1], StreamConnectionError)


def test_a_watcher_gives_up_when_its_configuration_says_so() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    client.down()
    config = ChangeStreamConfig(max_reconnect_attempts=2, initial_backoff=0.001)

    with pytest.raises(MaxReconnectAttemptsExceededError):
        watcher.rehearsal(client, config=config).start()


@pytest.mark.parametrize("policy", ["stop", "now", "earliest"])
def test_a_lost_history_is_an_error_or_a_gap_that_is_told(policy: str) -> None:
    told = Told()
    watcher, client, store = shop(hooks=[told], on_history_lost=policy), FakeClient(), MemoryStore()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client, store=store) as rehearsed:
        client.drain(rehearsed)
    client.insert("orders", {"_id": 1})
    client.lose_history()
    client.insert("orders", {"_id": 2})

    again = watcher.rehearsal(client, store=store)
    if policy == "stop":
        with pytest.raises(InvalidResumeTokenError):
            again.start()
        return
    with again:
        client.insert("orders", {"_id": 3})
        client.drain(again)
    assert seen == ([3] if policy == "now" else [2, 3])
    assert told.gaps == ["shop"]


def test_who_is_up_to_date_loses_no_history() -> None:
    watcher, client = shop(), FakeClient()
    seen = collecting(watcher, "insert")
    with watcher.rehearsal(client) as rehearsed:
        client.insert("orders", {"_id": 1})
        client.drain(rehearsed)
        client.lose_history()
        client.insert("orders", {"_id": 2})
        client.drain(rehearsed)

    assert seen == [1, 2]


def test_a_position_of_one_fake_server_is_refused_by_another() -> None:
    watcher, store = shop(), MemoryStore()
    collecting(watcher)
    with watcher.rehearsal(FakeClient(), store=store):
        pass

    with pytest.raises(InvalidResumeTokenError, match="another cluster"):
        watcher.rehearsal(FakeClient(), store=store).start()


def test_a_client_that_was_closed_serves_nobody() -> None:
    watcher, client = shop(), FakeClient()
    collecting(watcher)
    client.close()

    with pytest.raises(StreamConnectionError, match="closed") as raised:
        watcher.rehearsal(client).start()
    assert isinstance(raised.value.__cause__, InvalidOperation)


@pytest.mark.parametrize(
    ("told", "mistake"),
    [
        ({"error": 43, "command": "getmore"}, "no command 'getmore': there are aggregate"),
        ({"error": "43"}, "a code of the server or an exception, not '43'"),
        ({"error": 0}, "not 0"),
        ({"error": True}, "not True"),
        ({"error": 43, "times": 0}, "times must be a whole number from 1, not 0"),
    ],
)
def test_what_cannot_go_wrong_is_refused(told: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ConfigurationError, match=mistake):
        FakeClient().fail(**told)


# -- rehearsals


def test_a_stage_that_only_a_real_server_knows_is_an_error_of_start() -> None:
    watcher, client = shop(config=ChangeStreamConfig(pipeline=[{"$set": {"seen": True}}])), FakeClient()
    collecting(watcher)

    with pytest.raises(ConfigurationError, match=r"cannot evaluate the stage \$set"):
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


# -- patched or not


PROGRAM = """
import threading
from rigatoni import MemoryStore, Watcher
from rigatoni.testing import FakeClient

client = FakeClient()
watcher = Watcher(client, "shop", store=MemoryStore(), save_interval=0.001)
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
    # Nobody waits for the getMore, which has a second to wait for events.
    assert line["stopping"] < 0.9


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
