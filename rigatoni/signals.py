"""SIGINT and SIGTERM as a flag: setting one is all that is safe in a signal handler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
