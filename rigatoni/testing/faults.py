"""What goes wrong on cue, in the classes and with the codes that pymongo raises."""

from __future__ import annotations

from pymongo.errors import (
    CursorNotFound,
    ExecutionTimeout,
    InvalidOperation,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
)

from rigatoni import ConfigurationError

#: What a watcher sends.
COMMANDS = ("aggregate", "getMore", "killCursors", "hello", "ping", "replSetGetConfig", "find")

#: Codes for which pymongo has a class of its own.
_NOT_PRIMARY = frozenset({91, 189, 10107, 11600, 11602, 13435, 13436})
_CLASSES: dict[int, type[OperationFailure]] = {43: CursorNotFound, 50: ExecutionTimeout}
#: Codes after which the server says that opening the stream again does not help.
_FINAL = frozenset({280, 286})
#: Official names of the codes that tests are about; the text of those where a text tells meanings apart.
_NAMES = {
    13: "Unauthorized",
    18: "AuthenticationFailed",
    43: "CursorNotFound",
    47: "NoMatchingDocument",
    50: "MaxTimeMSExpired",
    91: "ShutdownInProgress",
    136: "CappedPositionLost",
    189: "PrimarySteppedDown",
    237: "CursorKilled",
    260: "InvalidResumeToken",
    280: "ChangeStreamFatalError",
    286: "ChangeStreamHistoryLost",
    10107: "NotWritablePrimary",
    10334: "BSONObjectTooLarge",
    11600: "InterruptedAtShutdown",
    11602: "InterruptedDueToReplStateChange",
    13435: "NotPrimaryNoSecondaryOk",
    13436: "NotPrimaryOrSecondary",
}
_TEXTS = {280: "cannot resume stream; the resume token was not found."}


def failure(code: int, text: str = "") -> PyMongoError:
    """Make what pymongo raises for an error code of the server.

    :param text: the server's words; default: as a real one would put it, where that matters.
    """
    text = text or _TEXTS.get(code, "a fake server was told to fail")
    details = {"ok": 0.0, "errmsg": text, "code": code, "codeName": _NAMES.get(code, f"Location{code}")}
    if code in _FINAL:
        details["errorLabels"] = ["NonResumableChangeStreamError"]
    if code in _NOT_PRIMARY:
        return NotPrimaryError(text, details)
    return _CLASSES.get(code, OperationFailure)(text, code, details)


class Faults:
    """What the next commands are answered with instead.

    :ivar is_down: whether there is no server at all.
    """

    def __init__(self) -> None:
        self._planned: dict[str, list[BaseException | int]] = {name: [] for name in COMMANDS}
        self.is_down = False
        self.is_closed = False

    def plan(self, error: int | Exception, times: int, command: str) -> None:
        """Let commands of one name fail, after those that are planned already.

        :raises ConfigurationError: for what cannot happen.
        """
        if command not in COMMANDS:
            raise ConfigurationError(f"a watcher sends no command {command!r}: there are {', '.join(COMMANDS)}")
        if not isinstance(error, Exception) and (not isinstance(error, int) or isinstance(error, bool) or error < 1):
            raise ConfigurationError(f"error must be a code of the server or an exception, not {error!r}")
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise ConfigurationError(f"times must be a whole number from 1, not {times!r}")
        self._planned[command].extend([error] * times)

    def strike(self, command: str) -> None:
        """Raise what is due for a command, if anything is."""
        if self.is_closed:
            raise InvalidOperation("Cannot use MongoClient after close")
        if self.is_down:
            raise ServerSelectionTimeoutError("the fake server is down")
        if self._planned[command]:
            error = self._planned[command].pop(0)
            raise failure(error) if isinstance(error, int) else error
