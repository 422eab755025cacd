"""A program is killed half-way through thousands of changes and started again: what was lost is counted.

Everything is real: the server, the writer, the program (:data:`.program.PROGRAM`, run by ``rigatoni run``), the
SIGKILL. What was written is known from the server's acknowledgements, what was handled from a file that the program
appends to.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from types import FrameType
from typing import Any

from pymongo import MongoClient

from rigatoni.mongod import ReplicaSet

from .program import Change, Notes, Program, ProgramFailed
from .screen import Screen
from .writer import Writer

__all__ = ["Interrupted", "ProgramFailed", "Tally", "show"]

#: Seconds without a newly handled event after which it is no use to wait longer.
PATIENCE = 15.0
#: Seconds that the program may take to start.
STARTING = 30.0


class Interrupted(Exception):
    """Raised when a signal ends the demo early."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Sum up a demo.

    :param written: changes that the server has acknowledged.
    :param handled: those of them that were handled.
    :param lost: those that were not.
    :param repeated: how often an event was handled again.
    """

    written: int
    handled: int
    lost: int
    repeated: int

    def __str__(self) -> str:
        counts = f"written {self.written}, handled {self.handled}, lost {self.lost}"
        return f"{counts}, repeated after the crash {self.repeated}"


def show(operations: int = 6000) -> Tally:
    """Run the demo, say what happens, and leave nothing behind.

    :param operations: how many changes are written.
    :raises Interrupted: after SIGINT, SIGTERM or SIGHUP.
    :raises ConfigurationError: no ``mongod`` can be had.
    :raises ProgramFailed: the program does not run.
    """
    screen = Screen()
    with _signals() as check, ExitStack() as stack:
        servers = stack.enter_context(ReplicaSet())
        # Acknowledged by the only member at once, not at its next journal flush: three times the pace.
        client: MongoClient[dict[str, Any]] = stack.enter_context(MongoClient(servers.uri, w=1))
        screen.say(f"A throw-away mongod {client.server_info()['version']} runs, as a replica set of one.")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="rigatoni-demo-")))
        program, writer = Program(folder, servers.uri), Writer(client.demo.orders, operations)
        stack.callback(program.kill)
        stack.callback(writer.stop)
        tally = Demo(program, writer, Notes(folder / "notes"), screen, check).play()
    screen.say(str(tally))
    return tally


class Demo:
    """The order of events.

    :param check: raises when the demo is to end early.
    """

    def __init__(
        self, program: Program, writer: Writer, notes: Notes, screen: Screen, check: Callable[[], None]
    ) -> None:
        self._program = program
        self._writer = writer
        self._notes = notes
        self._screen = screen
        self._check = check

    def play(self) -> Tally:
        """Start, write, kill, start again, wait, stop, count."""
        program, writer, say = self._program, self._writer, self._screen.say
        self._start()
        say(f"A program watches it (process {program.pid}) and notes every event in a file.")
        say(f"A writer makes {writer.operations} changes: inserts, updates, deletes.")
        writer.start()
        self._wait(lambda: len(self._notes.changes) >= writer.operations // 2, PATIENCE)
        program.kill()
        self._notes.update()
        goes_on = " The writer goes on." if writer.is_alive() else ""
        say(f"kill -9 {program.pid}: it is gone, having handled {len(self._notes.changes)} changes.{goes_on}")
        self._start()
        say(f"The program was started again (process {program.pid}); where it was, it found in SQLite.")
        if not self._wait(lambda: not writer.is_alive() and not self._missing(), PATIENCE) and writer.is_alive():
            raise ProgramFailed(f"for {PATIENCE:.0f} s nothing was handled, nor all written: the server stalls")
        program.stop()
        writer.check()
        self._notes.update()
        return self._tally()

    def _start(self) -> None:
        self._program.start()
        if not self._wait(self._program.is_running, STARTING):
            raise ProgramFailed(f"the program does not watch within {STARTING:.0f} s")

    def _wait(self, condition: Callable[[], bool], patience: float) -> bool:
        """Wait until the condition holds (True), or nothing has been handled for so many seconds."""
        before, deadline = -1, monotonic() + patience
        while not condition():
            self._check()
            self._program.check()
            self._writer.check()
            self._notes.update()
            handled = len(self._notes.changes)
            if handled != before:
                before, deadline = handled, monotonic() + patience
            if monotonic() > deadline:
                return False
            self._screen.progress(len(self._writer.written), handled)
            sleep(0.02)
        return True

    def _missing(self) -> set[Change]:
        return set(self._writer.written) - self._notes.changes

    def _tally(self) -> Tally:
        written, lost = len(self._writer.written), len(self._missing())
        return Tally(written, written - lost, lost, self._notes.repeated)


@contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Give a function that raises once a signal has come; between its calls nothing is interrupted half-done."""
    came = False

    def told(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    def check() -> None:
        if came:
            raise Interrupted

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, told) for number in numbers}
    try:
        yield check
    finally:
        for number, former in before.items():
            signal.signal(number, former)
