"""Cluster times."""

from __future__ import annotations

import threading
import time

from bson import Timestamp


class Clock:
    """Cluster times as one primary gives them: each later than the one before, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = Timestamp(0, 0)

    def tick(self) -> Timestamp:
        """Give the next one."""
        with self._lock:
            last, second = self._last, max(int(time.time()), self._last.time)
            self._last = Timestamp(second, last.inc + 1 if second == last.time else 1)
            return self._last
