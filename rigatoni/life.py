"""One life of a watcher, from ``start()`` to its end: lock, stored positions, streams, greenlets, and the way back.

It runs in one greenlet, in the hub (patched) or the thread (unpatched) that :mod:`rigatoni.hub` gives it; whoever calls
from outside sets a flag and waits for another. Three kinds of greenlets: those that are told and waited for (readers
and feeders: a flag; what they wait for is given up), those that may be killed (saver, gauge: they hold nothing), those
that must be joined (lanes: they hold a half-done event).
"""

from __future__ import annotations

import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any, Literal

import gevent
from gevent.hub import Hub
from greenlet import greenlet

from .errors import HandlerError
from .forks import Haltable
from .gauge import Gauge
from .hub import Call, Calls, Flag, GivenUp, native_ident, wait_for_any
from .lease import Lease
from .opening import Opening
from .pipe import Pipe
from .plan import Plan
from .saver import Saver
from .settings import Settings
from .summary import summed_up

logger = logging.getLogger(__name__)

State = Literal["created", "starting", "standby", "running", "stopping", "stopped", "failed"]

#: Seconds that closing the cursors, and then the client, may take.
CLOSING = 1.0
#: Seconds that a caller of ``stop()`` waits beyond its own time: for the watcher's thread to take note of it, and then
#: for the last save and the closing.
REACTION = 0.5
GRACE = 1.0
#: Seconds that a store gets when somebody is in a hurry.
HASTE = 0.2
#: Seconds that running handlers get after a failure; after ``stop()`` it is the caller who says.
STOPPING = 10.0


