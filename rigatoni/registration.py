"""One registered function: what it asked for, checked when it asks.

A typing mistake speaks at import, and not after an hour of silence.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, get_args

from .config import RetryPolicy
from .errors import ConfigurationError
from .events import ChangeEvent

OnError = Literal["dead_letter", "stop", "skip"]
Function = Callable[..., object]

#: Operations on one document; all others are barriers.
DOCUMENT_OPERATIONS = frozenset({"insert", "update", "replace", "delete"})
#: Operations that end cursors somewhere; they pass every filter that handlers imply, else a cursor would die without a
#: word.
ENDING_OPERATIONS = ("drop", "rename", "dropDatabase", "invalidate")
#: Operations that the server sends only with ``show_expanded_events``.
EXPANDED_OPERATIONS = frozenset(
    {
        "create",
        "createIndexes",
        "dropIndexes",
        "modify",
        "shardCollection",
        "reshardCollection",
        "refineCollectionShardKey",
    }
)
OPERATIONS = DOCUMENT_OPERATIONS | frozenset(ENDING_OPERATIONS) | EXPANDED_OPERATIONS


@dataclass(frozen=True, slots=True)
class BatchSize:
    """When a batch is handed over: `max_size` events, or `max_wait` seconds after the first."""

    max_size: int
    max_wait: float


@dataclass(frozen=True, slots=True, eq=False)
class Handler:
    """One registered function and what it asked for; None where the watcher's own setting applies."""

    function: Function
    name: str
    operations: frozenset[str] | None
    collections: tuple[str, ...] | None
    database: str | None
    fields: tuple[str, ...]
    manual: bool
    concurrency: int | None
    retry: RetryPolicy | None
    on_error: OnError | None
    timeout: float | None
    batch: BatchSize | None

    def concerns(self, database: str | None, collection: str | None) -> bool:
        """Tell whether any events of this collection are for this handler."""
        if self.database is not None and self.database != database:
            return False
        return self.collections is None or (
            collection is not None and any(is_like(collection, glob) for glob in self.collections)
        )

    def matches(self, database: str | None, collection: str | None, operation: str) -> bool:
        """Tell whether events of this kind are for this handler."""
        return (self.operations is None or operation in self.operations) and self.concerns(database, collection)

    def wants(self, raw: Mapping[str, Any]) -> bool:
        """Tell whether this very event is for it: with ``fields=`` an update must change one of them."""
        if not self.fields or raw.get("operationType") != "update":
            return True
        description = ChangeEvent(raw).update_description
        return description is None or any(description.changes(field) for field in self.fields)

    def overlaps(self, other: Handler) -> bool:
        """Tell whether one event could be for both, as far as a glob and a name, or one glob and another, tell."""
        return all(
            mine is None or theirs is None or any(is_like(a, b) or is_like(b, a) for a in mine for b in theirs)
            for mine, theirs in (
                (self.operations, other.operations),
                (self.collections, other.collections),
                (self.database and [self.database], other.database and [other.database]),
            )
        )


def is_like(name: str, glob: str) -> bool:
    """Match a name against a glob in which only ``*`` and ``?`` are wildcards."""
    if not is_glob(glob):
        return name == glob
    pattern = re.escape(glob).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(pattern, name, re.DOTALL) is not None


def is_glob(name: str) -> bool:
    """Tell whether the name holds wildcards."""
    return "*" in name or "?" in name


