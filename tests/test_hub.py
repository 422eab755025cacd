"""Flags across native threads and hubs, calls that can be given up, and the place of a watcher; patched and not."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import gevent
import pytest
from conftest import PYTHON, wait_until
from gevent._hub_local import get_hub_if_exists

from rigatoni import ChangeStreamListener, SQLiteStore, Watcher, hub
from rigatoni.hub import Calls, Flag, GivenUp, live, native_ident, wait_for_any

#: Seconds of patience; nothing here takes as long.
PATIENCE = 30.0


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Start a native thread; the list gets what the function returns."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    return thread, results


def awaited(flag: Flag, count: int) -> None:
    """Wait until so many wait for a flag."""
    wait_until(lambda: len(flag._waiters) == count, PATIENCE)


# -- flags


def test_a_flag_that_is_set_is_not_waited_for() -> None:
    flag = Flag()
    assert not flag.is_set()

    flag.set()

    assert flag.is_set() and flag.wait() and flag.wait(0)


def test_a_flag_that_is_never_set_is_waited_for_only_so_long() -> None:
    flag = Flag()

    assert flag.wait(0.001) is False and flag.wait(0) is False
    assert not flag._waiters


def test_a_flag_can_be_taken_back() -> None:
    flag = Flag()
    flag.set()
    flag.clear()

    assert not flag.is_set() and flag.wait(0.001) is False


def test_every_greenlet_that_waits_is_woken() -> None:
    flag = Flag()
    greenlets = [gevent.spawn(flag.wait, PATIENCE) for _ in range(5)]
    awaited(flag, 5)

    flag.set()
    gevent.joinall(greenlets, PATIENCE)

    assert [greenlet.value for greenlet in greenlets] == [True] * 5
    assert not flag._waiters


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_flag_is_set_by_another_native_thread(timeout: float | None) -> None:
    flag = Flag()
    waiting = gevent.spawn(flag.wait, timeout)
    awaited(flag, 1)

    thread, _ = in_thread(flag.set)
    waiting.join(PATIENCE)
    thread.join(PATIENCE)

    assert waiting.value is True


def test_one_flag_wakes_the_hubs_of_several_native_threads() -> None:
    flag = Flag()
    threads = [in_thread(lambda: flag.wait(PATIENCE)) for _ in range(3)]
    here = gevent.spawn(flag.wait, PATIENCE)
    awaited(flag, 4)

    flag.set()
    here.join(PATIENCE)
    for thread, _ in threads:
        thread.join(PATIENCE)

    assert here.value is True and [results for _, results in threads] == [[True]] * 3


def test_a_lone_wait_without_end_in_a_thread_does_not_end_its_hub() -> None:
    flag = Flag()
    thread, results = in_thread(flag.wait)
    awaited(flag, 1)

    flag.set()
    thread.join(PATIENCE)

    assert results == [True]


def test_a_native_thread_that_reads_starts_joins_stops_or_finds_its_store_locked_gets_no_hub(
    mongodb_replica_set: Any, database: Any, store_path: str
) -> None:
    # It would outlive the thread, with two file descriptors.
    watcher = Watcher(mongodb_replica_set.uri, database.name, store=SQLiteStore(store_path))
    watcher.on("insert")(lambda event: None)

    def read() -> None:
        with ChangeStreamListener(database.orders) as listener:
            threading.Timer(0.05, listener.close).start()
            assert list(listener) == []

    def save() -> None:
        with closing(sqlite3.connect(store_path, check_same_thread=False)) as other:
            other.execute("BEGIN EXCLUSIVE")
            freeing = threading.Timer(0.05, other.rollback)
            freeing.start()
            watcher.store.save("another", {}, {"state": "running"})
            freeing.join()

    for use in (read, watcher.start, lambda: watcher.join(0.01), save, watcher.stop):
        thread, results = in_thread(lambda use=use: (use(), get_hub_if_exists()))
        thread.join(PATIENCE)
        assert [found for _, found in results] == [None], use


def test_any_of_several_flags_is_enough() -> None:
    one, other = Flag(), Flag()
    waiting = gevent.spawn(wait_for_any, (one, other), PATIENCE)
    awaited(other, 1)

    other.set()
    waiting.join(PATIENCE)

    assert waiting.value is True
    assert not one._waiters and not other._waiters
    assert wait_for_any(iter([one]), 0.001) is False


def test_a_wait_that_is_killed_leaves_nothing_behind() -> None:
    flag = Flag()
    waiting = gevent.spawn(flag.wait)
    awaited(flag, 1)

    waiting.kill()

    assert not flag._waiters
    flag.set()


def test_no_wake_is_lost_between_threads() -> None:
    there, back, rounds = Flag(), Flag(), 300

    def echo() -> int:
        for _ in range(rounds):
            assert there.wait(PATIENCE)
            there.clear()
            back.set()
        return rounds

    thread, results = in_thread(echo)
    for _ in range(rounds):
        there.set()
        assert back.wait(PATIENCE)
        back.clear()
    thread.join(PATIENCE)

    assert results == [rounds]


def test_setting_while_others_begin_and_end_to_wait_harms_nobody() -> None:
    flag, over = Flag(), threading.Event()
    flag_setters = [in_thread(lambda: [flag.set() for _ in range(3000)]) for _ in range(3)]

    def wait_often() -> int:
        count = 0
        while not over.is_set():
            flag.clear()
            flag.wait(0)
            count += 1
        return count

    waiters = [in_thread(wait_often) for _ in range(2)]
    for thread, _ in flag_setters:
        thread.join(PATIENCE)
    over.set()
    for thread, _ in waiters:
        thread.join(PATIENCE)

    assert [len(results) for _, results in (*flag_setters, *waiters)] == [1] * 5


def test_who_waited_in_a_hub_that_is_gone_keeps_nobody_from_being_woken() -> None:
    flag, over = Flag(), threading.Event()

    def leave_somebody_waiting() -> None:
        gevent.spawn(flag.wait)
        gevent.sleep(0)

    live(leave_somebody_waiting, "rigatoni test", over.set)
    assert over.wait(PATIENCE)
    waiting = gevent.spawn(flag.wait, PATIENCE)
    awaited(flag, 2)

    flag.set()

    assert waiting.get(timeout=PATIENCE) is True


# -- calls


def test_this_process_is_not_patched() -> None:
    # Else what follows would try something else than it says.
    assert not hub.is_patched()


def test_a_call_gives_its_result_or_its_error() -> None:
    calls, stop = Calls(), Flag()

    assert calls.run(lambda: 7, stop) == 7
    with pytest.raises(LookupError, match="gone"):
        calls.run(lambda: {}["gone"], stop)
    with pytest.raises(SystemExit):
        calls.run(lambda: exec("raise SystemExit"), stop)


def test_a_call_that_blocks_holds_no_greenlet() -> None:
    gate, ticks = threading.Event(), []

    def tick() -> None:
        for number in range(3):
            ticks.append(number)
            gevent.sleep(0)
        gate.set()

    gevent.spawn(tick)

    assert Calls().run(lambda: gate.wait(PATIENCE) and native_ident(), Flag()) not in (False, native_ident())
    assert ticks == [0, 1, 2]


def test_a_call_is_given_up_by_a_stop_and_ends_by_itself() -> None:
    gate, stop, calls, ended = threading.Event(), Flag(), Calls(), Flag()

    def blocked() -> str:
        gate.wait(PATIENCE)
        ended.set()
        return "too late"

    waiting = gevent.spawn(calls.run, blocked, stop)
    gevent.sleep(0)
    stop.set()
    waiting.join(PATIENCE)

    assert isinstance(waiting.exception, GivenUp) and not ended.is_set()
    gate.set()
    assert ended.wait(PATIENCE)


def test_after_a_stop_no_call_is_made() -> None:
    made, stop = [], Flag()
    stop.set()

    with pytest.raises(GivenUp):
        Calls().run(lambda: made.append("call"), stop)

    assert made == []


def test_calls_that_were_given_up_take_nobodys_place() -> None:
    gate, calls, stop = threading.Event(), Calls(), Flag()
    abandoned = [calls.start(lambda: gate.wait(PATIENCE)) for _ in range(30)]

    assert calls.run(lambda: "free", stop) == "free"

    gate.set()
    assert all(call.done.wait(PATIENCE) and call.result() for call in abandoned)


# -- the place of a watcher


def test_unpatched_a_watcher_lives_in_a_daemon_thread_with_a_hub_of_its_own() -> None:
    found: list[Any] = []
    over = threading.Event()

    def run() -> None:
        gevent.sleep(0)
        thread = threading.current_thread()
        found.extend([thread.name, thread.daemon, gevent.get_hub(), native_ident()])

    live(run, "rigatoni test", over.set)
    assert over.wait(PATIENCE)

    assert found[:2] == ["rigatoni test", True]
    assert found[2] is not gevent.get_hub() and found[3] != native_ident()


def test_the_end_is_told_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    over, errors = threading.Event(), []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: errors.append(arguments.exc_value))

    def run() -> None:
        raise LookupError("broken")

    live(run, "rigatoni test", over.set)

    assert over.wait(PATIENCE)
    wait_until(lambda: errors, PATIENCE)
    assert [str(error) for error in errors] == ["broken"]


def run_program(program: str) -> str:
    found = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout


PATCHED = """
from gevent import monkey
monkey.patch_all()
import threading, gevent
from rigatoni.hub import Calls, Flag, GivenUp, is_patched, live, native_ident