class Life:
    """Open, run and close what the plans say.

    :ivar settled: set once the state is no longer "starting".
    :ivar left: set once no handler is waited for any more.
    :ivar ended: set at the very end.
    :ivar stop: set by whoever wants it to end.
    :ivar hurry: set by whoever does not want to wait for running handlers any longer.
    """

    def __init__(self, settings: Settings, plans: Sequence[Plan]) -> None:
        self._settings = settings
        self._plans = plans
        self._calls = Calls()
        self._opening: Opening | None = None
        self.stop = Flag()
        self._lease = Lease(settings.store, settings.name, self.stop)
        self._saver: Saver | None = None
        self._pipes: list[Pipe] = []
        self._told: list[greenlet] = []
        self._killable: list[greenlet] = []
        self._gauge: Gauge | None = None
        self._ident: int | None = None
        self._since = time.time()
        self._is_inert = False
        self._last_words: dict[str, str] = {}
        self.state: State = "starting"
        self.error: BaseException | None = None
        self.deadline: float | None = None
        self.unfinished: list[str] = []
        self.settled = Flag()
        self.left = Flag()
        self.ended = Flag()
        self.hurry = Flag()

    def run(self) -> None:
        """Live until told to stop, or until something fails."""
        self._ident = native_ident()
        self._told.append(gevent.getcurrent())
        try:
            self._begin()
            self.stop.wait()
        except BaseException as error:
            self.fail(error)
        finally:
            if not self._is_inert:
                self._end()
            if self._is_inert:
                # In a child: the handler that forked goes on, and this hub is its hub.
                for pipe in self._pipes:
                    pipe.lanes.empty.wait()

    def over(self) -> None:
        """Tell whoever waits that nothing is left of it."""
        self.state = "failed" if self.error is not None else "stopped"
        self.settled.set()
        self.ended.set()

    def fail(self, error: BaseException) -> None:
        """End with an error; the first one counts, and it is logged once. To be given up is none."""
        if self._is_inert or self.error is not None or self.ended.is_set() or isinstance(error, GivenUp):
            return
        if isinstance(error, gevent.GreenletExit):
            error = HandlerError("a greenlet of the watcher was killed by somebody else", event=None)
        self.error = error
        self.stop.set()
        # The server's own words can hold a whole command and its values.
        told = None if getattr(error, "code", None) and not logger.isEnabledFor(logging.DEBUG) else error
        try:
            logger.error("watcher %r fails: %s: %s", self._settings.name, type(error).__name__, error, exc_info=told)
        except Exception:
            traceback.print_exc()  # A log handler's, which must not keep the watcher from its end.

    def is_inside(self) -> bool:
        """Tell whether the caller is a hub, the driver, as a signal handler's can be, or the watcher's own."""
        here = gevent.getcurrent()
        is_own = native_ident() == self._ident and here in {*self._lanes(), *self._told, *self._killable}
        return isinstance(here, Hub) or is_own or self._calls.are_made_here()

    def has_ended(self, timeout: float) -> bool:
        """Wait for the end after a stop; a handler that blocks the watcher's thread must not block the caller too."""
        wait_for_any((self.ended, self.hurry), None if self._is_inert else timeout)
        if self.ended.is_set() or (self.left.wait(REACTION) and self.ended.wait(GRACE)):
            return True
        # Nothing follows a handler that still blocks the watcher's thread.
        self.left.set()
        held = "; ".join(self._running_handlers()) or f"saving into {self._settings.store.location}, and closing"
        logger.warning("watcher %r has not ended in time, it is held by: %s", self._settings.name, held)
        return False

    def wait(self) -> None:
        """Wait until it is told to stop, and then for its end."""
        try:
            self.stop.wait()
        finally:
            self.stop.set()
            self.has_ended(STOPPING if self.deadline is None else self.deadline - monotonic())

    def make_inert(self) -> None:
        """Become harmless in a forked child: nothing is sent, saved or acknowledged there."""
        self._is_inert, self.state = True, "stopped"
        self.left.set()
        for each in [*self._told, *self._killable, *self._lanes()]:
            # Not the current one: a handler may fork, and its child must go on.
            if each is not gevent.getcurrent() and isinstance(each, Haltable):
                each.halt()
        for pipe in self._pipes:
            pipe.forget(everything=True)
        self.stop.set()
        if native_ident() != self._ident:
            # Nobody else would say so: its thread is not there in the child.
            self.over()

    def stats(self) -> dict[str, Any]:
        """Sum up what the streams say."""
        return summed_up(self.state, {pipe.scope: self._stream_stats(pipe) for pipe in list(self._pipes)})

    def _lanes(self) -> list[greenlet]:
        return [lane.greenlet for pipe in self._pipes for lane in pipe.lanes.live if lane.greenlet is not None]

    def _stream_stats(self, pipe: Pipe) -> dict[str, Any]:
        stats = pipe.stats()
        if self._gauge is not None and stats["state"] == "active":
            stats["headroom"] = self._gauge.headroom(pipe.since())
        return stats

    def _status(self) -> Mapping[str, Any]:
        own = {"name": self._settings.name, "host": socket.gethostname(), "pid": os.getpid(), "since": self._since}
        told = self._settings.hooks.status()
        if self._is_inert:  # A hook forked: the child's rows are old.
            raise GivenUp("a child saves nothing")
        # What hooks say first, so that none of them can make the row lie.
        return {**told, **own, **self.stats(), **self._last_words}

    # The way up.

    def _begin(self) -> None:
        settings = self._settings
        self._unless_told(settings.store.open, self.hurry, self.stop)
        if not self._lease.take():
            self._lease.stand_by()
            self._settle("standby")
            self._lease.wait()
            self.state = "starting"
        self._saver = Saver(settings.store, settings.name, self._pipes, settings.save_interval, self._status, self.left)
        self._killable.append(self._spawn(self._saver.run))
        self._opening = Opening(settings, self._plans, self._calls, self.fail, self.stop, self.left)
        # Told to the saver only when all are open, so that the first positions are saved together.
        self._pipes.extend(self._opening.pipes())
        self._save(self.stop)
        for pipe in self._pipes:
            self._told.extend((self._spawn(pipe.read), self._spawn(pipe.feed)))
        self._gauge = Gauge(self._calls, self._opening.find_oldest, self.stop)
        self._killable.append(self._spawn(self._gauge.run))
        self._settle("running")
        # So that who asks the store is told at once, too.
        self._save()

    def _settle(self, state: State) -> None:
        if self.stop.is_set():
            raise GivenUp("stopped while starting")
        self.state = state
        self.settled.set()

    def _spawn(self, function: Callable[[], None]) -> greenlet:
        def guarded() -> None:
            try:
                function()
            except (GivenUp, gevent.GreenletExit):
                pass
            except BaseException as error:
                self.fail(error)

        spawned = Haltable.spawn(guarded)
        spawned.rawlink(self._greenlet_ended)
        return spawned

    def _greenlet_ended(self, ended: object) -> None:
        if not self.stop.is_set():
            self.fail(gevent.GreenletExit())

    # The way back.

    def _end(self) -> None:
        self.stop.set()
        if self.state == "running":
            self.state = "stopping"
        steps = self._let_lanes_end, self._name_unfinished, self._let_others_end, self._save_at_last, self._close
        for step in (*steps, self._lease.give_back, self._settings.store.close):
            try:
                step()
            except BaseException as error:
                self.fail(error)
            if self._is_inert:
                return

    def _let_others_end(self) -> None:
        gevent.joinall([each for each in (*self._told, *self._killable) if each is not gevent.getcurrent()], CLOSING)
        gevent.killall(self._killable)

    def _close(self) -> None:
        if self._opening is not None:
            closing = [gevent.spawn(pipe.close, self.error) for pipe in self._opening.opened]
            gevent.joinall(closing, timeout=CLOSING)
            self._opening.close(CLOSING)

    def _let_lanes_end(self) -> None:
        deadline = monotonic() + STOPPING if self.deadline is None else self.deadline
        for pipe in self._pipes:
            pipe.forget(everything=self.error is not None)
        for pipe in self._pipes:
            while pipe.lanes.live and monotonic() < deadline and not self.hurry.is_set():
                wait_for_any((pipe.lanes.empty, self.hurry), deadline - monotonic())
        for pipe in self._pipes:
            pipe.forget(everything=True)

    def _name_unfinished(self) -> None:
        self.left.set()
        self.unfinished = self._running_handlers()
        if self.unfinished:
            name, left = self._settings.name, "; ".join(self.unfinished)
            logger.warning("watcher %r leaves handlers running; their events come again: %s", name, left)

    def _running_handlers(self) -> list[str]:
        return [f"{name} with {event!r}" for pipe in self._pipes for name, event in pipe.lanes.unfinished()]

    def _save_at_last(self) -> None:
        end, handled = self.error, self._gauge is not None
        self._last_words = {"state": "stopped"} if end is None else {"state": "failed", "error": repr(end)}
        self._save(*(() if handled or end is not None else (self.stop,)))

    def _save(self, *flags: Flag) -> None:
        if self._saver is not None:
            self._unless_told(partial(self._saver.save, at_once=True), self.hurry, *flags)

    def _unless_told(self, function: Callable[[], None], *flags: Flag) -> None:
        """Do what may wait long for a store, and give it up when one of the flags is set."""
        work = Call(function)
        worker = Haltable.spawn(work)
        # A hook that is called there and stops the watcher must not wait for the end.
        self._told.append(worker)
        wait_for_any((work.done, *flags))
        is_done = work.done.wait(HASTE)
        worker.kill(timeout=HASTE)
        self._told.remove(worker)
        if not is_done:
            raise GivenUp("the store took too long")
        work.result()
