"""Handlers that raise what they like, hang, kill greenlets and change their events, on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import gevent
import pytest
from conftest import wait_until
from programs import BOTH, Program
from watchers import Make, collecting, watchers

from rigatoni import HandlerError, ResumeTokenPersistenceError, RetryPolicy
from rigatoni.hub import GivenUp

AT_ONCE = RetryPolicy(max_attempts=3, initial_backoff=0.001, max_backoff=0.001)


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any, store_path: str) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"store": store_path, **options})


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any, store_path: str) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}


def assert_comes_again(make: Make, *keys: Any) -> None:
    """Start again with a handler that returns."""
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    wait_until(lambda: len(seen) >= len(keys))
    assert watcher.stop() and seen == [*keys]


# -- raising

ENDINGS = [
    ValueError("no"),
    StopIteration(),
    MemoryError(),
    RecursionError(),
    AssertionError(),
    ResumeTokenPersistenceError("of another watcher, say"),
    GivenUp("as the library does"),
    gevent.Timeout(5),
    asyncio.CancelledError(),
    gevent.GreenletExit(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    BaseException("of nobody knows whom"),
]


@pytest.mark.parametrize("error", ENDINGS, ids=lambda error: type(error).__name__)
def test_whatever_a_handler_raises_is_no_acknowledgement(database: Any, make: Make, error: BaseException) -> None:
    watcher = make(on_error="stop", retry=RetryPolicy(max_attempts=1))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        if event.document_key["_id"] == 2:
            raise error

    watcher.start()
    database.orders.insert_many([{"_id": 1}, {"_id": 2}, {"_id": 3}])
    with pytest.raises(HandlerError) as raised:
        watcher.join(60)
    assert raised.value.__cause__ is error and raised.value.event.document_key == {"_id": 2}
    assert watcher.state == "failed"
    assert_comes_again(make, 2, 3)


ENDING = """
import gevent
from rigatoni import HandlerError, Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"])
errors = {"GreenletExit": gevent.GreenletExit, "SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}


@watcher.on("insert")
def fail(event):
    raise errors[given["error"]]()


say(state=watcher.start())
try:
    watcher.join()
except HandlerError as error:
    say(raised=type(error.__cause__).__name__, key=error.event.document_key["_id"])
"""


@pytest.mark.parametrize("error", ["GreenletExit", "SystemExit", "KeyboardInterrupt"])
def test_in_a_patched_process_the_watcher_ends_and_the_program_goes_on(
    database: Any, given: Any, make: Make, tmp_path: Path, error: str
) -> None:
    with Program(ENDING, tmp_path, patched=True, error=error, **given) as program:
        program.wait_said("state")
        database.orders.insert_one({"_id": 1})
        assert program.end() == 0, program.complaints
        assert program.lines[-1] == {"raised": error, "key": 1}
    assert_comes_again(make, 1)


# -- hanging

HANGING = """
import gevent
from gevent import monkey
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"])


def yields():
    while True:
        gevent.sleep(0.01)


def swallows():
    while True:
        try:
            gevent.sleep(0.01)
        except gevent.GreenletExit:
            pass


def burns():
    while True:
        pass


@watcher.on("insert")
def hang(event):
    if event.document_key["_id"] == "hang":
        say(hangs=True)
        globals()[given["how"]]()


def stop():
    while not os.path.exists("stop"):
        native_sleep(0.01)
    began = time.monotonic()
    stopped = watcher.stop(timeout=0.3)
    say(stopped=stopped, seconds=time.monotonic() - began)


native_sleep = monkey.get_original("time", "sleep")
say(state=watcher.start())
if given["how"] == "burns":
    # The hub of the handler stands still: only another native thread can call anything.
    monkey.get_original("_thread", "start_new_thread")(stop, ())
else:
    gevent.get_hub().threadpool.spawn(stop)
watcher.join()
say(joined=watcher.state)
"""


@BOTH
@pytest.mark.parametrize("how", ["yields", "swallows", "burns"])
def test_a_stop_waits_for_no_handler_longer_than_it_was_told_and_says_what_is_unfinished(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool, how: str
) -> None:
    with Program(HANGING, tmp_path, patched=patched, how=how, **given) as program:
        program.wait_said("state")
        database.orders.insert_many([{"_id": "hang"}, {"_id": "waits"}])
        program.wait_said("hangs")
        (tmp_path / "stop").touch()
        assert program.wait_said("stopped") is False
        (seconds,) = program.said("seconds")
        assert 0.3 <= seconds < 2
        assert "hang with <ChangeEvent insert" in program.complaints and "_id='hang'" in program.complaints
        if how != "burns":
            assert program.end() == 0, program.complaints
            assert program.said("joined") == ["stopped"]
    assert_comes_again(make, "hang", "waits")


# -- with a timeout

SLOW = """
import gevent
from rigatoni import RetryPolicy, Watcher

retry = RetryPolicy(max_attempts=2, initial_backoff=0.001, max_backoff=0.001)
watcher = Watcher(given["uri"], given["database"], store=given["store"], retry=retry)


@watcher.on("insert", timeout=0.05)
def handle(event):
    say(called=event.document_key["_id"])
    if event.document_key["_id"] == "slow":
        gevent.sleep(600)
    say(returned=event.document_key["_id"])


say(state=watcher.start())
watcher.join()
"""


@BOTH
def test_a_handler_with_a_timeout_is_cut_off_and_the_next_event_is_handled(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool
) -> None:
    with Program(SLOW, tmp_path, patched=patched, **given) as program:
        program.wait_said("state")
        database.orders.insert_many([{"_id": "slow"}, {"_id": "next"}])
        program.wait_said("returned")
        assert program.said("called") == ["slow", "slow", "next"] and program.said("returned") == ["next"]
    store = make().store
    (letter,) = store.letters("default")
    assert letter.error.startswith("Timeout") and letter.event["documentKey"] == {"_id": "slow"}
    store.close()


# -- killing what is the watcher's

KILLING = """
import gevent
from rigatoni import HandlerError, Watcher

watcher = Watcher(given["uri"], given["database"], store=given["store"])
TOLD = ["life", "reader", "feeder"]
KILLABLE = ["saver", "gauge"]


@watcher.on("insert")
def kill(event):
    say(called=event.document_key["_id"])
    life, whom = watcher._life, given["whom"]
    if whom == "itself":
        gevent.getcurrent().kill()
    elif whom in TOLD:
        life._told[TOLD.index(whom)].kill(block=given["blocks"])
    else:
        life._killable[KILLABLE.index(whom)].kill(block=given["blocks"])
    gevent.sleep(0)
    say(returned=event.document_key["_id"])


say(state=watcher.start())
try:
    watcher.join(30)
except HandlerError as error:
    say(raised=str(error), state=watcher.state)
"""


# Who waits for the life of the watcher to end is waited for by it, until its time is over.
@pytest.mark.parametrize(
    "whom, blocks, patched",
    [
        ("itself", False, True),
        ("life", False, True),
        ("reader", False, True),
        ("reader", True, True),
        ("reader", True, False),
        ("feeder", True, True),
        ("saver", True, True),
        ("gauge", True, True),
    ],
)
def test_a_handler_that_kills_a_greenlet_of_the_watcher_ends_it_and_nothing_hangs(
    database: Any, given: Any, make: Make, tmp_path: Path, whom: str, blocks: bool, patched: bool
) -> None:
    with Program(KILLING, tmp_path, patched=patched, whom=whom, blocks=blocks, **given) as program:
        program.wait_said("state")
        database.orders.insert_one({"_id": 1})
        assert program.end() == 0, program.complaints
        assert program.said("state")[-1] == "failed"
        assert ("ended by GreenletExit" if whom == "itself" else "killed by somebody else") in program.said("raised")[0]
        is_handled = program.said("returned") == [1]
    assert is_handled == (whom != "itself")
    database.orders.insert_one({"_id": 2})
    assert_comes_again(make, *([2] if is_handled else [1, 2]))
