"""The reconnection: the only importer of ``backoff``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import backoff
from backoff.types import Details

from .config import ChangeStreamConfig
from .errors import MaxReconnectAttemptsExceededError, StreamError, is_unknown
from .hub import Flag, GivenUp

T = TypeVar("T")

#: An error code that nobody knows is tried again a few times, also where known ones are tried for ever.
UNKNOWN_ATTEMPTS = 5


def reconnecting(
    pull: Callable[[], T], config: ChangeStreamConfig, stop: Flag, on_attempt: Callable[[StreamError, int, float], None]
) -> Callable[[], T]:
    """Wrap one pull so that retryable errors are waited out and tried again.

    One pull is "open if closed, then one getMore": what it returns is the proof that the stream works, so the delays
    start anew with each call. The wait is ``config.backoff(attempt)`` on the stop flag: cooperative, interruptible, one
    formula.

    :param on_attempt: called before each wait with the error, the number of the attempt that follows it, and the delay.
    :raises MaxReconnectAttemptsExceededError: from the last error, when the attempts are spent.
    :raises GivenUp: when `stop` is set during a wait.
    """

    def wait(details: Details) -> None:
        attempt = details["tries"]
        error: StreamError = details["exception"]  # type: ignore[typeddict-item]
        delay = config.backoff(attempt)
        on_attempt(error, attempt, delay)
        if stop.wait(delay):
            raise GivenUp("stopped while waiting to reconnect") from None

    unknown = 0

    def give_up(error: Exception) -> bool:
        nonlocal unknown
        unknown += is_unknown(error)
        return unknown > UNKNOWN_ATTEMPTS or not (isinstance(error, StreamError) and error.is_retryable)

    limit = config.max_reconnect_attempts
    # interval and jitter are off, because the wait is our own; the logger too, because backoff multiplies the lines of
    # a decorator used again.
    attempts = backoff.on_exception(
        backoff.constant,
        StreamError,
        max_tries=limit + 1 if limit else None,
        giveup=give_up,
        on_backoff=wait,
        interval=0,
        jitter=None,
        logger=None,
    )(pull)

    def pull_again() -> T:
        nonlocal unknown
        unknown = 0
        try:
            return attempts()
        except StreamError as error:
            if unknown > UNKNOWN_ATTEMPTS or not error.is_retryable:
                raise
            raise MaxReconnectAttemptsExceededError(
                f"gave up after {limit} attempts to reconnect; the last error: {error}", attempts=limit
            ) from error

    return pull_again
