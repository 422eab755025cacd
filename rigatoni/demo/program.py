"""The watching program, which is killed and started again, and what it notes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import rigatoni
from rigatoni import SQLiteStore

#: The program that is killed. For each event it notes the event's id, the operation, the document and its version.
PROGRAM = """\
import os
from rigatoni import Watcher

watcher = Watcher(os.environ["DEMO_URI"], "demo", store="positions.db")
notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@watcher.on("insert", "update", "delete", collection="orders")
def note(event):
    changed = event.full_document or (event.update_description and event.update_description.updated_fields) or {}
    line = f"{event.id} {event.operation} {event.document_key['_id']} {changed.get('version')}"
    os.write(notes, line.encode() + b"\\n")
"""

#: Seconds that the program may take to stop.
STOPPING = 30.0

#: What one change is known by on both sides: operation, document, version.
Change = tuple[str, str, str]


class ProgramFailed(Exception):
    """Raised when the watching program ends, or does not start, though nobody killed it."""


class Program:
    """The watching program in a folder of its own.

    :ivar pid: of the process that runs, or ran last.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder = folder
        # Where this very package is, installed or not.
        paths = [str(Path(rigatoni.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        self._environment = {**os.environ, "DEMO_URI": uri, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        (folder / "program.py").write_text(PROGRAM, "utf-8")

    def start(self) -> None:
        """Start a process; a Ctrl-C in the terminal does not reach it."""
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rigatoni", "run", "program:watcher"],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def is_running(self) -> bool:
        """Tell whether the watcher of this very process sees changes, as its status row says."""
        path = self._folder / "positions.db"
        if not path.exists():
            return False
        store = SQLiteStore(path)
        store.open()
        try:
            status = store.status("default") or {}
            return (status.get("pid"), status.get("state")) == (self.pid, "running")
        finally:
            store.close()

    def check(self) -> None:
        """Do nothing while it runs.

        :raises ProgramFailed: it has ended.
        """
        if self._process is not None and self._process.poll() is not None:
            log = (self._folder / "log").read_text("utf-8", "replace")
            raise ProgramFailed(f"the program ended with exit code {self._process.returncode}:\n{log[-2000:]}")

    def kill(self) -> None:
        """End it at once (SIGKILL), if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it in order (SIGTERM).

        :raises ProgramFailed: it does not end, or not with exit code 0.
        """
        assert self._process is not None
        self._process.terminate()
        try:
            if self._process.wait(STOPPING):
                self.check()
        except subprocess.TimeoutExpired:
            raise ProgramFailed(f"the program does not stop within {STOPPING:.0f} s after SIGTERM") from None


class Notes:
    """What the program noted, read as it grows.

    :ivar changes: what was handled.
    :ivar repeated: how many notes are about an event that was noted before.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._events: set[str] = set()
        self.changes: set[Change] = set()
        self.repeated = 0

    def update(self) -> None:
        """Read what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in new.decode().splitlines():
            event, operation, document, version = line.split(" ")
            self.repeated += event in self._events
            self._events.add(event)
            self.changes.add((operation, document, version))
