"""What a watcher is told before it starts: its options, its handlers, the collections with a stream of their own."""

from __future__ import annotations

from abc import abstractmethod
from copy import copy
from dataclasses import replace
from typing import Any, TypeVar

from .client import ClientLike
from .config import ChangeStreamConfig
from .errors import ConfigurationError
from .handlers import Handlers
from .plan import Watch, watched
from .settings import AT_ONCE, RECONNECTING, Settings, concealed
from .stores import TokenStore
from .stores.memory import MemoryStore

D = TypeVar("D", bound="Declaration")


class Declaration(Handlers):
    """The part of a Watcher that is said before ``start()``."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.database)
        self._settings = settings
        self._watches: dict[str, Watch] = {}

    @property
    def name(self) -> str:
        """Say who this consumer is."""
        return self._settings.name

    @property
    def store(self) -> TokenStore:
        """Return the store; a path became a :class:`SQLiteStore`."""
        return self._settings.store

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
        :param start_at: where this stream begins when nothing is stored; default the watcher's.
        :param config: what differs from the watcher's :class:`ChangeStreamConfig`.
        :raises ConfigurationError: for a name that no cursor can be opened on, an unknown option, a second call for one
            collection, after ``start()``.
        """
        if self._frozen:
            raise ConfigurationError(f"watch({collection!r}) comes after start(): call it before")
        settings, begin = self._settings, self._settings.start_at if start_at is None else start_at
        watch = watched(collection, database, settings.database, settings.config, concurrency, begin, config)
        if watch.scope in self._watches:
            raise ConfigurationError(f"watch({collection!r}) was called before")
        self._watches[watch.scope] = watch

    def rehearsal(
        self: D, client: str | ClientLike, *, store: TokenStore | None = None, config: ChangeStreamConfig | None = None
    ) -> D:
        """Make a watcher with the same handlers and options for a test; this one stays as it is.

        Handlers that fail are tried again as often as ever, but at once; a server that is away is looked for every
        hundredth of a second, for some ten seconds.

        :param client: a URI, a ``MongoClient``, or a ``FakeClient`` of :mod:`rigatoni.testing`.
        :param store: where it begins and what it leaves behind; default: a new :class:`MemoryStore`.
        :param config: taken as it is, in place of the own one.
        """
        made, own, client = copy(self), concealed(client), ""
        made._settings = self._settings.rehearsed(own, MemoryStore() if store is None else store, config)
        made._handlers = [replace(each, retry=each.retry and replace(each.retry, **AT_ONCE)) for each in self._handlers]
        made._watches = {
            scope: replace(watch, config=replace(watch.config, **RECONNECTING))
            for scope, watch in self._watches.items()
        }
        made._begin_anew()
        return made

    @abstractmethod
    def _begin_anew(self) -> None:
        """Forget that it was ever started."""
