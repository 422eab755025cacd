"""What a Watcher was told, checked as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from inspect import iscoroutinefunction, ismethod
from typing import Any

import gevent

from .client import Client
from .config import URI, ChangeStreamConfig, RetryPolicy
from .errors import ConfigurationError
from .hooks import HookChain, Hooks
from .registration import OnError, check_on_error, is_count, is_seconds
from .stores import TokenStore

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_CHOICES = {
    "on_invalidate": ("resume", "stop"),
    "on_history_lost": ("stop", "now", "earliest"),
    "on_oversize": ("stub", "stop"),
}

#: Waits that a test is spared: before another attempt of a handler, and of the connection; how often it is tried there
#: is a matter of seconds, however slow the machine.
AT_ONCE: dict[str, Any] = {"initial_backoff": 0.001, "max_backoff": 0.001, "backoff_jitter": 0.0}
RECONNECTING: dict[str, Any] = {**AT_ONCE, "max_backoff": 0.01, "max_reconnect_attempts": 1000}


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of a :class:`~rigatoni.Watcher`; see there.

    :param made_by: the process that made it, to tell a client that was made before a fork.
    :raises ConfigurationError: for a value that could never work.
    """

    client: URI | Client
    database: str | None
    name: str
    store: TokenStore
    config: ChangeStreamConfig
    concurrency: int
    max_in_flight: int
    retry: RetryPolicy
    on_error: OnError
    save_interval: float
    start_at: object
    on_invalidate: str
    on_history_lost: str
    on_oversize: str
    hooks: HookChain
    made_by: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        _check_objects(self.client, self.store, self.retry)
        check_on_error(self.on_error)
        _check_names(self.name, self.database)
        _check_config(self.config)
        for option in ("concurrency", "max_in_flight"):
            if not is_count(getattr(self, option)):
                raise ConfigurationError(f"{option} must be a whole number from 1, not {getattr(self, option)!r}")
        if not is_seconds(self.save_interval, least=0.001):
            raise ConfigurationError(
                f"save_interval must be a number of seconds from 0.001, not {self.save_interval!r}"
            )
        for option, choices in _CHOICES.items():
            if getattr(self, option) not in choices:
                raise ConfigurationError(
                    f"{option} must be one of {', '.join(map(repr, choices))}, not {getattr(self, option)!r}"
                )

    @property
    def watched(self) -> str:
        """Say in words what is watched."""
        return "the whole deployment" if self.database is None else f"database {self.database!r}"

    def rehearsed(self, client: URI | Client, store: TokenStore, config: ChangeStreamConfig | None) -> Settings:
        """Change what would make a test wait, or leave something behind.

        :param config: None is the own one.
        """
        return replace(
            self,
            client=client,
            store=store,
            config=replace(self.config, **RECONNECTING) if config is None else config,
            retry=replace(self.retry, **AT_ONCE),
            save_interval=0.001,
            made_by=os.getpid(),
        )


def concealed(client: object) -> Any:
    """Put a URI into its object; what is wrong with it comes back too, for :class:`Settings` to raise.

    Frames that raise must not have it among their local variables, which some tools show.
    """
    try:
        return URI(client) if isinstance(client, str) else client
    except ConfigurationError as error:
        return error.with_traceback(None)


def chained(hooks: Iterable[Hooks]) -> HookChain:
    """Make one of many hooks.

    :raises ConfigurationError: for what is no :class:`~rigatoni.Hooks`.
    """
    if not isinstance(hooks, Iterable):
        raise ConfigurationError(f"hooks are a list: write hooks=[{type(hooks).__name__}(…)]")
    hooks = tuple(hooks)
    for hook in hooks:
        if not isinstance(hook, Hooks):
            raise ConfigurationError(f"hooks must be objects of subclasses of Hooks, not {hook!r}")
    # To gevent a timeout is no Exception.
    return HookChain(hooks, harmless=(Exception, gevent.Timeout))


def _check_objects(client: object, store: object, retry: object) -> None:
    if isinstance(client, ConfigurationError):
        raise client
    # By what it does, so that tests can bring their own; to a Database every name is one of a collection.
    close = getattr(client, "close", None)
    if not isinstance(client, URI) and (not ismethod(close) or iscoroutinefunction(close)):
        raise ConfigurationError(f"client must be a URI or a MongoClient, not {type(client).__name__}")
    if not isinstance(store, TokenStore):
        raise ConfigurationError(f"store must be a path or an object of a subclass of TokenStore, not {store!r}")
    if not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"retry must be a RetryPolicy, not {type(retry).__name__}")


def _check_names(name: str, database: str | None) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(f"name={name!r}: letters, digits, dot, underscore and hyphen, at most 64 of them")
    if database is not None and (not isinstance(database, str) or not database or "." in database or "\0" in database):
        raise ConfigurationError(f"database={database!r} is no name of a database")
    if database is not None and "{" in database:
        raise ConfigurationError(
            f"database={database!r}: the server opens no cursor on exactly this name; "
            "use a Watcher without a database, and on(database=…)"
        )


def _check_config(config: ChangeStreamConfig) -> None:
    if not isinstance(config, ChangeStreamConfig):
        raise ConfigurationError(f"config must be a ChangeStreamConfig, not {type(config).__name__}")
    if config.resume_token is not None:
        raise ConfigurationError(
            "config.resume_token belongs to ChangeStreamListener: a Watcher keeps positions itself; use start_at=token"
        )