start_native = monkey.get_original("_thread", "start_new_thread")
sleep_natively = monkey.get_original("time", "sleep")
assert is_patched()
"""


def test_patched_calls_and_watchers_are_greenlets_of_this_hub() -> None:
    program = """
here, over = native_ident(), Flag()
assert Calls().run(native_ident, Flag()) == here

places = []
live(lambda: places.append((native_ident(), gevent.get_hub() is hub)), "rigatoni test", over.set)
hub = gevent.get_hub()
assert over.wait(30) and places == [(here, True)]
print("fine")
"""
    assert run_program(PATCHED + program) == "fine\n"


def test_patched_a_call_is_given_up_and_never_killed() -> None:
    program = """
stop, gate, ended = Flag(), Flag(), []
def blocked():
    gate.wait(30)
    ended.append(True)
waiting = gevent.spawn(Calls().run, blocked, stop)
gevent.sleep(0)
stop.set()
try:
    waiting.get(timeout=30)
except GivenUp:
    assert not ended
    gate.set()
    gevent.sleep(0.01)
    assert ended
    print("fine")
"""
    assert run_program(PATCHED + program) == "fine\n"


def test_patched_a_call_that_somebody_kills_before_it_begins_is_over() -> None:
    program = """
made, calls = [], Calls()
call = calls.start(lambda: made.append(True))
for greenlet in tuple(calls._under_way):
    greenlet.kill()
