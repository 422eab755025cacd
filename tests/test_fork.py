"""A fork while a watcher runs: the parent loses nothing, and the child is nobody's second watcher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from programs import Program
from watchers import Make, collecting, watchers

import rigatoni

BOTH = pytest.mark.parametrize("patched", [False, True], ids=["unpatched", "patched"])

WATCH = """
import gevent
from rigatoni import ConfigurationError, Hooks, RetryPolicy, Watcher


class Started(Hooks):
    def saved(self, stream, token):
        say(started=os.getpid())


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.01)


def tell(watcher):
    began = time.monotonic()
    try:
        watcher.start()
    except ConfigurationError as error:
        say(refused=str(error))
    say(stopped=watcher.stop(), joined=watcher.join(), seconds=time.monotonic() - began)
    say(child=os.getpid(), state=watcher.state)


watcher = Watcher(given["uri"], given["database"], store="tokens.db", save_interval=0.01, hooks=[Started()])
"""

FORK_IN_MAIN = (
    WATCH
    + """
@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"], by=os.getpid())

watcher.start()
wait_for("fork")
child = os.fork()
if child == 0:
    tell(watcher)
    wait_for("end")
    if given["abruptly"]:
        os._exit(0)
    sys.exit(0)
say(forked=child)
gevent.spawn(lambda: (wait_for("end"), say(ended=wait_for_child(child))))
watcher.join()
say(over=True)
"""
)

FORK_OF_WHAT_NOBODY_KEEPS = (
    WATCH.replace("watcher = Watcher", "made = lambda: Watcher")
    + """
import gc
from rigatoni import SQLiteStore


def watch():
    watcher = made()

    @watcher.on("insert")
    def handle(event):
        say(handled=event.document_key["_id"], by=os.getpid())

    watcher.start()


watch()
gc.collect()
wait_for("fork")
child = os.fork()
if child == 0:
    # Cooperatively: whatever of the watcher went on here would be at its turn.
    while not os.path.exists("end"):
        gevent.sleep(0.01)
    os._exit(0)
say(forked=child)
wait_for("end")
say(ended=wait_for_child(child), status=SQLiteStore("tokens.db").status("default"))
"""
)

FORK_OF_A_BUSY_MEMORY_STORE = """
import threading
from rigatoni import MemoryStore
from rigatoni.stores import memory

store, held = MemoryStore(), threading.Event()


def work():
    with memory._mutex:
        held.set()
        # Much longer than it takes to fork.
        time.sleep(0.5)


threading.Thread(target=work).start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    store.save("shop", {})
    os._exit(0 if store.load("shop") == {} else 1)
say(ended=wait_for_child(child))
"""

FORK_BY_MULTIPROCESSING = (
    WATCH
    + """
import multiprocessing

@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"], by=os.getpid())

def work():
    tell(watcher)
    wait_for("end")

watcher.start()
wait_for("fork")
child = multiprocessing.get_context("fork").Process(target=work)
child.start()
say(forked=child.pid)
child.join()
say(ended=child.exitcode)
wait_for("never")
"""
)

FORK_IN_HANDLER = (
    WATCH
    + """
@watcher.on("insert", retry=RetryPolicy(max_attempts=given["attempts"]))
def handle(event):
    key = event.document_key["_id"]
    if key == "fork":
        child = os.fork()
        if child == 0:
            gevent.sleep(0.05)
            tell(watcher)
            say(returns=os.getpid())
            if given["raises"]:
                raise ValueError("in the child")
            return
        say(ended=wait_for_child(child))
        if given["hangs"]:
            gevent.sleep(600)
    say(handled=key, by=os.getpid())

watcher.run()
say(over=os.getpid())
"""
)

FORK_AS_A_REPLY_ARRIVES = (
    WATCH
    + """
import select, stat
from gevent import monkey

natively = monkey.get_original("time", "sleep")
wait_until_readable = monkey.get_original("select", "select")


def is_socket(number):
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:
        return False


def hold_the_hub():
    sockets = [number for number in range(256) if is_socket(number)]
    say(holds=True)
    wait_until_readable(sockets, [], [])


@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"], by=os.getpid())

watcher.start()
gevent.spawn(hold_the_hub)
# Due in the same round of the hub as the reply.
gevent.sleep(0.01)
child = os.fork()
if child == 0:
    # More than a round of the child's hub.
    gevent.sleep(0.05)
    tell(watcher)
    open("end", "w").close()
    os._exit(0)
