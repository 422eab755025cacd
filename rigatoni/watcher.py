"""``Watcher``: what programs hold."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from .client import Client
from .config import URI, ChangeStreamConfig, RetryPolicy
from .delivery import dispatched
from .errors import ConfigurationError
from .events import ChangeEvent
from .handlers import Handlers
from .hooks import HookChain, Hooks
from .hub import inert_after_fork, is_patched, live
from .life import Life, State
from .opening import Settings
from .plan import Watch, plans
from .registration import OnError, check_on_error, is_count, is_seconds
from .stores import TokenStore
from .stores.sqlite import SQLiteStore

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Watcher(Handlers):
    """React to changes of MongoDB, at least once, resumable.

    Functions are registered with :meth:`on`, then :meth:`run` (or :meth:`start` and :meth:`stop`) does the rest. An
    event counts as done when its handlers returned; the saved position never passes one that is not done, so that a
    crash repeats at most what was in flight and what `save_interval` brings, and loses nothing. Within a collection
    events are handled in the server's order; with ``concurrency=n`` those of one document are. After an error of the
    connection it goes on where it was. When going on would lose events it stops with an error instead.

    Nothing is opened before :meth:`start`, so that a module that is imported before a fork is harmless.

    :param client: a URI, or a ``MongoClient``, which is used as it is and never closed.
    :param database: None watches the whole deployment, also when the URI names a database.
    :param name: who this consumer is; one process per name and store is active, the others stand by.
    :param store: a path of an SQLite file, or a :class:`TokenStore`; default "rigatoni.db".
    :param config: a :class:`ChangeStreamConfig`.
    :param concurrency: lanes of each collection; default 1.
    :param max_in_flight: events per stream that are read and not yet covered by the finished prefix; default 10,000.
    :param retry: a :class:`RetryPolicy` for handlers that fail.
    :param on_error: when retries are spent: "dead_letter" (default), "stop" or "skip".
    :param save_interval: seconds between two saves; default 0.1.
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

    def __init__(
        self,
        client: str | Client = "mongodb://localhost:27017",
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
        config = config or ChangeStreamConfig()
        _check(name, database, config, concurrency, max_in_flight, save_interval, hooks)
        check_on_error(on_error)
        _check_choice("on_invalidate", on_invalidate, ("resume", "stop"))
        _check_choice("on_history_lost", on_history_lost, ("stop", "now", "earliest"))
        _check_choice("on_oversize", on_oversize, ("stub", "stop"))
        super().__init__(database)
        self.name = name
        self.store = SQLiteStore(store) if isinstance(store, (str, os.PathLike)) else store
        self._concurrency = concurrency
        self._start_at = start_at
        self._watches: dict[str, Watch] = {}
        self._settings = Settings(
            client=URI(client) if isinstance(client, str) else client,
            name=name,
            store=self.store,
            config=config,
            max_in_flight=max_in_flight,
            retry=retry or RetryPolicy(),
            on_error=on_error,
            save_interval=save_interval,
            on_invalidate=on_invalidate,
            on_history_lost=on_history_lost,
            hooks=HookChain(hooks),
            made_by=os.getpid(),
        )
        self._life: Life | None = None
        self._parent: int | None = None
        self._starting = threading.Lock()

    @property
    def state(self) -> State:
        """Say "created", "starting", "standby", "running", "stopping", "stopped" or "failed"."""
        return "created" if self._life is None else self._life.state

    @property
    def error(self) -> BaseException | None:
        """Return the fatal error that ended the watcher, None without one."""
        return None if self._life is None else self._life.error

    def stats(self) -> dict[str, Any]:
        """Return counts, lag and headroom (seconds, None while unknown) in all and per stream, in any state and from any thread."""
        return Life(self._settings, ()).stats() | {"state": "created"} if self._life is None else self._life.stats()

    def watch(
        self,
        collection: str,
        database: str | None = None,
        *,
        concurrency: int | None = None,
        start_at: object = None,
        **config: Any,
    ) -> None:
        """Give one collection a stream of its own, so that it neither holds others nor is held by them.

        Its events come only from this stream. Handlers are registered as always.

        :param collection: its name.
        :param database: its database; default the watcher's.
        :param concurrency: lanes of the collection.
        :param start_at: as for the watcher.
        :param config: what differs from the watcher's :class:`ChangeStreamConfig`.
        :raises ConfigurationError: for a name that no cursor can be opened on, an unknown option, a second call for one
            collection, after ``start()``.
        """
        home = database or self.database
        if home is None or (self.database is not None and home != self.database):
            raise ConfigurationError(
                f"watch({collection!r}) needs database=: {'which one?' if home is None else f'this is a watcher of {self.database!r}'}"
            )
        if not collection or "{" in collection or "\0" in collection:
            raise ConfigurationError(
                f"watch({collection!r}): the server does not open a cursor on exactly this name; use on(collection=…) without watch()"
            )
        if concurrency is not None and not is_count(concurrency):
            raise ConfigurationError(f"concurrency must be a whole number from 1, not {concurrency!r}")
        scope = f"{home}.{collection}"
        if self._frozen or scope in self._watches:
            raise ConfigurationError(
                f"watch({collection!r}) " + ("comes after start()" if self._frozen else "was called before")
            )
        try:
            changed = replace(self._settings.config, **config)
        except TypeError as error:
            raise ConfigurationError(f"watch({collection!r}): unknown option ({error})") from None
        self._watches[scope] = Watch(home, collection, changed, concurrency, start_at)

    def start(self) -> State:
        """Take the lock, open every stream and save the first positions; a write made after it returns will be seen.

        The first open has the same retry budget as any other; errors that are not retryable raise at once.

        :returns: "running"; "standby" when another process holds the name (it takes over by itself); "stopped" when
            :meth:`stop` came first.
        :raises ConfigurationError: without a handler, when it runs already, in a child of the process in which it runs.
        :raises StreamError: when a stream cannot be opened.
        """
        with self._starting:
            life = self._prepare()
        live(life.run, f"rigatoni {self.name}")
        try:
            life.settled.wait()
        except BaseException:
            life.stop.set()
            raise
        if life.error is not None:
            raise life.error
        return life.state

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop reading, forget what was read ahead, let running handlers return, save, release the name.

        :param timeout: seconds that running handlers get; they are not killed, and their events come again at the next
            start.
        :returns: True if all of them returned. From inside a handler it returns False at once, and the watcher stops
            after the handler returned.
        """
        life = self._life
        if life is None or self._parent is not None or life.ended.is_set():
            return True
        life.deadline = monotonic() + timeout
        life.stop.set()
        if life.is_inside():
            return False
        life.ended.wait()
        return not life.unfinished

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the end and raise the fatal error, if there is one.

        :param timeout: seconds; None waits for ever.
        :returns: False on timeout.
        """
        if self._life is None or self._parent is not None:
            return True
        if not self._life.ended.wait(timeout):
            return False
        if self._life.error is not None:
            raise self._life.error
        return True

    def run(self) -> None:
        """Start, and block until :meth:`stop`, SIGINT or SIGTERM, or a fatal error, which it raises.

        In the main thread it sets handlers for the two signals and restores the former ones at its end; a second signal
        does not wait for running handlers. Other greenlets go on.
        """
        with self._signals():
            try:
                self.start()
                self.join()
            finally:
                self.stop()

    def __enter__(self) -> Watcher:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self.error is not None:
            raise self.error

    def dispatch(self, event: ChangeEvent | Mapping[str, Any], handler: str | None = None) -> None:
        """Call the matching handlers once, in order, here and now: no server, no retry, exceptions go through.

        For tests, and for replaying dead letters. Batch handlers get a list of one.

        :param event: an event, or its raw dictionary.
        :param handler: only the handler of this name, ``module:qualname``, as a dead letter carries it.
        :raises ConfigurationError: when there is no handler of that name.
        """
        raw = event.raw if isinstance(event, ChangeEvent) else event
        event = ChangeEvent(raw)
        chosen = (
            self._lookup(event.database, event.collection, event.operation)
            if handler is None
            else (self._named(handler),)
        )
        for each in chosen:
            if each.wants(raw):
                dispatched(each, raw)

    def forked(self) -> None:
        """Become inert: called in a forked child, where the parent's greenlets must not go on."""
        self._starting = threading.Lock()
        if self._life is not None and not self._life.ended.is_set():
            self._parent = os.getppid()
            self._life.make_inert()

    def _prepare(self) -> Life:
        if self._parent is not None:
            raise ConfigurationError(
                f"this watcher runs in process {self._parent}; process {os.getpid()} is its child: make a Watcher of its own there, or start it after the fork"
            )
        if self._life is not None and not self._life.ended.is_set():
            raise ConfigurationError(f"this watcher is {self.state} already: stop() it first")
        made = plans(
            self._handlers,
            self._watches,
            database=self.database,
            config=self._settings.config,
            concurrency=self._concurrency,
            start_at=self._start_at,
            on_invalidate=self._settings.on_invalidate,
        )
        self._frozen = True
        logger.info(
            "watcher %r watches %s",
            self.name,
            "the whole deployment" if self.database is None else f"database {self.database!r}",
        )
        self._say_what_has_no_effect()
        inert_after_fork(self)
        self._life = Life(self._settings, made)
        return self._life

    def _say_what_has_no_effect(self) -> None:
        asked = self._concurrency > 1 or any(
            (handler.concurrency or 1) > 1 or handler.timeout for handler in self._handlers
        )
        if asked and not is_patched():
            logger.warning(
                "this process is not patched by gevent: a handler that blocks holds all lanes, so concurrency and timeout= have no effect on it "
                "(gevent.monkey.patch_all(), or `rigatoni run`, before anything else is imported)"
            )

    @contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def told(number: int, frame: FrameType | None) -> None:
            life = self._life
            if life is not None:
                (life.hurry if life.stop.is_set() else life.stop).set()

        before = {number: signal.signal(number, told) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, former in before.items():
                signal.signal(number, former)

    def __repr__(self) -> str:
        return f"<Watcher {self.name!r} of {self.database or 'the whole deployment'} {self.state}, {len(self._handlers)} handlers>"


def _check(
    name: str,
    database: str | None,
    config: ChangeStreamConfig,
    concurrency: int,
    max_in_flight: int,
    save_interval: float,
    hooks: Sequence[Hooks],
) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"name={name!r}: letters, digits, dot, underscore and hyphen, at most 64 of them")
    if database is not None and (not isinstance(database, str) or not database or "." in database or "\0" in database):
        raise ConfigurationError(f"database={database!r} is no name of a database")
    if not isinstance(config, ChangeStreamConfig):
        raise ConfigurationError(f"config must be a ChangeStreamConfig, not {type(config).__name__}")
    if config.resume_token is not None:
        raise ConfigurationError(
            "config.resume_token belongs to ChangeStreamListener: a Watcher keeps positions itself; use start_at=token"
        )
    for option, value in (("concurrency", concurrency), ("max_in_flight", max_in_flight)):
        if not is_count(value):
            raise ConfigurationError(f"{option} must be a whole number from 1, not {value!r}")
    if not is_seconds(save_interval, least=0.001):
        raise ConfigurationError(f"save_interval must be a number of seconds from 0.001, not {save_interval!r}")
    for hook in hooks:
        if not isinstance(hook, Hooks):
            raise ConfigurationError(f"hooks must be objects of subclasses of Hooks, not {hook!r}")


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigurationError(f"{option} must be one of {', '.join(map(repr, choices))}, not {value!r}")
