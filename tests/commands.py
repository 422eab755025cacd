"""Commands of the command line, started by tests as processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conftest import wait_until

import rigatoni

COMMAND = (sys.executable, "-m", "rigatoni")
ENTRY_POINT = (sys.executable, "-c", "import sys; from rigatoni.cli import main; sys.exit(main())")
# Without what makes Python write at once, as programs run for others.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("RIGATONI_", "PYTHON"))},
    "PYTHONPATH": str(Path(rigatoni.__file__).parent.parent),
}


def rigatoni_ends(
    *arguments: str, cwd: Path | None = None, command: tuple[str, ...] = COMMAND, **environment: str
) -> Any:
    return subprocess.run(
        [*command, *arguments],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=90,
        stdin=subprocess.DEVNULL,
    )


class Running:
    """A command that runs; what it says is kept in files, so that no pipe ever fills by accident."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for_error_line(self, text: str) -> None:
        self.wait_for(lambda: text in self.err)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait for a condition; fail with what the command said when that does not come, or the command ends before."""

        def stands_or_ended() -> bool:
            ended = self.process.poll()
            if condition():
                return True
            assert ended is None, f"it ended with {ended}"
            return False

        try:
            wait_until(stands_or_ended)
        except AssertionError as error:
            raise AssertionError(f"{error}; it says:\n{self.out}\n{self.err}") from None

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def interrupt(self) -> int:
        """Press Ctrl-C, and once more should it go on.

        A signal that comes at the very moment at which Python's main thread falls asleep wakes it no more.
        """
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=20)
        return self.end(signal.SIGINT)


@contextmanager
def running(
    folder: Path, *arguments: str, command: tuple[str, ...] = COMMAND, stdout: int | None = None, **environment: str
) -> Iterator[Running]:
    out, err = folder / "out", folder / "err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=ENVIRONMENT | environment,
            stdin=subprocess.DEVNULL,
            stdout=out_file if stdout is None else stdout,
            stderr=err_file,
        )
    try:
        yield Running(process, out, err)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