assert call.done.wait(5) and not made
try:
    call.result()
except gevent.GreenletExit:
    print("fine")
"""
    assert run_program(PATCHED + program) == "fine\n"


def test_patched_a_flag_is_set_by_a_real_native_thread() -> None:
    program = """
flag, idents = Flag(), []
def set_it():
    while not flag._waiters:
        sleep_natively(0.001)
    idents.append(native_ident())
    flag.set()
start_native(set_it, ())
assert flag.wait(30) and idents != [native_ident()]

# What threading calls a thread is a greenlet here.
other = Flag()
threading.Thread(target=other.set).start()
assert other.wait(30)
print("fine")
"""
    assert run_program(PATCHED + program) == "fine\n"


def test_unpatched_a_wait_lets_signals_through() -> None:
    program = """
import os, signal, threading
from rigatoni.hub import Flag
flag = Flag()
signal.signal(signal.SIGALRM, lambda number, frame: flag.set())
signal.setitimer(signal.ITIMER_REAL, 0.05)
assert flag.wait(30)
print("fine")
"""
    assert run_program(program) == "fine\n"


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()"], ids=["unpatched", "patched"])
def test_what_lives_is_told_of_a_fork_in_the_child_only_and_is_not_kept_alive(patch: str) -> None:
    program = """
import gc, os
from rigatoni.forks import inert_after_fork
told = []
class Thing:
    def __init__(self, name):
        self.name = name
    def forked(self):
        told.append(self.name)
kept, dropped = Thing("kept"), Thing("dropped")
inert_after_fork(kept)
inert_after_fork(dropped)
del dropped
gc.collect()
# A pipe, because gevent's waitpid waits for ever for a child that ended before the hub ever ran.
there, here = os.pipe()
if os.fork() == 0:
    os.write(here, repr(told).encode())
    os._exit(0)
assert os.read(there, 100) == b"['kept']" and told == []
print("fine")
"""
    assert run_program(patch + program) == "fine\n"