def name_of(function: Any) -> str:
    """Name a handler as dead letters carry it: ``module:qualname``."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def checked_function(function: Any, on: str) -> Function:
    if not callable(function):
        raise ConfigurationError(f"@watcher.{on}() decorates functions, not {type(function).__name__}")
    for candidate in (inspect.unwrap(function), type(function).__call__):
        if inspect.iscoroutinefunction(candidate) or inspect.isasyncgenfunction(candidate):
            raise ConfigurationError(
                f"{name_of(function)} is async: it would never run; write a plain def (greenlets wait without await)"
            )
        if inspect.isgeneratorfunction(candidate):
            raise ConfigurationError(
                f"{name_of(function)} is a generator function: it would never run; write a plain def without yield"
            )
    return function  # type: ignore[no-any-return]


def checked(
    operations: Sequence[Any], options: Mapping[str, Any], batch: BatchSize | None, own_database: str | None
) -> Handler:
    known = {"collection", "database", "fields", "ack", "concurrency", "retry", "on_error", "timeout"}
    for option in options.keys() - known:
        raise ConfigurationError(f"unknown option {option!r}: there are {', '.join(sorted(known))}")
    for operation in operations:
        if not isinstance(operation, str):
            raise ConfigurationError(
                f"operations are given one by one, not as {type(operation).__name__}: write on('insert', 'update')"
            )
        if operation not in OPERATIONS:
            raise ConfigurationError(
                f"unknown operation {operation!r}{_hint(operation)}; there are {', '.join(sorted(OPERATIONS))}"
            )
    fields = _names("fields", options.get("fields"))
    if fields and operations and "update" not in operations:
        raise ConfigurationError("fields= is about updates: add 'update' to the operations")
    check_database(options.get("database"), own_database)
    _check_choices(options)
    collections = _names("collection", options.get("collection"))
    return Handler(
        function=print,
        name="",
        operations=frozenset(operations) or None,
        collections=collections or None,
        database=options.get("database"),
        fields=fields,
        manual=options.get("ack", "auto") == "manual",
        concurrency=options.get("concurrency"),
        retry=options.get("retry"),
        on_error=options.get("on_error"),
        timeout=options.get("timeout"),
        batch=batch,
    )


def check_database(database: object, own: str | None) -> None:
    """Refuse a ``database=`` that is no name of one, or not the watcher's own."""
    if database is None:
        return
    if not isinstance(database, str) or not database or "." in database or "\0" in database:
        raise ConfigurationError(f"database= takes the name of one database, not {database!r}")
    if own is not None and database != own:
        raise ConfigurationError(
            f"database={database!r}: this watcher watches {own!r}; use a Watcher without a database for several"
        )


def _check_choices(options: Mapping[str, Any]) -> None:
    ack, on_error, retry, timeout = (options.get(name) for name in ("ack", "on_error", "retry", "timeout"))
    concurrency = options.get("concurrency")
    if concurrency is not None and not is_count(concurrency):
        raise ConfigurationError(f"concurrency must be a whole number from 1, not {concurrency!r}")
    if ack not in (None, "auto", "manual"):
        raise ConfigurationError(f"ack must be 'auto' or 'manual', not {ack!r}")
    check_on_error(on_error, none=True)
    if retry is not None and not isinstance(retry, RetryPolicy):
        raise ConfigurationError(
            f"retry must be a RetryPolicy, not {type(retry).__name__}: write RetryPolicy(max_attempts=…)"
        )
    if timeout is not None and not is_seconds(timeout, least=1e-9):
        raise ConfigurationError(f"timeout must be a number of seconds above 0, not {timeout!r}")


def check_on_error(value: object, *, none: bool = False) -> None:
    """Refuse an ``on_error`` that is no policy."""
    if value not in get_args(OnError) and not (none and value is None):
        raise ConfigurationError(f"on_error must be 'dead_letter', 'stop' or 'skip', not {value!r}")


def _names(option: str, value: object) -> tuple[str, ...]:
    names = () if value is None else (value,) if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise ConfigurationError(f"{option}= takes a name or a list of names, not {type(value).__name__}")
    names = tuple(names)
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise ConfigurationError(f"{option}= holds {name!r}, which is no name")
    if value is not None and not names:
        raise ConfigurationError(f"{option}= is an empty list, so nothing would ever match: leave it out for all")
    return names


def _hint(operation: str) -> str:
    known = {name.lower(): name for name in OPERATIONS}
    near = get_close_matches(operation.lower(), known, n=1, cutoff=0.75)
    return f": did you mean {known[near[0]]!r}?" if near else ""


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_seconds(value: object, *, least: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < float("inf")
