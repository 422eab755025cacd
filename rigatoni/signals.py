"""How a program is told to end: SIGINT and SIGTERM set a flag, which is all that is safe there, and its own exit."""

from __future__ import annotations

import atexit
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

#: Seconds that handlers get when a program ends without ``stop()``.
EXITING = 1.0


class Stoppable(Protocol):
    """What a program that ends stops: a watcher."""

    def stop(self, timeout: float) -> bool:
        """End within so many seconds."""


def stop_at_exit(thing: Stoppable) -> None:
    """Stop something when the program ends; nothing is kept alive by it.

    A native thread that still runs a hub while the interpreter is taken down can end the program by SIGSEGV.
    """
    atexit.register(_stop, weakref.ref(thing))


def _stop(reference: weakref.ref[Stoppable]) -> None:
    thing = reference()
    if thing is not None:
        thing.stop(EXITING)


@contextmanager
def told_by_signals(tell: Callable[[], None]) -> Iterator[None]:
    """Call `tell` at SIGINT and SIGTERM, and restore the former handlers at the end; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda *_: tell()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