while not os.path.exists("end"):
    natively(0.01)
say(ended=wait_for_child(child))
watcher.join()
"""
)

FORK_BESIDE_A_HANDLER = (
    WATCH
    + """
from gevent.event import Event

begun, woken = Event(), Event()


@watcher.on("insert", collection="waits")
def wait(event):
    begun.set()
    try:
        woken.wait()
        say(went_on=os.getpid())
    finally:
        say(left=os.getpid())


@watcher.on("insert", collection="forks")
def fork(event):
    begun.wait()
    woken.set()
    child = os.fork()
    if child == 0:
        gevent.sleep(0.05)
        return
    say(ended=wait_for_child(child))


watcher.run()
"""
)

FORK_BEFORE_THE_NEXT_HANDLER = (
    WATCH
    + """
@watcher.on("insert")
def forks(event):
    child = os.fork()
    if child:
        say(ended=wait_for_child(child))


@watcher.on("insert")
def ships(event):
    say(called="ships", caller=os.getpid())


@watcher.on_batch("insert", max_wait=0.01)
def bills(events):
    say(called="bills", caller=os.getpid())


watcher.run()
"""
)

SAYS_WHAT_IT_SENDS = """
import gevent
from pymongo import MongoClient
from pymongo.monitoring import CommandListener


class Sent(CommandListener):
    def started(self, event):
        say(sent=event.command_name, sender=os.getpid())

    def succeeded(self, event):
        pass

    failed = succeeded


client = MongoClient(given["uri"], event_listeners=[Sent()])
"""

FORK_IN_OPENED = (
    SAYS_WHAT_IT_SENDS
    + """
from rigatoni import Hooks, MemoryStore, Watcher


class Forks(Hooks):
    openings = 0

    def opened(self, stream):
        self.openings += 1
        if self.openings != given["opening"]:
            return
        child = os.fork()
        if child == 0:
            # After the time that it takes to send something; or, where it hangs, by a signal.
            gevent.spawn_later(0.3, os._exit, 0)
            signal.alarm(5)
        else:
            say(forked=child)
            say(ended=wait_for_child(child))


parent = os.getpid()
watcher = Watcher(client, given["database"], store=MemoryStore(), hooks=[Forks()])


@watcher.on("insert", collection="orders")
def handle(event):
    say(handled=event.document_key["_id"], by=os.getpid())


watcher.run()
if os.getpid() != parent:
    gevent.sleep(600)
"""
)

FORK_IN_STATUS = (
    WATCH
    + """
parent, children, unsaved = os.getpid(), [], []


class Forks(Hooks):
    def status(self):
        # What is not saved yet is what the child might save.
        if unsaved and not children:
            children.append(os.fork())
            if children == [0]:
                wait_for("go on")
                # Time enough for what it was about to save.
                gevent.spawn_later(0.3, os._exit, 0)
            else:
                say(forked=children[0])
        return {}

    def saved(self, stream, token):
        unsaved.clear()
        if os.getpid() != parent:
            os._exit(3)


watcher = Watcher(given["uri"], given["database"], store="tokens.db", save_interval=0.01, hooks=[Started(), Forks()])


@watcher.on("insert")
def handle(event):
    say(handled=event.document_key["_id"], by=os.getpid())
    unsaved.append(event)


watcher.start()
wait_for("stop")
if os.getpid() != parent:
    gevent.sleep(600)
say(stopped=watcher.stop())
open("go on", "w").close()
say(ended=wait_for_child(children[0]))
"""
)

FORK_BESIDE_A_LISTENER = (
    SAYS_WHAT_IT_SENDS
    + """
from rigatoni import ChangeStreamConfig, ChangeStreamListener

orders = client[given["database"]].orders
config = ChangeStreamConfig(max_await_time=0.1)
# So that nobody waits for ever for what the other has taken.
signal.alarm(20)


def in_child(event):
    signal.alarm(3)
    event.ack()
    say(got=len(list(listener)), state=listener.state)
    listener.close()
    os._exit(0)


with ChangeStreamListener(orders, config, on_token=lambda token: say(told=os.getpid())) as listener:
    orders.insert_one({"_id": 0})
    event = next(listener)
    child = os.fork()
    if child == 0:
        in_child(event)
    say(forked=child, ended=wait_for_child(child))
    orders.insert_many([{"_id": number} for number in range(1, 6)])
    while event.document_key["_id"] != 5:
        event = next(listener)
        say(handled=event.document_key["_id"], by=os.getpid())
        event.ack()
