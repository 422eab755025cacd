"""``rigatoni run``: patch, import, run."""

from __future__ import annotations

import importlib
import io
import logging
import operator
import os
import sys
import traceback
from types import ModuleType
from typing import TYPE_CHECKING

import click

from .exits import fatal_errors_end_it
from .progress import progress

if TYPE_CHECKING:
    from rigatoni import Watcher


@click.command(
    epilog="""\b
Examples:
  rigatoni run shop.handlers:watcher
  python -m rigatoni run shop.app:services.watcher
"""
)
@click.argument("target", metavar="MODULE:WATCHER")
def run(target: str) -> None:
    """Run a watcher of a Python module until SIGINT or SIGTERM.

    The process is patched by gevent before the module is imported, so that its handlers may block. The current folder
    can be imported from. Unless the module configures logging, INFO and above go to the standard error stream. What
    handlers print is written line by line, into files and pipes too.

    A first signal stops cleanly (exit code 0): running handlers return, the position is saved. A second does not wait
    for them. A fatal error ends it with one line, "rigatoni: CATEGORY: message", and the category's exit code.

    On a terminal a line shows how it catches up with what changed while it was away: how far it is, how many events a
    second it takes, how long that will last.
    """
    from gevent import monkey

    monkey.patch_all()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Else it would stand in a buffer for hours, and be lost with a kill.
        sys.stdout.reconfigure(line_buffering=True)
    with fatal_errors_end_it():
        watcher = watcher_of(target)
        # What the program has configured is left alone.
        if not logging.getLogger("rigatoni").hasHandlers():
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        with progress(watcher):
            watcher.run()


def watcher_of(target: str) -> Watcher:
    """Import the watcher that MODULE:WATCHER names.

    :raises click.UsageError: when there is none, naming the mend.
    """
    from rigatoni import Watcher

    module_name, _, path = target.partition(":")
    if "://" in target:
        raise click.UsageError("MODULE:WATCHER is no URI: `rigatoni watch URI` shows the events of a server")
    if not path:
        raise click.UsageError(f"{target!r} names no watcher: write MODULE:WATCHER, such as shop.handlers:watcher")
    for name in (module_name, path):
        if not all(part.isidentifier() for part in name.split(".")):
            raise click.UsageError(f"{name!r} is no Python name: write MODULE:WATCHER, such as shop.handlers:watcher")
    module = _module(module_name)
    try:
        found = operator.attrgetter(path)(module)
    except AttributeError:
        raise click.UsageError(f"module {module_name!r} has no {path!r}: {_watchers_of(module)}") from None
    if not isinstance(found, Watcher):
        raise click.UsageError(f"{target} is no Watcher but a {type(found).__name__}: {_watchers_of(module)}")
    if found.state != "created":
        raise click.UsageError(
            f"{module_name!r} starts its watcher itself when it is imported: "
            'leave that to `rigatoni run`, or put it under `if __name__ == "__main__":`'
        )
    return found


def _module(name: str) -> ModuleType:
    from rigatoni import StreamError

    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Another missing module is the program's own mistake, which its traceback shows best.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise click.UsageError(f"there is no module {error.name!r}, neither in {os.getcwd()} nor installed") from None
    except StreamError:
        # Which line of the program it was, before the one line that says what.
        traceback.print_exc()
        raise


def _watchers_of(module: ModuleType) -> str:
    from rigatoni import Watcher

    names = [name for name, value in vars(module).items() if isinstance(value, Watcher)]
    return f"its watchers are {', '.join(names)}" if names else "it has no watcher"
