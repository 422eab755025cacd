"""Every exception, by who must act.

::

    StreamError                                 category       who acts
    ├── ConfigurationError                      configuration  the programmer
    ├── StreamConnectionError                   connection     nobody while it is retryable
    ├── MaxReconnectAttemptsExceededError       max_retries    the operator: the server is away
    ├── InvalidResumeTokenError                 invalid_token  the operator: the oplog no longer has it
    ├── StreamInvalidatedError                  invalidated    the operator: dropped or renamed
    ├── ConversionError                         conversion     a bug report
    ├── ResumeTokenPersistenceError             persistence    the operator: disk, permissions
    └── HandlerError                            handler        the programmer of the handler

:meth:`StreamError.from_pymongo` turns what pymongo and bson raise into one of these; the predicates take either kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from bson.errors import BSONError, InvalidDocument, InvalidStringData
from pymongo import errors as driver

from . import codes

_ID_MODIFIED = "modified by the pipeline"
_CANCELLED = "operation cancelled"  # by the driver's monitor, which closes every connection to a silent server
_NOT_READY = "Sessions are not supported"
_NOT_FOUND = "resume token was not found"
_NO_IMAGE = "-image was not found "  # "for event: ", with its operation, collection and time, and no values
_NAMES_TOKEN = re.compile("resume ?token|resumeAfter|startAfter", re.IGNORECASE)
_HINTS_AT_TOKEN = re.compile("KeyString|token type", re.IGNORECASE)
_MISUSES = (driver.ConfigurationError, driver.InvalidName, driver.CollectionInvalid)
_UNDERSTOOD = codes.RESUMABLE_CODES | codes.OVERSIZE_CODES | codes.CONFIGURATION_CODES | {None}


class StreamError(Exception):
    """Stand for everything that rigatoni raises.

    :param code: the server's error code; None when it did not come from the server.
    :param labels: the server's error labels.
    """

    category: ClassVar[str] = "stream"
    is_retryable: bool = False

    def __init__(self, message: str = "", *, code: int | None = None, labels: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.labels = frozenset(labels)

    @staticmethod
    def from_pymongo(exc: BaseException, *, resuming: bool = False) -> StreamError:
        """Classify what pymongo or bson raised: by code, then label, then class; a StreamError comes back as it is.

        The message gives class, code and labels but not the server's text, which can hold a whole command: raise it
        ``from exc``. An unknown code is retryable, but only a few times.

        :param resuming: the failed command carried a resume token, so a text that only hints at one speaks of it.
        """
        return exc if isinstance(exc, StreamError) else _Failure(exc, resuming).classified()


class ConfigurationError(StreamError):
    """Raised when options, pipeline, privileges or the server's set-up must change first."""

    category = "configuration"


class StreamConnectionError(StreamError):
    """Raised when the server cannot be reached or breaks off the stream.

    :param is_retryable: opening the stream again can help.
    :param is_known: False for an error that nobody here knows, so that its attempts are bounded.
    """

    category = "connection"

    def __init__(
        self,
        message: str = "",
        *,
        code: int | None = None,
        labels: Iterable[str] = (),
        is_retryable: bool = True,
        is_known: bool = True,
    ) -> None:
        super().__init__(message, code=code, labels=labels)
        self.is_retryable = is_retryable
        self.is_known = is_known


