"""Small programs that tests write down and start as processes of their own, patched by gevent or not.

A program reads what it is given from the dictionary ``given`` and says what happens with ``say(**facts)``, one JSON
line each; ``wait_for_child(pid)`` waits for a child that it forked and returns its status. ``Program`` collects the
lines, waits for them and leaves no process behind.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

#: For tests whose programs run patched and unpatched.
BOTH = pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])

PATCH = "from gevent import monkey; monkey.patch_all()\n"

PREFACE = """\
import json, os, signal, sys, time

given = json.loads(sys.argv[1])


def say(**facts):
    os.write(1, (json.dumps(facts, default=str) + "\\n").encode())


def wait_for_child(pid):
    # Neither of the two alone: where gevent's waits for an end that it missed, the system's knows of it, and where
    # gevent has taken note of the end, the system's knows of no such child any more.
    from gevent import monkey

    while True:
        try:
            found, status = monkey.get_original("os", "waitpid")(pid, os.WNOHANG)
        except ChildProcessError:
            found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.01)


"""


class Program:
    """A running program; ``with`` kills it at the end, whatever happened.

    :param text: Python; ``given`` and ``say`` are there, and so are json, os, signal, sys and time.
    :param folder: where the text and what it prints are kept; any number of programs may share it.
    :param patched: call ``monkey.patch_all()`` before anything else.
    :param given: what the program finds in ``given``; anything that JSON carries.
    """

    def __init__(self, text: str, folder: Path, *, patched: bool = False, **given: Any) -> None:
        number = len(list(folder.glob("program*.py")))
        path = folder / f"program{number}.py"
        path.write_text((PATCH if patched else "") + PREFACE + text)
        self._said, self._complained = path.with_suffix(".out"), path.with_suffix(".err")
        with self._said.open("wb") as said, self._complained.open("wb") as complained:
            self.process = subprocess.Popen(
                [sys.executable, str(path), json.dumps(given)], stdout=said, stderr=complained, cwd=folder
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every complete line so far."""
        text = self._said.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    @property
    def complaints(self) -> str:
        """What it wrote to stderr so far: its log, and the traceback of its end."""
        return self._complained.read_text()

    def said(self, key: str) -> list[Any]:
        """Return the values of one key, in the order in which they were said."""
        return [line[key] for line in self.lines if key in line]

    def wait_for(self, condition: Callable[[], object], timeout: float = 60.0) -> None:
        """Wait for a condition; fail with what the program complained about when it ended before."""

        def settled() -> object:
            return condition() or self.process.poll() is not None

        try:
            wait_until(settled, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; the program's log:\n{self.complaints}") from None
        assert self.process.poll() is None or condition(), (
            f"the program ended with {self.process.returncode}:\n{self.complaints}"
        )

    def wait_said(self, key: str, timeout: float = 60.0) -> Any:
        """Wait until a key was said, and return its first value."""
        self.wait_for(lambda: self.said(key), timeout)
        return self.said(key)[0]

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def end(self, timeout: float = 60.0) -> int:
        """Wait for its end and return the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s; its log:\n{self.complaints}") from None

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


def run_program(text: str, folder: Path, *, patched: bool = False, timeout: float = 60.0, **given: Any) -> Program:
    """Run a program to its end, which must be a good one."""
    with Program(text, folder, patched=patched, **given) as program:
        code = program.end(timeout)
    assert code == 0, f"exit code {code}:\n{program.complaints}"
    return program
