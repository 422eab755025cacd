"""Somebody who does what the manual says: saves its programs in a folder, and runs them there on a real server."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from commands import COMMAND, ENVIRONMENT, Running, running

PYTHON = (sys.executable, "-u")


class Reader:
    """A reader in a folder of its own.

    :ivar folder: where programs and stores are.
    :ivar uri: what ``RIGATONI_URI`` is set to.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self._environment = {"RIGATONI_URI": uri}

    def save(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def starts(self, *arguments: str) -> AbstractContextManager[Running]:
        """Start ``python program …`` or ``rigatoni command …``, to be stopped at the end of the block."""
        command, *rest = arguments
        return running(self.folder, *rest, command=PYTHON if command == "python" else COMMAND, **self._environment)

    def runs(self, *arguments: str) -> str:
        """Run the same to its end, which must be a good one, and return what it wrote."""
        command, *rest = arguments
        ended: Any = subprocess.run(
            [*(PYTHON if command == "python" else COMMAND), *rest],
            cwd=self.folder,
            env=ENVIRONMENT | self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, f"{arguments}: {ended.stdout}{ended.stderr}"
        return str(ended.stdout)
