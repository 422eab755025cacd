"""How a program is told to end: SIGINT and SIGTERM set a flag, which is all that is safe there, and its own exit."""

from __future__ import annotations

import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

#: Seconds that handlers get when a program ends without ``stop()``.
EXITING = 1.0


_NAME = "rigatoni exit"

_stopped_at_exit: weakref.WeakSet[Any] = weakref.WeakSet()
_stopper: threading.Thread | None = None


class Mortal(Protocol):
    """What ends with the program: a watcher."""

    def exiting(self) -> None:
        """End: called once nothing else of the program goes on."""


def stop_at_exit(thing: Mortal) -> None:
    """Have `thing.exiting()` called when the program ends; nothing is kept alive by it.

    A native thread that still runs a hub while the interpreter is taken down can end the program by SIGSEGV. It is done
    by a thread that the interpreter waits for, because when ``atexit`` is called no thread can be started any more.
    """
    global _stopper
    _stopped_at_exit.add(thing)
    # In a forked child it is not alive.
    if _stopper is None or not _stopper.is_alive():
        _stopper = threading.Thread(target=_stop_all, name=_NAME)
        _stopper.start()


def _stop_all() -> None:
    main = threading.main_thread()
    main.join()
    # A program has not ended as long as one of its threads goes on, daemons apart. Of those like this one there are two
    # when two watchers were first started in the same moment: they must not wait for each other.
    while others := [each for each in threading.enumerate() if not each.daemon and each.name != _NAME and each != main]:
        others[0].join()
    for thing in list(_stopped_at_exit):
        thing.exiting()


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
            # None is a handler that was not set by Python, which cannot restore it.
            signal.signal(number, signal.SIG_DFL if former is None else former)
