"""How long the oplog still holds what a stream has not read: the headroom."""

from __future__ import annotations

import logging
from collections.abc import Callable

from bson import Timestamp

from .errors import ConfigurationError, StreamError
from .hub import Calls, Flag

logger = logging.getLogger(__name__)

#: Seconds between two looks at the oldest entry of the oplog.
INTERVAL = 10.0
#: The same where that is not permitted: each look is a line in the server's log.
REFUSED = 3600.0


class Gauge:
    """Look at the oldest entry of the oplog now and then.

    May be killed at any moment: it holds nothing.

    :param calls: how blocking calls are made.
    :param find_oldest: reads the cluster time of the oldest change; blocks.
    :param stop: ends it.
    """

    def __init__(self, calls: Calls, find_oldest: Callable[[], Timestamp], stop: Flag) -> None:
        self._calls = calls
        self._find_oldest = find_oldest
        self._stop = stop
        self._oldest: Timestamp | None = None

    def run(self) -> None:
        """Look until told to stop."""
        interval = 0.0
        while not self._stop.wait(interval):
            interval = INTERVAL
            try:
                self._oldest = self._calls.run(self._find_oldest, self._stop)
            except StreamError as error:
                logger.debug("the oplog window is unknown: %s", error)
                self._oldest = None
                if isinstance(error, ConfigurationError):
                    interval = REFUSED

    def headroom(self, since: int | None) -> int | None:
        """Say how many seconds a position is ahead of the oldest entry; None while that is unknown.

        :param since: the position's time, in seconds since the epoch.
        """
        oldest = self._oldest
        return None if oldest is None or since is None else max(0, since - oldest.time)
