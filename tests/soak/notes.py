"""The file in which every process notes what its handlers saw."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from .oracle import Change, Note


def opened(path: str) -> int:
    """Open the file for notes, each of which comes at its end whoever else writes."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def note(file: int, seen: Iterable[tuple[Change, str]]) -> None:
    """Note changes, each with the id of its event."""
    # A kill may cut a long write off: a note begins on a line of its own and ends with a full stop.
    lines = (f"\n{document} {number} {event} {os.getpid()} {monotonic()} .\n" for (document, number), event in seen)
    os.write(file, "".join(lines).encode())


class Notes:
    """The notes of all processes, read as they grow."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self._read = 0
        self._notes: list[Note] = []

    def all(self) -> list[Note]:
        """Return every whole note, in their order."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in new.decode().splitlines():
            fields = line.split(" ")
            if len(fields) == 6 and fields[5] == ".":
                document, number, event, pid, when = fields[:5]
                self._notes.append(Note((document, int(number)), event, int(pid), float(when)))
        return self._notes
