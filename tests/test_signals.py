"""Signals that end a program: they come at any moment, and a program may handle them itself."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from programs import BOTH, Program, run_program

from rigatoni.signals import told_by_signals

WATCHER = """\
import gevent
from rigatoni import MemoryStore, Watcher

watcher = Watcher(given["uri"], given["database"], store=MemoryStore())
watcher.on()(say)
"""

OWN_HANDLER = (
    WATCHER
    + """
watcher.start()
signal.signal(signal.SIGTERM, lambda *_: say(stopped=watcher.stop()))
# When the main greenlet waits, so that the handler is called in the hub.
gevent.spawn(say, ready=True)
say(joined=watcher.join(), state=watcher.state)
"""
)

#: Where a signal handler may be called too: it must not wait there, because it holds what the driver has locked.
IN_THE_DRIVER = (
    WATCHER
    + """
import threading

told = []
for _ in range(2):
    watcher.start()
    if told:
        threading.Thread(target=lambda: told.append(watcher.stop()), name="pymongo_server_monitor_thread").start()
    else:
        watcher._life._calls.start(lambda: told.append(watcher.stop()))
    watcher.join()
say(told=told, state=watcher.state)
"""
)

#: Once the main thread waits, another thread gets the signal: the main one is not woken by it, as it is not by one that
#: comes just as it falls asleep.
ASLEEP = (
    WATCHER
    + """

def fall_asleep():
    gevent.spawn(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGTERM})
    gevent.spawn_later(0.1, say, ready=True)


%s
say(state=watcher.state)
"""
)
RUN = "fall_asleep(); watcher.run()"
JOIN = "watcher.start(); signal.signal(signal.SIGTERM, lambda *_: watcher.stop()); fall_asleep(); watcher.join(%s)"

AT_EACH_LINE = (
    WATCHER
    + """
BEGINNING = {("watcher.py", "start"), ("watcher.py", "_prepare"), ("hub.py", "live")}


def send(frame, event, argument):
    global last, left
    code = frame.f_code
    place = os.path.basename(code.co_filename), code.co_name
    if place in BEGINNING and event == "line":
        left -= 1
    if left == 0 or (left > 0 and place == ("life.py", "wait")):
        say(sent_in=place[1])
        left, last = -1, place
        os.kill(os.getpid(), signal.SIGTERM)
    return send


last, number = None, 0
while last != ("life.py", "wait"):
    number += 1
    left = number
    sys.settrace(send)
    watcher.run()
    sys.settrace(None)
"""
)


@pytest.fixture
def given(database: Any, mongodb_replica_set: Any) -> dict[str, str]:
    return {"uri": mongodb_replica_set.uri, "database": database.name}


def test_a_stop_amidst_the_drivers_work_does_not_wait(given: Any, tmp_path: Path) -> None:
    (line,) = run_program(IN_THE_DRIVER, tmp_path, patched=True, **given).lines
    assert line == {"told": [False, False], "state": "stopped"}


@BOTH
def test_a_signal_handler_of_the_programs_own_may_stop_the_watcher_that_it_waits_for(
    given: Any, tmp_path: Path, patched: bool
) -> None:
    with Program(OWN_HANDLER, tmp_path, patched=patched, **given) as program:
        program.wait_said("ready")
        program.signal(signal.SIGTERM)
        assert program.end(20) == 0, program.complaints
        assert {"joined": True, "state": "stopped"} in program.lines
        # False at once in a hub, which may not wait; True where another greenlet was at its turn.
        assert program.said("stopped") in ([False], [True])


@pytest.mark.parametrize("waits", [RUN, JOIN % "", JOIN % 600], ids=["run", "join", "join for some time"])
def test_a_signal_that_comes_as_the_main_thread_falls_asleep_is_not_overslept(
    given: Any, tmp_path: Path, waits: str
) -> None:
    with Program(ASLEEP % waits, tmp_path, **given) as program:
        program.wait_said("ready")
        # In its process all other threads are the watcher's, and wait for a server that has no news.
        program.signal(signal.SIGTERM)
        assert program.end(20) == 0, program.complaints
        assert program.said("state") == ["stopped"]


@BOTH
def test_a_signal_ends_run_wherever_it_comes_in_its_beginning(given: Any, tmp_path: Path, patched: bool) -> None:
    program = run_program(AT_EACH_LINE, tmp_path, patched=patched, timeout=30, **given)

    places = program.said("sent_in")
    assert {*places} == {"start", "_prepare", "live", "wait"} and places.index("wait") == len(places) - 1


def test_a_handler_that_was_not_set_from_python_gives_way_to_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, real = (signal.SIGINT, signal.SIGTERM), signal.signal
    former = [signal.getsignal(number) for number in numbers]
    # What it returns where the former one is C's.
    monkeypatch.setattr(signal, "signal", lambda number, handler: real(number, handler) and None)
    try:
        with told_by_signals(print):
            assert signal.SIG_DFL not in map(signal.getsignal, numbers)
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
    finally:
        for number, handler in zip(numbers, former, strict=True):
            real(number, handler)