"""
)

START_AGAIN_IN_CHILD = """
from rigatoni import Watcher

watcher = Watcher(given["uri"], given["database"], store="tokens.db")
watcher.on()(say)
watcher.start()
watcher.stop()
child = os.fork()
if child == 0:
    say(started=watcher.start())
else:
    say(ended=wait_for_child(child), row=watcher.store.status("default")["state"])
"""

FORK_WHILE_A_TOKEN_IS_KEPT = (
    SAYS_WHAT_IT_SENDS
    + """
import threading
from rigatoni import ChangeStreamListener

kept, free = threading.Event(), threading.Event()


def keep(token):
    kept.set()
    free.wait()


listener = ChangeStreamListener(client[given["database"]].orders, on_token=keep)
threading.Thread(target=list, args=(listener,), daemon=True).start()
kept.wait()
child = os.fork()
if child == 0:
    signal.alarm(3)
    say(token=listener.resume_token)
    os._exit(0)
say(ended=wait_for_child(child))
free.set()
listener.close()
"""
)

LISTEN_IN_THE_CHILD = (
    SAYS_WHAT_IT_SENDS
    + """
from rigatoni import ChangeStreamListener

orders = client[given["database"]].orders
listener = ChangeStreamListener(orders)
child = os.fork()
if child == 0:
    with listener:
        orders.insert_one({"_id": 1})
        say(got=next(listener).document_key["_id"])
    os._exit(0)
