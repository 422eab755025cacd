"""Which streams a watcher opens: one that collections share, and one for each ``watch()``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from .config import ChangeStreamConfig
from .errors import ConfigurationError
from .registration import EXPANDED_OPERATIONS, Handler, check_database, is_count, is_glob
from .selection import Namespace, Selection, select


@dataclass(frozen=True, slots=True)
class Watch:
    """A collection that asked for a stream of its own."""

    database: str
    collection: str
    config: ChangeStreamConfig
    concurrency: int | None
    start_at: object

    @property
    def scope(self) -> str:
        """Name the stream, and the row of its position."""
        return f"{self.database}.{self.collection}"


#: https://www.mongodb.com/docs/manual/reference/operator/aggregation/changeStreamSplitLargeEvent/
SPLIT = "$changeStreamSplitLargeEvent"


def watched(
    collection: str,
    database: str | None,
    own: str | None,
    config: ChangeStreamConfig,
    concurrency: int | None,
    start_at: object,
    changes: Mapping[str, Any],
) -> Watch:
    """Check what ``watch()`` was asked.

    :param own: the watcher's database.
    :param config: the watcher's, which `changes` change.
    :raises ConfigurationError: for what no stream could be opened with.
    """
    home = database or own
    if home is None:
        raise ConfigurationError(
            f"watch({collection!r}) needs database=, for this watcher watches the whole deployment"
        )
    check_database(database, own)
    if not isinstance(collection, str) or not collection or "{" in home + collection or "\0" in collection:
        raise ConfigurationError(
            f"watch({collection!r}): the server opens no cursor on exactly this name; "
            "use on(collection=…) without watch()"
        )
    if concurrency is not None and not is_count(concurrency):
        raise ConfigurationError(f"concurrency must be a whole number from 1, not {concurrency!r}")
    if "resume_token" in changes:
        raise ConfigurationError(
            f"watch({collection!r}): resume_token= belongs to ChangeStreamListener; use start_at=token"
        )
    for option in changes.keys() - {knob.name for knob in fields(config)}:
        raise ConfigurationError(f"watch({collection!r}): {option!r} is no option of ChangeStreamConfig")
    return Watch(home, collection, replace(config, **changes), concurrency, start_at)


@dataclass(frozen=True)
class Plan:
    """One stream to be opened.

    :param scope: what it was declared for; positions are stored under it.
    :param selection: the level its cursor is opened at, and its filter.
    :param concurrency: lanes of each collection, where no handler asks for more.
    :param is_declared_level: whether the cursor is opened where it was declared, so that its invalidate is the
        program's business.
    """

    scope: str
    selection: Selection
    config: ChangeStreamConfig
    concurrency: int
    start_at: object
    handlers: Sequence[Handler]
    is_declared_level: bool
    asked: int | None = None
    apart: frozenset[Namespace] = field(default=frozenset())

    def lookup(self, database: str | None, collection: str | None, operation: str) -> tuple[Handler, ...]:
        """Find the handlers for an event of this stream, in the order of their registration."""
        own = self.selection.database, self.selection.collection
        is_foreign = own[1] is not None and collection is not None and (database, collection) != own
        is_hidden = operation == "invalidate" and not self.is_declared_level
        if is_foreign or is_hidden or (database, collection) in self.apart:
            return ()
        return tuple(
            handler for handler in self._candidates(collection) if handler.matches(database, collection, operation)
        )

    def width(self, database: str | None, collection: str | None) -> int:
        """Say how many lanes a collection has: the most that one of its handlers, or ``watch()``, asks for."""
        asked = [
            handler.concurrency
            for handler in self._candidates(collection)
            if handler.concurrency and handler.concerns(database, collection)
        ]
        return max([*asked, *([self.asked] if self.asked else [])], default=self.concurrency)

    @cached_property
    def _by_collection(self) -> Mapping[str | None, Sequence[int]]:
        """List handlers by the one collection that they name, so that hundreds of them are not asked one by one."""
        listed: dict[str | None, list[int]] = {None: []}
        for number, handler in enumerate(self.handlers):
            names = handler.collections or ("*",)
            for name in [None] if any(map(is_glob, names)) else names:
                listed.setdefault(name, []).append(number)
        return listed

    def _candidates(self, collection: str | None) -> list[Handler]:
        listed = self._by_collection
        own = listed.get(collection, ()) if collection is not None else ()
        return [self.handlers[number] for number in sorted({*own, *listed[None]})]

    def feeds(self, handler: Handler) -> bool:
        """Tell whether any event of this stream is for the handler."""
        return select([handler], (self.selection.database, self.selection.collection), self.apart) is not None


def plans(
    handlers: Sequence[Handler],
    watches: Mapping[str, Watch],
    *,
    database: str | None,
    config: ChangeStreamConfig,
    concurrency: int,
    start_at: object,
    on_invalidate: str,
) -> list[Plan]:
    """Say which streams these handlers need.

    :raises ConfigurationError: when nothing would ever be handled, as a whole or for one ``watch()``.
    """
    if not handlers:
        raise ConfigurationError("there is no handler: decorate a function with @watcher.on(…) before start()")
    made = [_apart(scope, watch, handlers, concurrency) for scope, watch in watches.items()]
    apart = frozenset((watch.database, watch.collection) for watch in watches.values())
    # Where an invalidate is the end, the cursor must be opened at the declared level: on a collection it would come for
    # less.
    shared = select(handlers, (database, None), apart, narrow=on_invalidate == "resume")
    if shared is not None:
        is_declared = (shared.database, shared.collection) == (database, None)
        made.append(Plan(database or "", shared, config, concurrency, start_at, handlers, is_declared, apart=apart))
    _check_expanded(made)
    _check_whole(made)
    return made


def _apart(scope: str, watch: Watch, handlers: Sequence[Handler], concurrency: int) -> Plan:
    selection = select(handlers, (watch.database, watch.collection))
    if selection is None:
        raise ConfigurationError(
            f"watch({watch.collection!r}) has no handler: "
            f"decorate a function with @watcher.on(…, collection={watch.collection!r})"
        )
    return Plan(scope, selection, watch.config, concurrency, watch.start_at, handlers, True, asked=watch.concurrency)


def _check_expanded(made: Sequence[Plan]) -> None:
    for handler in made[0].handlers:
        hidden = (handler.operations or frozenset()) & EXPANDED_OPERATIONS
        if hidden and not any(plan.config.show_expanded_events and plan.feeds(handler) for plan in made):
            raise ConfigurationError(
                f"{handler.name} waits for {', '.join(sorted(hidden))}: "
                "the server sends them only with ChangeStreamConfig(show_expanded_events=True)"
            )


def _check_whole(made: Sequence[Plan]) -> None:
    if any(SPLIT in stage for plan in made for stage in plan.config.pipeline):
        raise ConfigurationError(
            f"with {SPLIT} an event comes in fragments, for which there are no handlers: leave the stage out; "
            "on_oversize= says what becomes of an event over 16 MB"
        )