class MaxReconnectAttemptsExceededError(StreamError):
    """Raised when the server stayed away.

    :param attempts: how many attempts to connect failed.
    """

    category = "max_retries"

    def __init__(self, message: str = "", *, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class InvalidResumeTokenError(StreamError):
    """Raised when the stream cannot go on from its position: lost by the oplog, damaged, or of another stream."""

    category = "invalid_token"


class StreamInvalidatedError(StreamError):
    """Raised when what is watched was dropped or renamed.

    :param reason: the operation that did it, such as "drop".
    """

    category = "invalidated"

    def __init__(self, message: str = "", *, reason: str = "invalidate") -> None:
        super().__init__(message)
        self.reason = reason


class ConversionError(StreamError):
    """Raised when what the server sent cannot be decoded."""

    category = "conversion"


class ResumeTokenPersistenceError(StreamError):
    """Raised when positions or dead letters cannot be stored or read."""

    category = "persistence"


class HandlerError(StreamError):
    """Raised when a handler failed for good and its ``on_error`` is "stop", or was ended by what is no Exception.

    :param event: the event it failed on; None when a greenlet of the watcher was killed.
    """

    category = "handler"

    def __init__(self, message: str = "", *, event: Any = None) -> None:
        super().__init__(message)
        self.event = event


class _Failure:
    """What pymongo or bson raised, taken apart."""

    def __init__(self, exc: BaseException, resuming: bool) -> None:
        found = getattr(exc, "details", None)
        details: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        # NotPrimaryError is an AutoReconnect: it has its code in the details only.
        code = getattr(exc, "code", None) or details.get("code")
        self.exc = exc
        self.resuming = resuming
        self.code = code if isinstance(code, int) else None
        self.labels = [label for label in map(str, details.get("errorLabels", ())) if label.isidentifier()]
        self.text = str(details.get("errmsg") or exc)
        name = str(details.get("codeName", ""))
        self.name = name if name.isidentifier() else ""
        if isinstance(exc, driver.PyMongoError) and exc.has_error_label(codes.RESUMABLE_LABEL):
            self.labels = sorted({*self.labels, codes.RESUMABLE_LABEL})

    def classified(self) -> StreamError:
        return self._by_code() or self._by_label() or self._by_class()

    def _by_code(self) -> StreamError | None:
        code = self.code
        if code in codes.HISTORY_LOST_CODES:
            mend = 'make the oplog larger, or go on with a gap by on_history_lost="now" or "earliest"'
            return self._lost(f"the oplog no longer holds what comes after this position: {mend}")
        if code in codes.FATAL_CODES:
            return self._fatal()
        if self._blames_token():
            mend = "delete the stored position and choose where to begin by start_at"
            return self._lost(
                f"the server cannot read the resume token, it is damaged or of another server version: {mend}"
            )
        if code in codes.OVERSIZE_CODES:
            mend = 'a Watcher with on_oversize="stub" gets it without images, a listener by a stage that unsets them'
            return self._broken(f"an event is over 16 MB, so the server cannot send it: {mend}", is_retryable=False)
        if code in codes.CONFIGURATION_CODES:
            return self._wrong(codes.MENDS.get(code or 0, codes.MEND))
        return self._broken("the stream was interrupted") if code in codes.RESUMABLE_CODES else None

    def _by_label(self) -> StreamError | None:
        if codes.RESUMABLE_LABEL in self.labels:
            return self._broken("the stream was interrupted")
        if codes.NON_RESUMABLE_LABEL in self.labels:
            return self._broken("the server ended the stream for good", is_retryable=False)
        return None

    def _by_class(self) -> StreamError:
        exc = self.exc
        if isinstance(exc, driver.WaitQueueTimeoutError):
            return self._broken("no connection was free: raise maxPoolSize, each stream holds one while it waits")
        if isinstance(exc, (driver.ConnectionFailure, driver.ProtocolError)):
            # Hosts and reasons, no command; the description of the topology that follows says nothing more.
            reason = "" if self.code else ": " + _printable(self.text.partition(", Timeout:")[0])
            reason = reason.replace(_CANCELLED, "it did not answer the driver's heartbeats")
            return self._broken(f"the server cannot be reached{reason}")
        if isinstance(exc, driver.InvalidOperation):
            return self._broken("the client was closed or misused: keep it open while watching", is_retryable=False)
        if _NOT_READY in self.text:
            return self._broken("a member that has just begun, or has no set yet: rs.initiate()", is_known=False)
        if isinstance(exc, _MISUSES):
            return self._wrong(
                "pymongo refuses the URI, a name or an option: correct what the exception behind this one complains of"
            )
        if isinstance(exc, (InvalidDocument, InvalidStringData)):
            return self._wrong("the pipeline or an option holds what BSON cannot: use the types of the bson package")
        if isinstance(exc, BSONError):
            return ConversionError(f"what the server sent cannot be decoded: {self._told()}")
        return self._broken("an error that is unknown here; after a few attempts the stream stops", is_known=False)

    def _fatal(self) -> StreamError:
        if _ID_MODIFIED in self.text:
            return self._wrong("a stage of the pipeline changes or removes _id, which is the resume token: keep it")
        if _NOT_FOUND in self.text:
            mend = "its event does not pass the pipeline, or is of another collection; begin at its time by start_at"
            return self._lost(f"the {_NOT_FOUND}: {mend}")
        return self._lost("the server cannot go on with this stream: choose where to begin by start_at")

    def _blames_token(self) -> bool:
        if self.code in codes.TOKEN_CORRUPT_CODES:
            return True
        if self.code in _UNDERSTOOD - codes.AMBIGUOUS_CODES:
            return False
        # In doubt it is not the token: who deletes a position without need loses events.
        hinted = self.resuming and _HINTS_AT_TOKEN.search(self.text)
        return bool(hinted or _NAMES_TOKEN.search(self.text))

    def _wrong(self, message: str) -> ConfigurationError:
        return ConfigurationError(f"{message} ({self._told()})", code=self.code, labels=self.labels)

    def _lost(self, message: str) -> InvalidResumeTokenError:
        return InvalidResumeTokenError(f"{message} ({self._told()})", code=self.code, labels=self.labels)

    def _broken(self, message: str, *, is_retryable: bool = True, is_known: bool = True) -> StreamConnectionError:
        told = f"{message} ({self._told()})"
        return StreamConnectionError(
            told, code=self.code, labels=self.labels, is_retryable=is_retryable, is_known=is_known
        )

    def _told(self) -> str:
        code = f"code {self.code}" if self.code else ""
        event = _printable(self.text.partition(_NO_IMAGE)[2]) if self.code in codes.NO_IMAGE_CODES else ""
        return " ".join(filter(None, [type(self.exc).__name__, code, self.name, *self.labels, event]))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:300]


