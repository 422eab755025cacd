"""Where the demo says what happens."""

from __future__ import annotations

import sys
from time import monotonic


class Screen:
    """Write sentences, and a line of progress that is redrawn on a terminal."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._due = 0.0

    def say(self, sentence: str) -> None:
        """Write a line."""
        print(("\r\x1b[K" if self._is_terminal else "") + sentence, flush=True)

    def progress(self, written: int, handled: int) -> None:
        """Show the counts, ten times a second on a terminal, else once a second."""
        if monotonic() < self._due or not written:
            return
        self._due = monotonic() + (0.1 if self._is_terminal else 1.0)
        line = f"    written {written}, handled {handled}"
        print("\r\x1b[K" + line if self._is_terminal else line, end="" if self._is_terminal else "\n", flush=True)
