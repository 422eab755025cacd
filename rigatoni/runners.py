"""Greenlets that let lanes work.

As many as there are lanes whose handlers wait for something, and one more: a runner takes one lane after another, and
before it starts one it sees to it that somebody goes on with the others, should a handler switch. So hundreds of lanes
with an event each cost two greenlets, not hundreds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .forks import Haltable


class Runners:
    """Run what is put in, in order, each on its own as soon as what runs before it waits.

    :param fail: called when a runner was killed before it ran.
    """

    def __init__(self, fail: Callable[[BaseException], None]) -> None:
        self._fail = fail
        self._ready: deque[Callable[[], None]] = deque()
        self._has_spare = False

    def put(self, work: Callable[[], None]) -> None:
        """Have something run soon; it must not raise. Does not switch greenlets."""
        self._ready.append(work)
        if not self._has_spare:
            self._call_spare()

    def _call_spare(self) -> None:
        self._has_spare = True
        Haltable.spawn(self._run).rawlink(self._ended)

    def _run(self) -> None:
        self._has_spare = False
        while self._ready:
            work = self._ready.popleft()
            if self._ready and not self._has_spare:
                self._call_spare()
            work()

    def _ended(self, runner: Haltable) -> None:
        error = runner.exception or runner.value
        if isinstance(error, BaseException):
            # It was the spare, for what runs catches everything.
            self._has_spare = False
            if self._ready:
                self._call_spare()
            self._fail(error)
