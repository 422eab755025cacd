"""One event and its handlers: attempts, timeouts, acknowledgement, and what happens when the attempts are spent."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import gevent

from .config import RetryPolicy
from .errors import HandlerError, ResumeTokenPersistenceError, StreamError
from .events import AckableEvent, ChangeEvent, DeadLetter
from .hooks import HookChain
from .hub import Flag, GivenUp
from .registration import Function, Handler, OnError
from .watermark import HANDLED, Batch, Place

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Count what became of events.

    Each event of a batch counts in `handled` and `failed`; `retried` are calls again, `dead_lettered` are letters.
    """

    handled: int = 0
    failed: int = 0
    retried: int = 0
    dead_lettered: int = 0


class Ticket:
    """An event that some handlers still owe; done when none does."""

    __slots__ = ("batch", "index", "is_begun", "owed", "raw")

    def __init__(self, batch: Batch, index: int, raw: Mapping[str, Any], handlers: Sequence[Handler]) -> None:
        self.batch = batch
        self.index = index
        self.raw = raw
        self.owed = set(handlers)
        self.is_begun = False

    @property
    def place(self) -> Place:
        """Say where in the stream the event stands."""
        return self.batch.serial, self.index

    def settle(self, handler: Handler) -> None:
        """Say that this handler is finished with the event; from any thread, as often as one likes."""
        self.owed.discard(handler)
        if not self.owed:
            self.batch.done[self.index] = HANDLED