say(ended=wait_for_child(child))
"""
)


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name}


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any, tmp_path: Path) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(store=tmp_path / "tokens.db", **options)


def handled_by(program: Program, pid: int) -> list[Any]:
    return [line["handled"] for line in program.lines if line.get("by") == pid]


def assert_only_last_is_left(make: Make, database: Any) -> None:
    """Start again where the program was, and find that nothing is repeated."""
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_one({"_id": "last"})
    wait_until(lambda: seen)
    assert seen == ["last"]


def assert_inert(program: Program, child: int) -> None:
    """Hold what a child said to what a child may do."""
    assert program.said("child") == [child]
    assert handled_by(program, child) == []
    (refused,) = program.said("refused")
    assert str(program.pid) in refused and str(child) in refused
    assert program.said("stopped") == [True] and program.said("joined") == [True]
    (seconds,) = program.said("seconds")
    assert seconds < 1
    assert program.said("state") == ["stopped"]


@BOTH
@pytest.mark.parametrize("abruptly", [True, False], ids=["os._exit", "sys.exit"])
def test_after_a_fork_the_parent_handles_everything_and_the_child_nothing(
    database: Any, given: Any, tmp_path: Path, patched: bool, abruptly: bool
) -> None:
    with Program(FORK_IN_MAIN, tmp_path, patched=patched, abruptly=abruptly, **given) as program:
        program.wait_said("started")
        database.orders.insert_many([{"_id": number} for number in range(20)])
        (tmp_path / "fork").touch()
        child = program.wait_said("forked")
        program.wait_said("child")
        database.orders.insert_many([{"_id": number} for number in range(20, 40)])
        program.wait_for(lambda: 39 in handled_by(program, program.pid))
        (tmp_path / "end").touch()
        assert program.wait_said("ended") == 0
        # After the child's end too: it took nothing with it.
        for number in range(40, 60):
            database.orders.insert_one({"_id": number})
        program.wait_for(lambda: 59 in handled_by(program, program.pid))
        assert handled_by(program, program.pid) == list(range(60))
        assert_inert(program, child)
        # Beside rigatoni's: pymongo's monitors, copied by the fork, can end with a KeyError in Python's threading.
        assert str(Path(rigatoni.__file__).parent) not in program.complaints


def test_a_child_does_not_take_the_reply_that_arrives_as_the_parent_forks(
    database: Any, given: Any, tmp_path: Path
) -> None:
    with Program(FORK_AS_A_REPLY_ARRIVES, tmp_path, patched=True, **given) as program:
        program.wait_said("holds")
        database.orders.insert_one({"_id": 0})
        assert program.wait_said("ended") == 0
        database.orders.insert_one({"_id": 1})
        program.wait_for(lambda: 1 in handled_by(program, program.pid))
        assert handled_by(program, program.pid) == [0, 1]
        assert_inert(program, program.said("child")[0])


def test_after_a_fork_by_multiprocessing_the_child_is_inert_too(database: Any, given: Any, tmp_path: Path) -> None:
    with Program(FORK_BY_MULTIPROCESSING, tmp_path, **given) as program:
        program.wait_said("started")
        (tmp_path / "fork").touch()
        child = program.wait_said("forked")
        program.wait_said("child")
        database.orders.insert_many([{"_id": number} for number in range(20)])
        program.wait_for(lambda: len(program.said("handled")) == 20)
        (tmp_path / "end").touch()
        assert program.wait_said("ended") == 0
        assert handled_by(program, program.pid) == list(range(20))
        assert_inert(program, child)


@BOTH
def test_the_name_is_free_when_the_parent_dies_while_its_child_lives(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool
) -> None:
    with Program(FORK_IN_MAIN, tmp_path, patched=patched, abruptly=True, **given) as program:
        program.wait_said("started")
        (tmp_path / "fork").touch()
        child = program.wait_said("forked")
        program.wait_said("child")
        try:
            program.kill()
            os.kill(child, 0)
            database.orders.insert_one({"_id": 1})
            watcher = make()
            seen = collecting(watcher, "insert")
            assert watcher.start() == "running"
            wait_until(lambda: seen == [1])
            os.kill(child, 0)
        finally:
            (tmp_path / "end").touch()


@BOTH
def test_a_handler_may_fork_and_its_child_goes_on_while_the_parent_handles_the_event(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool
) -> None:
    given = {**given, "attempts": 1, "raises": False, "hangs": False}
    with Program(FORK_IN_HANDLER, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.orders.insert_many([{"_id": "fork"}, *({"_id": number} for number in range(20))])
        program.wait_for(lambda: len(program.said("handled")) == 21)
        assert program.said("ended") == [0]
        (child,) = program.said("returns")
        assert handled_by(program, program.pid) == ["fork", *range(20)]
        assert [number for number in program.said("handled") if isinstance(number, int)] == list(range(20))
        assert str(child) in program.said("refused")[0]
        program.signal(15)
        assert program.end() == 0, program.complaints
        assert program.said("over")[-1] == program.pid
    assert_only_last_is_left(make, database)


@BOTH
def test_a_handler_that_waited_beside_the_forking_one_does_not_go_on_in_the_child(
    database: Any, given: Any, tmp_path: Path, patched: bool
) -> None:
    with Program(FORK_BESIDE_A_HANDLER, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.waits.insert_one({})
        database.forks.insert_one({})
        assert program.wait_said("ended") == 0
        program.wait_for(lambda: program.pid in program.said("went_on"))
        assert program.said("went_on") == [program.pid]


@BOTH
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_what_a_forking_handlers_child_does_neither_acknowledges_nor_buries(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool, raises: bool
) -> None:
    given = {**given, "attempts": 1, "raises": raises, "hangs": True}
    with Program(FORK_IN_HANDLER, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.orders.insert_one({"_id": "fork"})
        assert program.wait_said("ended") == 0
        program.wait_said("returns")
        program.kill()
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    wait_until(lambda: seen)
    assert seen == ["fork"] and watcher.store.letters("default") == []


@BOTH
def test_after_a_handler_that_forked_its_child_calls_no_other_handler(
    database: Any, given: Any, tmp_path: Path, patched: bool
) -> None:
    with Program(FORK_BEFORE_THE_NEXT_HANDLER, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        database.orders.insert_one({})
        assert program.wait_said("ended") == 0
        program.wait_for(lambda: program.said("caller").count(program.pid) == 2)
        assert program.said("called") == ["ships", "bills"]


def kill_cursors(database: Any) -> None:
    """Have the streams of the orders break off."""
    match = {"cursor.originatingCommand.$db": database.name}
    for each in database.client.admin.aggregate([{"$currentOp": {"idleCursors": True}}, {"$match": match}]):
        database.command({"killCursors": "orders", "cursors": [each["cursor"]["cursorId"]]})


@BOTH
@pytest.mark.parametrize("opening", [1, 2], ids=["start", "reconnection"])
def test_when_a_hook_forks_as_a_stream_is_opened_the_child_sends_nothing_and_the_parent_misses_nothing(
    database: Any, given: Any, tmp_path: Path, patched: bool, opening: int
) -> None:
    with Program(FORK_IN_OPENED, tmp_path, patched=patched, opening=opening, **given) as program:
        if opening == 2:
            program.wait_for(lambda: "getMore" in program.said("sent"))
            program.wait_for(lambda: kill_cursors(database) or program.said("forked"))
        child = program.wait_said("forked")
        database.orders.insert_many([{"_id": number} for number in range(20)])
        assert program.wait_said("ended") == 0
        database.orders.insert_one({"_id": 20})
        program.wait_for(lambda: 20 in program.said("handled"))
        assert handled_by(program, program.pid) == list(range(21)) == program.said("handled")
        assert child not in program.said("sender")


@BOTH
def test_when_a_hook_forks_for_the_status_the_child_saves_nothing(
    database: Any, given: Any, make: Make, tmp_path: Path, patched: bool
) -> None:
    with Program(FORK_IN_STATUS, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        program.wait_for(lambda: database.orders.insert_one({}) and program.said("forked"))
        database.orders.insert_one({"_id": "behind"})
        program.wait_for(lambda: "behind" in program.said("handled"))
        (tmp_path / "stop").touch()
        assert program.end() == 0, program.complaints
        assert program.said("stopped") == [True] and program.said("ended") == [0]
    assert make().store.status("default")["pid"] == program.pid
    assert_only_last_is_left(make, database)


@BOTH
def test_a_listener_that_was_open_at_the_fork_is_closed_in_the_child_and_goes_on_in_the_parent(
    database: Any, given: Any, tmp_path: Path, patched: bool
) -> None:
    with Program(FORK_BESIDE_A_LISTENER, tmp_path, patched=patched, **given) as program:
        assert program.end() == 0, program.complaints
        assert program.said("ended") == [0]
        assert program.said("got") == [0] and program.said("state") == ["closed"]
        assert handled_by(program, program.pid) == [1, 2, 3, 4, 5]
        assert {*program.said("told"), *program.said("sender")} == {program.pid}
        assert program.said("sent").count("aggregate") == 1


@BOTH
def test_a_child_does_not_wait_for_the_thread_that_kept_a_listeners_token_in_the_parent(
    given: Any, tmp_path: Path, patched: bool
) -> None:
    with Program(FORK_WHILE_A_TOKEN_IS_KEPT, tmp_path, patched=patched, **given) as program:
        assert program.end() == 0, program.complaints
        assert program.said("ended") == [0] and program.said("token")


@BOTH
def test_a_listener_that_was_not_open_yet_at_the_fork_serves_in_the_child(
    database: Any, given: Any, tmp_path: Path, patched: bool
) -> None:
    with Program(LISTEN_IN_THE_CHILD, tmp_path, patched=patched, **given) as program:
        assert program.wait_said("ended") == 0, program.complaints
        assert program.said("got") == [1]


@BOTH
def test_a_watcher_to_which_the_program_does_not_refer_is_inert_in_a_child_too(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name}
    with Program(FORK_OF_WHAT_NOBODY_KEEPS, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        (tmp_path / "fork").touch()
        program.wait_said("forked")
        database.orders.insert_many([{"_id": number} for number in range(20)])
        program.wait_for(lambda: len(program.said("handled")) == 20)
        (tmp_path / "end").touch()
        assert program.end() == 0, program.complaints
        assert program.said("ended") == [0]
        assert program.said("by") == [program.pid] * 20 and program.said("handled") == list(range(20))
        (status,) = program.said("status")
        assert (status["pid"], status["state"]) == (program.pid, "running")
        assert "fails" not in program.complaints


def test_a_watcher_that_ran_before_a_fork_and_starts_in_the_child_is_stopped_at_its_end(
    given: Any, tmp_path: Path
) -> None:
    with Program(START_AGAIN_IN_CHILD, tmp_path, **given) as program:
        assert program.end() == 0, program.complaints
        assert program.said("started") == ["running"]
        assert (program.said("ended"), program.said("row")) == ([0], ["stopped"])


def test_a_memory_store_that_another_thread_uses_during_a_fork_works_in_the_child(tmp_path: Path) -> None:
    with Program(FORK_OF_A_BUSY_MEMORY_STORE, tmp_path) as program:
        assert program.end() == 0, program.complaints
        assert program.said("ended") == [0]
