"""The processes that watch: started, killed, terminated; how each ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from rigatoni import SQLiteStore

from .oracle import CLEAN, KILLED, UNFINISHED
from .watching import NAME, STREAMS

T = TypeVar("T")
#: Seconds after which something that was waited for is a fault of its own; only the end of patience.
PATIENCE = 120.0


class Broken(Exception):
    """A promise that is not one about events was broken: something hangs, or ended by itself."""


def wait_until(condition: Callable[[], T], what: str, pause: float = 0.02) -> T:
    """Return the first true result.

    :param pause: seconds between two looks.
    :raises Broken: when there is none in time.
    """
    deadline = monotonic() + PATIENCE
    while not (result := condition()):
        if monotonic() > deadline:
            raise Broken(f"waited {PATIENCE:.0f} s in vain until {what}")
        sleep(pause)
    return result


class Watching:
    """One place for a process that watches, and those that took it one after the other.

    :param folder: where the store, the notes and the logs are.
    """

    def __init__(self, slot: int, folder: Path, uri: str, database: str) -> None:
        self.ends: dict[int, str] = {}
        self._slot, self._folder = slot, folder
        self._store = str(folder / "positions.db")
        self._given = {"uri": uri, "database": database, "store": self._store, "notes": str(folder / "notes")}
        self._process: subprocess.Popen[bytes] | None = None
        self._log = folder

    def start(self, *, patched: bool) -> None:
        """Start a process; return when it listens to signals."""
        how = ["gevent.monkey", "--module"] if patched else []
        self._log = self._folder / f"watcher-{self._slot}-{len(self.ends)}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *how, "soak.watching", json.dumps(self._given)],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[1],
            )
        wait_until(lambda: self._has_ended() or "watches database" in self._text(), f"{self._log.name} begins")

    def wait_for_positions(self) -> None:
        """Wait until the first positions are saved: what is written from now on will be seen."""
        store = SQLiteStore(self._store)

        def saved() -> bool:
            return self._has_ended() or len(store.load(NAME)) == STREAMS

        store.open()
        try:
            wait_until(saved, "the first positions are saved")
        finally:
            store.close()

    def kill(self) -> None:
        """SIGKILL."""
        process = self._running()
        process.kill()
        process.wait()
        self.ends[process.pid] = KILLED

    def terminate(self) -> None:
        """SIGTERM, after which it must end in order.

        :raises Broken: when it does not.
        """
        process = self._running()
        process.send_signal(signal.SIGTERM)
        self.ends[process.pid] = KILLED
        wait_until(self._has_ended, f"{self._log.name} ends after SIGTERM")
        if process.returncode:
            raise Broken(f"{self._log.name}: exit code {process.returncode} after SIGTERM: {self._last_words()}")
        self.ends[process.pid] = UNFINISHED if "leaves handlers running" in self._text() else CLEAN

    def check(self) -> None:
        """Look whether the process ended without being told.

        :raises Broken: it did.
        """
        process = self._process
        if process is not None and process.poll() is not None and process.pid not in self.ends:
            self.ends[process.pid] = KILLED
            raise Broken(f"{self._log.name}: ended by itself with {process.returncode}: {self._last_words()}")

    def close(self) -> None:
        """Leave no process behind."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
        elif self._process is not None:
            self.ends.setdefault(self._process.pid, KILLED)

    def _running(self) -> subprocess.Popen[bytes]:
        self.check()
        assert self._process is not None
        return self._process

    def _has_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _text(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def _last_words(self) -> str:
        return next(reversed(self._text().splitlines()), "")
