"""What a Watcher was told, checked as a whole."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from inspect import iscoroutinefunction, ismethod
from typing import Any, get_args

import gevent

from .client import Client, moment
from .config import URI, ChangeStreamConfig, RetryPolicy
from .errors import ConfigurationError
from .hooks import HookChain, Hooks
from .knob import key_of, knob, number, read, taken, whole
from .registration import OnError
from .stores import TokenStore
from .stores.sqlite import SQLiteStore

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _client(value: object) -> object:
    if isinstance(value, ConfigurationError):
        raise value
    # By what it does, so that tests can bring their own; to a Database every name is one of a collection.
    close = getattr(value, "close", None)
    if not isinstance(value, URI) and (not ismethod(close) or iscoroutinefunction(close)):
        raise ValueError
    return value


def _database(value: object) -> object:
    if value is not None and (not isinstance(value, str) or not value or "." in value or "\0" in value):
        raise ValueError
    if value is not None and "{" in value:
        raise ConfigurationError(
            "the server opens no cursor on exactly this name; use a Watcher without a database, and on(database=…)"
        )
    return value


def _name(value: object) -> object:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError
    return value


def _store(value: object) -> object:
    if not isinstance(value, (TokenStore, os.PathLike)):
        raise ValueError
    return value


def _among(value: object, choices: tuple[str, ...]) -> object:
    if value not in choices:
        raise ValueError
    return value


def _anything(value: object) -> object:
    return value


def chained(hooks: Iterable[Hooks]) -> HookChain:
    """Make one of many hooks.

    :raises ConfigurationError: for what is no :class:`~rigatoni.Hooks`.
    """
    if isinstance(hooks, HookChain):
        return hooks
    if not isinstance(hooks, Iterable):
        raise ConfigurationError(f"hooks are a list: write hooks=[{type(hooks).__name__}(…)]")
    hooks = tuple(hooks)
    for hook in hooks:
        if not isinstance(hook, Hooks):
            raise ConfigurationError(f"hooks must be objects of subclasses of Hooks, not of {type(hook).__name__}")
    # To gevent a timeout is no Exception.
    return HookChain(hooks, harmless=(Exception, gevent.Timeout))


def _choice(*choices: str) -> Any:
    must = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
    return knob(MISSING, must, partial(_among, choices=choices), convert=str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of a :class:`~rigatoni.Watcher`; see there.

    :param made_by: the process that made it, to tell a client that was made before a fork.
    :raises ConfigurationError: for a value that could never work.
    """

    client: URI | Client = knob(MISSING, "a URI or a MongoClient", _client, convert=URI, called="URI")
    database: str | None = knob(MISSING, "the name of a database, or None", _database)
    name: str = knob(MISSING, "letters, digits, dot, underscore and hyphen, at most 64 of them", _name)
    store: TokenStore = knob(
        MISSING, "the path of an SQLite file, or an object of a subclass of TokenStore", _store, convert=SQLiteStore
    )
    config: ChangeStreamConfig
    concurrency: int = knob(MISSING, "a whole number from 1", partial(whole, low=1))
    max_in_flight: int = knob(MISSING, "a whole number from 1", partial(whole, low=1))
    retry: RetryPolicy
    on_error: OnError = _choice(*get_args(OnError))
    save_interval: float = knob(
        MISSING, "a number of seconds from 0.001", partial(number, low=0.001, high=sys.float_info.max)
    )
    start_at: object = knob(
        MISSING, 'a way back such as 2h, "earliest", or a time with its zone', _anything, convert=moment
    )
    on_invalidate: str = _choice("resume", "stop")
    on_history_lost: str = _choice("stop", "now", "earliest")
    on_oversize: str = _choice("stub", "stop")
    hooks: HookChain = knob(MISSING, "a list of objects of subclasses of Hooks", chained, convert=str)
    made_by: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        for each in _KNOBS:
            taken(each.name, each.metadata, getattr(self, each.name), shows=True)
        for option, kind in (("config", ChangeStreamConfig), ("retry", RetryPolicy)):
            value = getattr(self, option)
            if not isinstance(value, kind):
                raise ConfigurationError(f"{option} must be a {kind.__name__}, not {type(value).__name__}")
        if self.config.resume_token is not None:
            raise ConfigurationError(
                "config.resume_token belongs to ChangeStreamListener: a Watcher keeps positions itself; "
                "use start_at=token"
            )

    @property
    def watched(self) -> str:
        """Say in words what is watched."""
        return "the whole deployment" if self.database is None else f"database {self.database!r}"


_KNOBS = [each for each in fields(Settings) if each.metadata]


def concealed(client: object) -> Any:
    """Put a URI into its object; what is wrong with it comes back too, for :class:`Settings` to raise.

    Frames that raise must not have it among their local variables, which some tools show.
    """
    try:
        return URI(client) if isinstance(client, str) else client
    except ConfigurationError as error:
        return error.with_traceback(None)


def options(mapping: Mapping[str, Any], prefix: str, known: Iterable[str]) -> dict[str, Any] | ConfigurationError:
    """Read the options of a Watcher from an environment or a Flask configuration.

    What is wrong with it comes back too, because frames that raise must not have it, which holds the URI, among their
    local variables.
    """
    parts = ((ChangeStreamConfig, prefix), (RetryPolicy, f"{prefix}RETRY_"))
    others = [key_of(each, start) for kind, start in parts for each in fields(kind)]
    try:
        values = read(_KNOBS, mapping, prefix, (*known, *others, f"{prefix}MONGOD"))
        values["config"] = ChangeStreamConfig.from_mapping(mapping, prefix, known=(f"{prefix}*",))
        values["retry"] = RetryPolicy.from_mapping(mapping, f"{prefix}RETRY_", known=(f"{prefix}*",))
    except ConfigurationError as error:
        return error.with_traceback(None)
    if values["config"].resume_token is not None:
        return ConfigurationError(
            f"{prefix}RESUME_TOKEN belongs to ChangeStreamListener: a Watcher keeps positions itself; "
            f"use {prefix}START_AT"
        )
    return values
