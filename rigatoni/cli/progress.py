"""One line on the terminal while a watcher catches up: how far it is, how fast, and how long it will take."""

from __future__ import annotations

import logging
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from .exits import say
from .moments import span

if TYPE_CHECKING:
    from rigatoni import Watcher

#: Seconds between two looks.
POLL = 0.2
#: Seconds for which nothing is shown: what takes no longer needs no line.
QUIET = 1.0
#: Seconds behind the server that count as caught up: its clock ticks in whole ones.
NEAR = 2.0
#: Looks that rate and time left are measured over.
_LOOKS = 50


@contextmanager
def progress(watcher: Watcher) -> Iterator[None]:
    """Show how a watcher that is run inside catches up; nothing where the standard error stream is no terminal."""
    import gevent

    if not sys.stderr.isatty():
        yield
        return
    line = Line(sys.stderr)
    # Filters, because handlers that are added would take the place of a program's own.
    handlers = {*logging.getLogger().handlers, *logging.getLogger("rigatoni").handlers}
    for handler in handlers:
        handler.addFilter(line.makes_way)
    following = gevent.spawn(_follow, watcher, line)
    try:
        yield
    finally:
        following.kill()
        line.clear()
        for handler in handlers:
            handler.removeFilter(line.makes_way)


class Line:
    """Write one line again and again, and take it away when something else is written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._width = 0

    def show(self, text: str) -> None:
        """Write it over what is there."""
        text = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write(f"\r{text.ljust(self._width)}")
        self._stream.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Take it away."""
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()
            self._width = 0

    def makes_way(self, record: logging.LogRecord) -> bool:
        """Take it away before a log line is written; every record passes."""
        self.clear()
        return True


class Pace:
    """Measure how fast a watcher catches up.

    :ivar behind: the lag that it had first, in seconds; None while that is unknown.
    """

    def __init__(self) -> None:
        self._begin = monotonic()
        self._looks: deque[tuple[float, float, int]] = deque(maxlen=_LOOKS)
        self.behind: float | None = None
        self.finished = 0

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return monotonic() - self._begin

    def look(self, stats: Mapping[str, Any]) -> str:
        """Take in what the watcher says, and say it in words."""
        lag, self.finished = stats["lag"], stats["received"] - stats["in_flight"]
        if lag is None:
            searching = any(stream["catching_up"] for stream in stats["streams"].values())
            return "catching up: the server searches its oplog" if searching else ""
        self.behind = lag if self.behind is None else max(lag, self.behind)
        self._looks.append((monotonic(), lag, self.finished))
        share = 100 * (1 - lag / self.behind) if self.behind else 100
        return f"catching up: {share:.0f} %, {span(lag)} behind{self._speed()}"

    def _speed(self) -> str:
        (since, lag, finished), (now, lag_now, finished_now) = self._looks[0], self._looks[-1]
        if now - since < QUIET:
            return ""
        text = f", {(finished_now - finished) / (now - since):.0f} events/s"
        gained = (lag - lag_now) / (now - since)
        return f"{text}, {span(lag_now / gained)} left" if gained > 0 else f"{text}, not getting closer"


def _follow(watcher: Watcher, line: Line) -> None:
    import gevent

    while watcher.state in ("created", "starting", "standby"):
        gevent.sleep(POLL)
    pace, is_shown = Pace(), False
    while watcher.state == "running":
        stats = watcher.stats()
        text, lag = pace.look(stats), stats["lag"]
        if lag is not None and lag < NEAR:
            break
        if text and pace.elapsed > QUIET:
            line.show(text)
            is_shown = True
        gevent.sleep(POLL)
    line.clear()
    if is_shown and watcher.state == "running":
        say(f"caught up after {span(pace.elapsed)}: {pace.finished} events")
