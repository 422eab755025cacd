"""Every knob with its default, unit and check; and the URI, in an object that shows hosts only."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote_plus

from .errors import ConfigurationError
from .knob import SECONDS, choice, collation, exceptions, flag, key_of, knob, number, read, stages, taken, token, whole

T = TypeVar("T", bound="_Backoff")

#: 2.0 ** 1024 is an OverflowError, and no delay needs so many doublings.
_DOUBLINGS = 1023
#: What else stands in an environment: the options of a Watcher, which is not known here, and RIGATONI_MONGOD.
_OTHERS = (
    *("URI", "DATABASE", "NAME", "STORE", "CONCURRENCY", "MAX_IN_FLIGHT", "SAVE_INTERVAL", "START_AT", "HOOKS"),
    *("ON_ERROR", "ON_INVALIDATE", "ON_HISTORY_LOST", "ON_OVERSIZE", "MONGOD"),
)


@dataclass(frozen=True, kw_only=True)
class _Backoff:
    initial_backoff: float = knob(0.1, "a number of seconds above 0", SECONDS)
    max_backoff: float = knob(30.0, "a number of seconds above 0", SECONDS)
    backoff_jitter: float = knob(0.1, "a number from 0 to 1, the width of the spread", partial(number, low=0, high=1))

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, taken(each.name, each.metadata, getattr(self, each.name)))
        if self.initial_backoff > self.max_backoff:
            raise ConfigurationError("initial_backoff must not be above max_backoff: lower the one or raise the other")

    def backoff(self, attempt: int) -> float:
        """Compute how long to wait, in seconds, after an attempt failed.

        ``min(initial_backoff * 2 ** (attempt - 1), max_backoff)`` plus or minus up to half of `backoff_jitter` of it.

        :param attempt: the number of the failed attempt, from 1.
        """
        delay = min(self.initial_backoff * 2.0 ** min(attempt - 1, _DOUBLINGS), self.max_backoff)
        return delay * (1 + self.backoff_jitter * (random.random() - 0.5))


@dataclass(frozen=True, kw_only=True)
class ChangeStreamConfig(_Backoff):
    """Say how a change stream is opened and reopened. What is passed in is copied; times are float seconds.

    :param pipeline: stages behind ``$changeStream``; they must leave ``_id`` alone. A Watcher refuses
        ``$changeStreamSplitLargeEvent``, for its handlers take whole events.
    :param full_document: "updateLookup", "whenAvailable", "required" or "default"; None: updates come without it.
    :param full_document_before_change: "off", "whenAvailable" or "required"; None is "off".
    :param show_expanded_events: also create, createIndexes and the like; default False.
    :param batch_size: events asked for at once, at most; default 1000.
    :param max_await_time: how long the server may wait for an event before it answers, in seconds; default 1.
    :param resume_token: where a listener goes on; default: from now. A Watcher has ``start_at``.
    :param initial_backoff: the wait before the first attempt to reconnect, in seconds; default 0.1.
    :param max_backoff: the longest wait, in seconds; default 30.
    :param max_reconnect_attempts: attempts in a row before it gives up; default 5, 0 is for ever.
    :param backoff_jitter: the spread of a wait as a share of it, 0 to 1; default 0.1.
    :param collation: a collation document, or pymongo's Collation.
    :param comment: shown with the cursor in the server's logs and ``$currentOp``.
    :raises ConfigurationError: for a value that can never work; the message does not hold the value.

    https://www.mongodb.com/docs/manual/reference/operator/aggregation/changeStream/
    """

    pipeline: Sequence[Mapping[str, Any]] = knob(
        (), 'a sequence of stages such as [{"$match": …}], in text as JSON and without JavaScript', stages
    )
    full_document: str | None = knob(
        None,
        '"updateLookup", "whenAvailable", "required", "default" or None',
        partial(choice, choices=("updateLookup", "whenAvailable", "required", "default")),
    )
    full_document_before_change: str | None = knob(
        None,
        '"off", "whenAvailable", "required" or None',
        partial(choice, choices=("off", "whenAvailable", "required")),
    )
    show_expanded_events: bool = knob(False, "True or False", flag)
    batch_size: int = knob(1000, "a whole number from 1", partial(whole, low=1))
    max_await_time: float = knob(1.0, "a number of seconds above 0", SECONDS)
    resume_token: Mapping[str, Any] | None = knob(
        None, "a whole resume token: the mapping with _data that an event carries, or None", token, repr=False
    )
    max_reconnect_attempts: int = knob(5, "a whole number from 0, which is for ever", partial(whole, low=0))
    collation: Mapping[str, Any] | None = knob(None, 'a mapping such as {"locale": "fr"}, or None', collation)
    comment: Any = knob(None, "a value that BSON knows, in text as JSON ('\"nightly\"')", deepcopy)

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], prefix: str = "RIGATONI_", *, known: Iterable[str] = ()
    ) -> ChangeStreamConfig:
        """Build from an environment or a Flask configuration: ``RIGATONI_BATCH_SIZE`` is `batch_size`.

        Text is converted by the field's type (pipeline, collation, comment and resume token are JSON); an empty text
        counts as not set. Names that rigatoni does not know are left alone, and listed in one WARNING, so that
        misspelt ones are found.

        :param known: further whole names that may stand there; ``*`` stands for anything (``"RIGATONI_MY_*"``).
        :raises ConfigurationError: naming the key, never the value.
        """
        others = [prefix + name for name in _OTHERS] + [key_of(each, f"{prefix}RETRY_") for each in fields(RetryPolicy)]
        return _from_mapping(cls, mapping, prefix, (*known, *others))


@dataclass(frozen=True, kw_only=True)
class RetryPolicy(_Backoff):
    """Say how often and when a failed handler is called again.

    :param max_attempts: calls in all; default 3, 0 is for ever.
    :param initial_backoff: the wait after the first failure, in seconds; default 0.1.
    :param max_backoff: the longest wait, in seconds; default 30.
    :param backoff_jitter: the spread of a wait as a share of it, 0 to 1; default 0.1.
    :param retry_on: an exception class (default Exception, timeouts too) or a tuple of them; other failures are final.
    :raises ConfigurationError: for a value that can never work.
    """

    max_attempts: int = knob(3, "a whole number from 0, which is for ever", partial(whole, low=0))
    retry_on: type[BaseException] | tuple[type[BaseException], ...] = knob(
        Exception, "an exception class or a tuple of them, not text", exceptions
    )

    @classmethod
    def from_mapping(
        cls, mapping: Mapping[str, Any], prefix: str = "RIGATONI_RETRY_", *, known: Iterable[str] = ()
    ) -> RetryPolicy:
        """Build from an environment or a Flask configuration; see :meth:`ChangeStreamConfig.from_mapping`."""
        return _from_mapping(cls, mapping, prefix, known)


def _from_mapping(cls: type[T], mapping: Mapping[str, Any], prefix: str, known: Iterable[str]) -> T:
    values = read(fields(cls), mapping, prefix, known)
    try:
        return cls(**values)
    except ConfigurationError as error:
        concerned = ", ".join(key_of(each, prefix) for each in fields(cls) if each.name in str(error))
        raise ConfigurationError(f"{error} ({concerned})") from None


_SCHEME = re.compile(r"mongodb(\+srv)?://")
_HOST = re.compile(r"(\[[\w:.%]+\]|[\w.%-]+)(:\d+)?")


class URI:
    """Hold a connection string so that printing, formatting, inspecting or pickling it never shows the password.

    :ivar hosts: the servers as ``host:port`` text, as they stand in the string.
    :ivar database: the database that it names, or None.
    :param text: ``mongodb://…`` or ``mongodb+srv://…``.
    :raises ConfigurationError: for another scheme, without hosts, or where user name and password cannot be told from
        hosts for sure; the message does not hold the text.

    https://www.mongodb.com/docs/manual/reference/connection-string/
    """

    def __init__(self, text: str) -> None:
        self.hosts, self.database, mistake = _parse(text)
        if mistake:
            # A traceback that shows local variables would show the password.
            del text
            raise ConfigurationError(mistake)
        self._reveal: Callable[[], str] = lambda: text

    def reveal(self) -> str:
        """Give the whole text, with the password, to the one who connects."""
        return self._reveal()

    def __str__(self) -> str:
        return ",".join(self.hosts)

    def __repr__(self) -> str:
        return f"<URI {self}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a URI is not pickled, that would show its password: pass the text by the environment")


def _parse(text: object) -> tuple[tuple[str, ...], str | None, str | None]:
    """Split into hosts, database and, instead, the mistake."""
    scheme = _SCHEME.match(text) if isinstance(text, str) else None
    if scheme is None or not isinstance(text, str):
        return (), None, "a URI is text that begins with mongodb:// or mongodb+srv://"
    authority = re.split("[/?]", text[scheme.end() :], maxsplit=1)[0]
    rest = text[scheme.end() + len(authority) :]
    if "@" in rest:
        # Else what follows an unescaped / of a password would be taken for a database, and what precedes it for a host.
        return (), None, "the URI has an @ behind its hosts: escape user name and password by urllib.parse.quote_plus"
    hosts = tuple(authority.rpartition("@")[2].split(","))
    if not all(map(_HOST.fullmatch, hosts)):
        return (), None, "the URI names no hosts that can be read: write mongodb://user:password@host:27017/"
    name = rest.partition("?")[0].removeprefix("/").partition(".")[0]
    return hosts, unquote_plus(name) or None, None
