"""``Watcher``: what programs hold."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from .client import ClientLike
from .config import ChangeStreamConfig, RetryPolicy
from .declaration import Declaration
from .errors import ConfigurationError
from .forks import inert_after_fork
from .hooks import Hooks
from .hub import is_patched, live, wait_for_any
from .lanes import warn_of_lanes
from .life import STOPPING, Life, State
from .plan import plans
from .registration import OnError
from .settings import Settings, chained, concealed, options
from .signals import EXITING, stop_at_exit, told_by_signals
from .stores import TokenStore
from .stores.sqlite import SQLiteStore

logger = logging.getLogger(__name__)


class Watcher(Declaration):
    """React to changes of MongoDB, at least once, resumable.

    Functions are registered with :meth:`on`, then :meth:`run` (or :meth:`start` and :meth:`stop`) does the rest. An
    event counts as done when its handlers returned; the saved position never passes one that is not done, so that a
    crash repeats at most what was in flight and what `save_interval` brings, and loses nothing. Within a collection
    events are handled in the server's order; with ``concurrency=n`` those of one document are. After an error of the
    connection it goes on where it was. When going on would lose events it stops with an error instead.

    Nothing is opened before :meth:`start`, so that a module that is imported before a fork is harmless.

    :param client: a URI (default "mongodb://localhost:27017"), or a ``MongoClient``, which is used as it is and never
        closed.
    :param database: None (default) watches the whole deployment, also when the URI names a database.
    :param name: who this consumer is; one process per name and store is active, the others stand by. Default "default".
    :param store: a path of an SQLite file, or a :class:`TokenStore`; default "rigatoni.db".
    :param config: a :class:`ChangeStreamConfig`; None is one with its defaults.
    :param concurrency: lanes of each collection; default 1.
    :param max_in_flight: events per stream that are read and not yet covered by the finished prefix; default 10,000.
    :param retry: a :class:`RetryPolicy` for handlers that fail; None is one with its defaults.
    :param on_error: when retries are spent: "dead_letter" (default), "stop" or "skip".
    :param save_interval: seconds between two saves; default 0.1, and more than 1 counts as 1.
    :param start_at: where to begin when nothing is stored: None (now), "earliest", a ``bson.Timestamp``, an aware
        ``datetime``, a ``timedelta`` back from now, or a resume token.
    :param on_invalidate: "resume" (default) goes on after a drop, rename or dropDatabase of what is watched; "stop"
        ends with :class:`StreamInvalidatedError` once everything before it is done, and the next start goes on after
        it.
    :param on_history_lost: when the oplog no longer has the position: "stop" (default), "now" or "earliest".
    :param on_oversize: for an event over 16 MB: "stub" (default) or "stop".
    :param hooks: observers, see :class:`Hooks`.
    :raises ConfigurationError: for anything that could never work.

    https://www.mongodb.com/docs/manual/changeStreams/
    """

    _life: Life | None = None
    _parent: int | None = None
    _signals = 0

    def __init__(
        self,
        client: str | ClientLike = "mongodb://localhost:27017",
        database: str | None = None,
        *,
        name: str = "default",
        store: str | os.PathLike[str] | TokenStore = "rigatoni.db",
        config: ChangeStreamConfig | None = None,
        concurrency: int = 1,
        max_in_flight: int = 10_000,
        retry: RetryPolicy | None = None,
        on_error: OnError = "dead_letter",
        save_interval: float = 0.1,
        start_at: object = None,
        on_invalidate: str = "resume",
        on_history_lost: str = "stop",
        on_oversize: str = "stub",
        hooks: Sequence[Hooks] = (),
    ) -> None:
        own, client = concealed(client), ""
        settings = Settings(
            client=own,
            database=database,
            name=name,
            store=SQLiteStore(store) if isinstance(store, (str, os.PathLike)) else store,
            config=ChangeStreamConfig() if config is None else config,
            concurrency=concurrency,
            max_in_flight=max_in_flight,
            retry=RetryPolicy() if retry is None else retry,
            on_error=on_error,
            save_interval=save_interval,
            start_at=start_at,
            on_invalidate=on_invalidate,
            on_history_lost=on_history_lost,
            on_oversize=on_oversize,
            hooks=chained(hooks),
        )
        super().__init__(settings)
        self._starting = threading.Lock()

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], prefix: str = "RIGATONI_", *, known: Iterable[str] = ()
    ) -> Watcher:
        """Build from an environment or a Flask configuration: see :meth:`ChangeStreamConfig.from_mapping`.

        Every option, its config's and, with ``RETRY_``, its retry's; `client` is ``RIGATONI_URI``, and `start_at` may
        be 2h, earliest, or a time with its zone.
        """
        if isinstance(found := options(mapping, prefix, known), ConfigurationError):
            # Tools that show the local variables of a traceback would show the URI.
            del mapping
            raise found
        return cls(**found)

    @property
    def state(self) -> State:
        """Say "created", "starting", "standby", "running", "stopping", "stopped" or "failed"."""
        return "created" if self._life is None else self._life.state

    @property
    def error(self) -> BaseException | None:
        """Return the fatal error that ended the watcher, None without one."""
        return None if self._life is None else self._life.error

    def stats(self) -> dict[str, Any]:
        """Return counts, lag and headroom (in seconds, None while unknown), in all and per stream.

        In any state and from any greenlet or thread.
        """
        return Life(self._settings, ()).stats() | {"state": "created"} if self._life is None else self._life.stats()

    def start(self, timeout: float | None = None) -> State:
        """Take the lock, open every stream and save the first positions; a write made after it returns will be seen.

        The first open has the same retry budget as any other; errors that are not retryable raise at once.

        :param timeout: seconds to wait for that; None (default) waits to the end. It goes on starting afterwards.
        :returns: "running"; "standby" when another process holds the name (it takes over by itself); "stopped" when
            :meth:`stop` came first; "starting" when the time is over.
        :raises ConfigurationError: without a handler, when it runs already, in a child of the process in which it runs.
        :raises StreamError: when a stream cannot be opened.
        """
        with self._starting:
            life = self._prepare()
        # Those that came before there was a life, or when there was only that of an earlier run.
        for flag in (life.stop, life.hurry)[: self._signals]:
            flag.set()
        try:
            live(life.run, f"rigatoni {self.name}", lambda: self._over(life))
        except RuntimeError:
            # There are too many threads: nothing has begun.
            life.over()
            raise
        try:
            wait_for_any((life.settled, life.hurry), timeout)
        except BaseException:
            life.stop.set()
            raise
        if life.error is not None:
            # It may have run for a moment: only at its end can it, or another of its name, be started again.
            wait_for_any((life.ended, life.hurry), STOPPING)
            raise life.error
        # The first may end at this very moment, so that the take-over begins.
        return "standby" if life.settled.is_set() and life.state == "starting" else life.state

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop reading, forget what was read ahead, let running handlers return, save, release the name.

        An event whose handler returned but whose manual ``ack()`` has not come by then is not waited for: it comes
        again at the next start, as does what overtook it.

        :param timeout: seconds that running handlers get, default 10; they are not killed, and their events come again
            at the next start. The last save and the closing get a second and a half beyond it.
        :returns: True if all of them returned, and all is saved and closed. From inside a handler it returns False at
            once, and the watcher stops after the handler returned; also from a signal handler amidst its own work.
        """
        life = self._life
        if life is None or self._parent is not None or life.ended.is_set():
            return True
        life.deadline = monotonic() + timeout
        life.stop.set()
        if life.is_inside():
            return False
        return life.has_ended(timeout) and not life.unfinished

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end and raise the fatal error, if there is one.

        :param timeout: seconds; None waits for ever.
        :returns: False on timeout.
        """
        life = self._life
        if life is None or self._parent is not None:
            return True
        if not life.ended.wait(timeout):
            return False
        if life.error is not None:
            raise life.error
        return True

    def run(self) -> None:
        """Start, and block until :meth:`stop`, SIGINT or SIGTERM, or a fatal error, which it raises.

        In the main thread it sets handlers for the two signals and restores the former ones at its end; a second signal
        does not wait for running handlers. Other greenlets go on.
        """
        self._signals = 0
        try:
            with told_by_signals(self._tell):
                self.start()
                if self._life is not None:
                    self._life.wait()
        finally:
            self._signals = 0
        if self.error is not None:
            raise self.error

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self.error is not None:
            raise self.error

    def exiting(self) -> None:
        """End with the program: called at its end, where nobody has stopped it or it has not ended in time."""
        life = self._life
        # Who was told to stop before has had his time: neither a handler nor a locked store is waited for any more.
        if life is not None and (life.stop.is_set() or not self.stop(EXITING)):
            life.hurry.set()
            self.stop(EXITING)

    def forked(self) -> None:
        """Become inert: called in a forked child, where the parent's greenlets must not go on."""
        self._starting = threading.Lock()
        if self._life is not None and not self._life.ended.is_set():
            self._parent = os.getppid()
            self._life.make_inert()

    def _prepare(self) -> Life:
        if self._parent is not None:
            raise ConfigurationError(
                f"this watcher runs in process {self._parent}; process {os.getpid()} is its child: make a Watcher of "
                "its own there, or start it after the fork"
            )
        if self._life is not None and self._life.state not in ("stopped", "failed"):
            raise ConfigurationError(f"this watcher is {self.state} already: stop() it first")
        made = plans(
            self._handlers,
            self._watches,
            database=self.database,
            config=self._settings.config,
            concurrency=self._settings.concurrency,
            start_at=self._settings.start_at,
            on_invalidate=self._settings.on_invalidate,
        )
        if not is_patched():
            stop_at_exit(self)
        self._frozen = True
        logger.info("watcher %r watches %s", self.name, self._settings.watched)
        warn_of_lanes(
            self._handlers, [self._settings.concurrency, *(each.concurrency for each in self._watches.values())]
        )
        inert_after_fork(self)
        self._life = Life(self._settings, made)
        return self._life

    def _over(self, life: Life) -> None:
        # The watcher's own, so that it exists as long as its life goes on, whoever refers to it: who forks, and the
        # program's end, must find it.
        life.over()

    def _begin_anew(self) -> None:
        self._life, self._parent, self._frozen, self._starting = None, None, False, threading.Lock()

    def _tell(self) -> None:
        self._signals, life = self._signals + 1, self._life
        if life is not None:
            (life.hurry if life.stop.is_set() else life.stop).set()

    def __repr__(self) -> str:
        if (settings := vars(self).get("_settings")) is None:
            # For tools that show the local variables of a traceback.
            return "<Watcher that could not be made>"
        return f"<Watcher {settings.name!r} of {settings.watched}: {self.state}, {len(self._handlers)} handlers>"