def is_resumable(error: BaseException) -> bool:
    """Tell whether the stream was interrupted, so that opening it again helps."""
    found = StreamError.from_pymongo(error)
    return isinstance(found, StreamConnectionError) and found.is_retryable and found.is_known


def is_unknown(error: BaseException) -> bool:
    """Tell whether nobody here knows the error: retryable, but only a few times."""
    found = StreamError.from_pymongo(error)
    return isinstance(found, StreamConnectionError) and not found.is_known


def is_history_lost(error: BaseException) -> bool:
    """Tell whether the oplog no longer holds what comes after the position."""
    found = StreamError.from_pymongo(error)
    return isinstance(found, InvalidResumeTokenError) and found.code in codes.HISTORY_LOST_CODES


def is_token_not_found(error: BaseException) -> bool:
    """Tell whether the event of the resume token is not in this stream, so that its cluster time is the way on."""
    found = StreamError.from_pymongo(error)
    return isinstance(found, InvalidResumeTokenError) and found.code in codes.FATAL_CODES and _NOT_FOUND in str(found)


def is_token_corrupt(error: BaseException) -> bool:
    """Tell whether the server cannot read the resume token."""
    found = StreamError.from_pymongo(error)
    others = codes.HISTORY_LOST_CODES | codes.FATAL_CODES
    return isinstance(found, InvalidResumeTokenError) and found.code is not None and found.code not in others


def is_oversize(error: BaseException) -> bool:
    """Tell whether an event is too large for the server to send."""
    return StreamError.from_pymongo(error).code in codes.OVERSIZE_CODES


def is_configuration(error: BaseException) -> bool:
    """Tell whether options, pipeline, privileges or the server's set-up must change first."""
    return isinstance(StreamError.from_pymongo(error), ConfigurationError)