class Delivery:
    """Call handlers for events, as often as their policy says.

    :param retry: the policy of handlers without one of their own.
    :param on_error: likewise.
    :param bury: keeps a dead letter; returns when it is committed.
    :param progress: called when an event may have become done.
    :param stop: cuts the wait before another attempt.
    :param left: set once nobody waits for handlers any more, such as in a forked child: what a handler does that is
        still running is no longer followed by anything.
    """

    def __init__(
        self,
        *,
        retry: RetryPolicy,
        on_error: OnError,
        bury: Callable[[DeadLetter], None],
        progress: Callable[[], None],
        hooks: HookChain,
        stop: Flag,
        left: Flag,
    ) -> None:
        self._retry = retry
        self._on_error = on_error
        self._bury = bury
        self._progress = progress
        self._hooks = hooks
        self._stop = stop
        self._left = left
        self._times_calls = hooks.overrides("handled")
        self.counts = Counts()

    def plain(self, function: Function) -> Function:
        """Return what calls a function once, with no attempts but this one; timed where a hook wants to know."""
        if not self._times_calls:
            return function
        handled, clock = self._hooks.handled, time.perf_counter

        def timed(event: Any) -> object:
            began = clock()
            returned = function(event)
            handled(event, clock() - began)
            return returned

        return timed

    def deliver(self, handler: Handler, tickets: Sequence[Ticket], error: BaseException | None = None) -> None:
        """Hand one event, or a batch, to one handler until it is settled by policy.

        :param error: what the first attempt ended with, when it was made already.
        :raises HandlerError: when the policy is "stop".
        :raises GivenUp: when a wait was cut by a stop, or nobody waits any more; the events stay undone.
        """
        self._go_on()
        policy = handler.retry or self._retry
        attempt = 1
        error = self._attempt(handler, tickets) if error is None else error
        while error is not None and not self._failed(handler, tickets, error, attempt):
            if not _is_retried(policy, error) or attempt == policy.max_attempts:
                return self._spent(handler, tickets, error, attempt)
            self.counts.retried += 1
            self._wait(policy.backoff(attempt))
            attempt += 1
            # What was acknowledged meanwhile is finished.
            tickets = [ticket for ticket in tickets if handler in ticket.owed]
            error = self._attempt(handler, tickets) if tickets else None
        if not handler.manual:
            for ticket in tickets:
                ticket.settle(handler)
        return None

    def _go_on(self) -> None:
        if self._left.is_set():
            raise GivenUp("nobody waits for handlers any more")

    def _wait(self, delay: float) -> None:
        until = time.monotonic() + delay
        if undisturbed(lambda: self._stop.wait(max(0.0, until - time.monotonic()))):
            raise GivenUp("stopped while waiting for another attempt")

    def _attempt(self, handler: Handler, tickets: Sequence[Ticket]) -> BaseException | None:
        for ticket in tickets:
            ticket.is_begun = True
        events = [self._event(handler, ticket) for ticket in tickets]
        argument = events if handler.batch is not None else events[0]
        began = time.perf_counter()
        try:
            with gevent.Timeout(handler.timeout):
                handler.function(argument)
        except (Exception, gevent.Timeout) as error:
            return error
        self.counts.handled += len(tickets)
        if self._times_calls:
            seconds = time.perf_counter() - began
            for event in events:
                self._hooks.handled(event, seconds)
        return None

    def _event(self, handler: Handler, ticket: Ticket) -> ChangeEvent:
        return (
            AckableEvent(ticket.raw, partial(self._acknowledge, ticket, handler))
            if handler.manual
            else ChangeEvent(ticket.raw)
        )

    def _acknowledge(self, ticket: Ticket, handler: Handler) -> None:
        ticket.settle(handler)
        self._progress()

    def _failed(self, handler: Handler, tickets: Sequence[Ticket], error: BaseException, attempt: int) -> bool:
        """Count a failed attempt.

        True when the handler had acknowledged everything before it failed, so that it is not called again.
        """
        self.counts.failed += len(tickets)
        for ticket in tickets:
            self._hooks.failed(ChangeEvent(ticket.raw), error, attempt)
        settled = handler.manual and not any(handler in ticket.owed for ticket in tickets)
        if settled:
            logger.error("%s failed after it had acknowledged; it is not called again", handler.name, exc_info=error)
        return settled

    def _spent(self, handler: Handler, tickets: Sequence[Ticket], error: BaseException, attempts: int) -> None:
        self._go_on()
        if len(tickets) > 1:
            return self._one_by_one(handler, tickets, attempts)
        (ticket,) = tickets
        event = ChangeEvent(ticket.raw)
        policy = handler.on_error or self._on_error
        if policy == "stop":
            raise HandlerError(
                f"{handler.name} failed {attempts} times with {type(error).__name__} for {event!r}", event=event
            ) from error
        logger.error(
            "%s failed %d times for %r: %s", handler.name, attempts, event, policy.replace("_", " "), exc_info=error
        )
        if policy == "dead_letter":
            self._keep(_letter(handler, ticket.raw, error, attempts))
            self.counts.dead_lettered += 1
            self._hooks.dead_lettered(event, error)
        ticket.settle(handler)
        return None

    def _keep(self, letter: DeadLetter) -> None:
        try:
            undisturbed(partial(self._bury, letter))
        except (StreamError, GivenUp):
            raise
        except Exception as error:
            raise ResumeTokenPersistenceError(
                f"a dead letter of {letter.handler} cannot be stored ({type(error).__name__}): its event is not done"
            ) from error

    def _one_by_one(self, handler: Handler, tickets: Sequence[Ticket], attempts: int) -> None:
        """Hand over a failed batch again, an event at a time, so that only what fails alone is given up."""
        for ticket in tickets:
            if self._stop.is_set():
                raise GivenUp("stopped in the middle of a failed batch")
            error = self._attempt(handler, [ticket]) if handler in ticket.owed else None
            if error is not None and not self._failed(handler, [ticket], error, attempts + 1):
                self._spent(handler, [ticket], error, attempts + 1)
            elif not handler.manual:
                ticket.settle(handler)


def _is_retried(policy: RetryPolicy, error: BaseException) -> bool:
    if isinstance(error, policy.retry_on):
        return True
    # A timeout is no Exception to gevent, but it is one to whoever writes retry_on=Exception or TimeoutError.
    return isinstance(error, gevent.Timeout) and issubclass(TimeoutError, policy.retry_on)


def _letter(handler: Handler, raw: Mapping[str, Any], error: BaseException, attempts: int) -> DeadLetter:
    try:
        words = str(error)
    except Exception:
        # It is user code; the words are Python's for it.
        words = "<exception str() failed>"
    text = "".join(traceback.format_exception(error))
    return DeadLetter(None, handler.name, raw, f"{type(error).__name__}: {words}", text, attempts, time.time())


def undisturbed(wait: Callable[[], T]) -> T:
    """Wait to the end, whichever ``gevent.Timeout`` fires meanwhile.

    One that a handler started and did not close fires later, in the same greenlet, but no longer in the handler.

    :param wait: may be called again after an interruption.
    """
    while True:
        try:
            return wait()
        except gevent.Timeout as error:
            logger.warning(
                "a gevent.Timeout of %s s fired between two events: a handler started it and did not close it; "
                "write 'with gevent.Timeout(...)'",
                error.seconds,
            )
