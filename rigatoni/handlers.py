"""The registry of handlers: ``on()``, ``on_batch()``, and the lookup by database, collection and operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, overload

from .config import RetryPolicy
from .errors import ConfigurationError
from .events import AckableEvent, ChangeEvent
from .registration import BatchSize, Handler, OnError, checked, checked_function, is_count, is_seconds, name_of

F = TypeVar("F", bound=Callable[[ChangeEvent], object])
M = TypeVar("M", bound=Callable[[AckableEvent], object])
B = TypeVar("B", bound=Callable[[list[ChangeEvent]], object])
N = TypeVar("N", bound=Callable[[list[AckableEvent]], object])


class Handlers:
    """Functions that are called for changes; the part of a Watcher that programs decorate with."""

    def __init__(self, database: str | None = None) -> None:
        self._database = database
        self._handlers: list[Handler] = []
        self._frozen = False

    @property
    def database(self) -> str | None:
        """Say which database is watched; None for the whole deployment."""
        return self._database

    @overload
    def on(
        self,
        *operations: str,
        collection: str | Iterable[str] | None = ...,
        database: str | None = ...,
        fields: Iterable[str] | None = ...,
        ack: Literal["auto"] = ...,
        concurrency: int | None = ...,
        retry: RetryPolicy | None = ...,
        on_error: OnError | None = ...,
        timeout: float | None = ...,
    ) -> Callable[[F], F]: ...

    @overload
    def on(
        self,
        *operations: str,
        collection: str | Iterable[str] | None = ...,
        database: str | None = ...,
        fields: Iterable[str] | None = ...,
        ack: Literal["manual"],
        concurrency: int | None = ...,
        retry: RetryPolicy | None = ...,
        on_error: OnError | None = ...,
        timeout: float | None = ...,
    ) -> Callable[[M], M]: ...

    def on(self, *operations: str, **options: Any) -> Callable[[Any], Any]:
        """Register a function for changes; returns the function unchanged.

        An event counts as done when every handler for it has returned (``ack="auto"``) or called ``event.ack()``
        (``ack="manual"``), or when it was dead-lettered or skipped by policy. Only a normal return acknowledges.
        Handlers of one event are called in the order of registration, each retried by itself. Stacked decorators are
        fine.

        :param operations: "insert", "update", "replace", "delete", "drop", "rename", "dropDatabase", "invalidate", and
            with ``show_expanded_events`` "create", "createIndexes", …; none means all.
        :param collection: a name, a list of names, or globs (only ``*`` and ``?`` are wildcards); None means every
            collection. With a collection, events that have none (dropDatabase, invalidate) do not come; rename matches
            by its source.
        :param database: for a watcher of the whole deployment: only this database.
        :param fields: dotted paths: an update must change one of them, a parent or a child; checked in the client.
        :param ack: "auto" (default), or "manual": the handler gets :class:`AckableEvent` and says itself when it is
            done.
        :param concurrency: lanes of each collection; events of one document stay in order. Default: the watcher's.
        :param retry: a :class:`RetryPolicy`; default: the watcher's.
        :param on_error: when retries are spent: "dead_letter", "stop" or "skip"; default: the watcher's.
        :param timeout: seconds after which one attempt has failed; only where the handler yields to other greenlets.
            Default: none.
        :raises ConfigurationError: there and then, for an unknown operation or option, a function registered twice for
            the same thing, an ``async def`` or generator function, another database than the watcher's, or a
            registration after ``start()``.
        """
        return self._decorator(operations, options, None)

    @overload
    def on_batch(
        self,
        *operations: str,
        max_size: int = ...,
        max_wait: float = ...,
        collection: str | Iterable[str] | None = ...,
        database: str | None = ...,
        fields: Iterable[str] | None = ...,
        ack: Literal["auto"] = ...,
        concurrency: int | None = ...,
        retry: RetryPolicy | None = ...,
        on_error: OnError | None = ...,
        timeout: float | None = ...,
    ) -> Callable[[B], B]: ...

    @overload
    def on_batch(
        self,
        *operations: str,
        max_size: int = ...,
        max_wait: float = ...,
        collection: str | Iterable[str] | None = ...,
        database: str | None = ...,
        fields: Iterable[str] | None = ...,
        ack: Literal["manual"],
        concurrency: int | None = ...,
        retry: RetryPolicy | None = ...,
        on_error: OnError | None = ...,
        timeout: float | None = ...,
    ) -> Callable[[N], N]: ...

    def on_batch(
        self, *operations: str, max_size: int = 500, max_wait: float = 0.1, **options: Any
    ) -> Callable[[Any], Any]:
        """Register a function that gets lists of events of one lane, acknowledged together.

        After its retries a batch is handed over again one event at a time, so that only what fails alone is
        dead-lettered.

        :param max_size: events a list holds at most; default 500.
        :param max_wait: seconds an event waits for others; default 0.1.

        The other parameters and errors are those of :meth:`on`.
        """
        if not is_count(max_size):
            raise ConfigurationError(f"max_size must be a whole number from 1, not {max_size!r}")
        if not is_seconds(max_wait, least=0):
            raise ConfigurationError(f"max_wait must be a number of seconds from 0, not {max_wait!r}")
        return self._decorator(operations, options, BatchSize(max_size, max_wait))

    def dispatch(self, event: ChangeEvent | Mapping[str, Any], handler: str | None = None) -> None:
        """Call the matching handlers once, in order, here and now: no server, no retry, exceptions go through.

        For tests, and for replaying dead letters. Batch handlers get a list of one.

        :param event: an event, or its raw dictionary; of an :class:`AckableEvent` the ``ack()`` is the one that manual
            handlers call, else it does nothing.
        :param handler: only the handler of this name, ``module:qualname``, as a dead letter carries it.
        :raises ConfigurationError: when there is no handler of that name.
        """
        event = event if isinstance(event, ChangeEvent) else AckableEvent(event, lambda: None)
        chosen = (
            self._lookup(event.database, event.collection, event.operation)
            if handler is None
            else (self._named(handler, event),)
        )
        for each in chosen:
            if handler is not None or each.wants(event.raw):
                # Without a stream an ack() has nothing to acknowledge.
                is_right = isinstance(event, AckableEvent) or not each.manual
                mine = event if is_right else AckableEvent(event.raw, lambda: None)
                each.function([mine] if each.batch is not None else mine)

    def _decorator(
        self, operations: Sequence[Any], options: dict[str, Any], batch: BatchSize | None
    ) -> Callable[[Any], Any]:
        on = "on" if batch is None else "on_batch"
        if operations and callable(operations[0]):
            raise ConfigurationError(f"@watcher.{on} needs its brackets: write @watcher.{on}()")
        handler = checked(operations, options, batch, self.database)

        def register(function: Any) -> Any:
            self._register(replace(handler, function=checked_function(function, on), name=name_of(function)))
            return function

        return register

    def _register(self, handler: Handler) -> None:
        if self._frozen:
            raise ConfigurationError(f"{handler.name} is registered after start(): register every handler before it")
        for known in self._handlers:
            if known.function == handler.function and known.overlaps(handler):
                raise ConfigurationError(
                    f"{handler.name} is registered twice for the same events: it would be called twice for each"
                )
            if known.name == handler.name and known.function != handler.function:
                raise ConfigurationError(
                    f"two handlers are named {handler.name}: dead letters go by this name, give each function its own"
                )
        self._handlers.append(handler)

    def _lookup(self, database: str | None, collection: str | None, operation: str) -> tuple[Handler, ...]:
        return tuple(handler for handler in self._handlers if handler.matches(database, collection, operation))

    def _named(self, name: str, event: ChangeEvent) -> Handler:
        named = [handler for handler in self._handlers if handler.name == name]
        if not named:
            known = ", ".join(handler.name for handler in self._handlers) or "none"
            raise ConfigurationError(f"there is no handler {name!r}: there are {known}")
        # Stacked decorators make several of one function. A letter is handed over also where none would match any more.
        place = event.database, event.collection, event.operation
        return next((each for each in named if each.matches(*place) and each.wants(event.raw)), named[0])
