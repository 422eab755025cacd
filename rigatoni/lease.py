"""One active watcher per name; the others stand by and ask for the store's lock."""

from __future__ import annotations

import logging
import os

from .errors import ConfigurationError
from .hub import Flag, GivenUp
from .stores import TokenStore

logger = logging.getLogger(__name__)

#: Seconds between two questions; a take-over takes no longer than this after the other's end.
INTERVAL = 0.5

#: Who stands by: process, store and name. By process, because a forked child stands by for nobody.
_standing_by: dict[tuple[int, str, str], Lease] = {}


class Lease:
    """The right to be the active watcher of a name, freed with its process.

    :param store: whose lock decides.
    :param name: the consumer.
    :param stop: ends the wait.
    """

    def __init__(self, store: TokenStore, name: str, stop: Flag) -> None:
        self._store = store
        self._name = name
        self._stop = stop
        self._entry: tuple[int, str, str] | None = None
        self.is_held = False

    def take(self) -> bool:
        """Ask once."""
        self.is_held = self.is_held or self._store.lock(self._name)
        return self.is_held

    def stand_by(self) -> None:
        """Enter the queue of this process.

        :raises ConfigurationError: when another watcher of this process stands by for the name.
        """
        entry = os.getpid(), self._store.location, self._name
        # One step, so that of two threads that come at once one is refused.
        if _standing_by.setdefault(entry, self) is not self:
            raise ConfigurationError(
                f"a watcher of this process stands by for {self._name!r} already: two watchers share one name and one "
                "store; give one of them another name="
            )
        self._entry = entry

    def wait(self) -> None:
        """Ask until it is free.

        :raises GivenUp: when told to stop.
        """
        logger.warning(
            "%r is watched by %s: standing by", self._name, self._store.holder(self._name) or "another process"
        )
        while not self.take():
            if self._stop.wait(INTERVAL):
                raise GivenUp("stopped while standing by")

    def give_back(self) -> None:
        """Free the name for others."""
        if self._entry is not None:
            _standing_by.pop(self._entry, None)
        if self.is_held:
            self._store.unlock(self._name)
            self.is_held = False
