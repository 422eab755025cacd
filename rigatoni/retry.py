"""The reconnection: the only importer of ``backoff``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import backoff
from backoff.types import Details

from .config import ChangeStreamConfig
from .errors import MaxReconnectAttemptsExceededError, StreamError, is_unknown
from .hub import Flag, GivenUp

T = TypeVar("T")

#: An error code that nobody knows is tried again a few times, also where known ones are tried for ever.
UNKNOWN_ATTEMPTS = 5


def reconnecting(
    pull: Callable[[], T],
    config: ChangeStreamConfig,
    stop: Flag,
    on_attempt: Callable[[StreamError, int, float], None],
    *,
    is_first: bool = False,
) -> Callable[[], T]:
    """Wrap one pull so that retryable errors are waited out and tried again.

    One pull is "open if closed, then one getMore": what it returns is the proof that the stream works, so the delays
    start anew with each call. The wait is ``config.backoff(attempt)`` on the stop flag: cooperative, interruptible, one
    formula.

    :param on_attempt: called before each wait with the error, the number of the attempt that follows it, and the delay.
    :param is_first: nothing was connected before, so that the pull itself is the first of the attempts.
    :raises MaxReconnectAttemptsExceededError: from the last error, when the attempts are spent.
    :raises GivenUp: when `stop` is set during a wait.
    """
    return _Reconnection(pull, config, stop, on_attempt, is_first)


class _Reconnection(Generic[T]):
    def __init__(
        self,
        pull: Callable[[], T],
        config: ChangeStreamConfig,
        stop: Flag,
        on_attempt: Callable[[StreamError, int, float], None],
        is_first: bool,
    ) -> None:
        self._config = config
        self._stop = stop
        self._on_attempt = on_attempt
        self._limit = config.max_reconnect_attempts
        self._unknown = 0
        # interval and jitter are off, because the wait is our own; the logger too, because backoff multiplies the lines
        # of a decorator used again.
        self._attempts = backoff.on_exception(
            backoff.constant,
            StreamError,
            max_tries=self._limit + (not is_first) if self._limit else None,
            giveup=self._gives_up,
            on_backoff=self._wait,
            interval=0,
            jitter=None,
            logger=None,
        )(pull)

    def __call__(self) -> T:
        self._unknown = 0
        try:
            return self._attempts()
        except StreamError as error:
            if self._unknown > UNKNOWN_ATTEMPTS or not error.is_retryable:
                raise
            raise MaxReconnectAttemptsExceededError(
                f"gave up after {self._limit} attempts to connect; the last error: {error}", attempts=self._limit
            ) from error

    def _gives_up(self, error: Exception) -> bool:
        self._unknown += is_unknown(error)
        return self._unknown > UNKNOWN_ATTEMPTS or not (isinstance(error, StreamError) and error.is_retryable)

    def _wait(self, details: Details) -> None:
        error: StreamError = details["exception"]  # type: ignore[typeddict-item]
        delay = self._config.backoff(details["tries"])
        self._on_attempt(error, details["tries"], delay)
        if self._stop.wait(delay):
            raise GivenUp("stopped while waiting to reconnect") from None
