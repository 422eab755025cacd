"""Where a consumer's positions, its dead letters and its status row are kept: the contract of a store.

One contract test runs against every store (``tests/test_stores.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..events import DeadLetter
from ..position import Position


class TokenStore(ABC):
    """Keep what consumers have finished, so that the next run goes on from there.

    A constructor touches nothing. Every method may be called from any greenlet and any native thread, and never makes a
    hub stand still to wait for another process. A store may serve several consumers at once, told apart by `name`. The
    methods raise :class:`~rigatoni.ResumeTokenPersistenceError` when the store cannot be read or written; what it held
    before is then still there.

    :ivar location: where the store is, for messages: the absolute path of a file, or ``"memory"``.
    """

    location: str = "a store of the program's own"

    @abstractmethod
    def open(self) -> None:
        """Find out now whether the store can be used, and make it when it is not there.

        May be called again. A method that is called before `open`, or after `close`, opens the store by itself.

        :raises ResumeTokenPersistenceError: when it cannot be used; what is found there is never overwritten.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what is open; what was saved stays. Locks are not freed by it: see :meth:`unlock`."""

    @abstractmethod
    def load(self, name: str) -> dict[str, Position]:
        """Give all positions of a consumer, by scope; empty when there are none.

        :param name: of the consumer.
        :raises ResumeTokenPersistenceError: when one of them is corrupt, naming it (never the token). Nothing is
            deleted or left out.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """List the consumers of which anything is kept, in alphabetical order."""

    @abstractmethod
    def save(
        self, name: str, positions: Mapping[str, Position | None], status: Mapping[str, Any] | None = None
    ) -> None:
        """Write positions and the status row: all of them or, when this raises, none.

        A crash of the process loses nothing of it. A crash of the host may undo the last calls, each of them as a whole
        and the latest first.

        :param name: of the consumer.
        :param positions: by scope; None deletes the row. Their `saved_at` is set to now.
        :param status: the new status row; None keeps the old one. Values that JSON does not know are written as text.
            Such a save also finds out whether the store, or the lock that is held, was removed or replaced meanwhile.
        :raises ResumeTokenPersistenceError: when it cannot be written.
        """

    @abstractmethod
    def status(self, name: str) -> dict[str, Any] | None:
        """Give the last status row, with ``"saved_at"`` in seconds since the epoch added; None when there is none.

        :param name: of the consumer.
        """

    @abstractmethod
    def bury(self, name: str, letter: DeadLetter) -> None:
        """Keep a dead letter; when this returns it is kept as surely as a saved position.

        There is one letter for each (name, handler, event): burying it again replaces it and keeps its id. Never fails
        because of what is in the event: values that have no Extended JSON are kept as their repr.

        :param name: of the consumer.
        :param letter: its `id` does not matter.
        """

    @abstractmethod
    def letters(self, name: str) -> list[DeadLetter]:
        """Give the dead letters of a consumer with their ids, the oldest id first.

        :param name: of the consumer.
        """

    @abstractmethod
    def discard(self, name: str, id: int) -> bool:
        """Delete a dead letter; False when there is none of this id.

        :param name: of the consumer.
        :param id: as :meth:`letters` gives it.
        """

    @abstractmethod
    def lock(self, name: str) -> bool:
        """Take the exclusive right to be this consumer; False when another process has it.

        Exclusive among all processes that see this store. Never waits. The right ends with :meth:`unlock` or with the
        process, however that ends; a child that the process forked does not keep it.

        :param name: of the consumer.
        :raises ConfigurationError: when this process has it already: two watchers of one name.
        """

    @abstractmethod
    def unlock(self, name: str) -> None:
        """Give back the right to be this consumer.

        Does nothing when it is not held, and in a child of the process that holds it.

        :param name: of the consumer.
        """

    @abstractmethod
    def holder(self, name: str) -> str | None:
        """Say which process took the lock last and has not given it back; None when none is known.

        Its pid and host as text, for messages. It may have died since: only :meth:`lock` tells whether it is free.

        :param name: of the consumer.
        """
