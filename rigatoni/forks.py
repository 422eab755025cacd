"""A forked child is nobody's second watcher: what of the parent's it has copies of must not go on there."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

import gevent


class Forkable(Protocol):
    """What lives in greenlets or threads that a child process must not go on running."""

    def forked(self) -> None:
        """Become inert: called in the child, once."""


_forkable: weakref.WeakSet[Any] = weakref.WeakSet()


def inert_after_fork(thing: Forkable) -> None:
    """Have `thing.forked()` called in every child process; nothing is kept alive by it."""
    _forkable.add(thing)


def _in_child() -> None:
    for thing in list(_forkable):
        thing.forked()


os.register_at_fork(after_in_child=_in_child)


class Haltable(gevent.Greenlet):  # type: ignore[type-arg]  # not generic when it runs
    """A greenlet that a forked child can keep from going on.

    Killing alone is too late there: what became ready in the round of the hub in which the process forked, such as a
    reply on a socket that the parent reads too, is handed to its greenlet before anything else happens.
    """

    _is_halted = False

    def switch(self, *value: Any) -> Any:
        """Go on with it, as the hub does; or end it."""
        if self._is_halted:
            return self.throw(gevent.GreenletExit)
        return super().switch(*value)

    def halt(self) -> None:
        """Have it end where it stands, without a switch now."""
        self._is_halted = True
        self.kill(block=False)
