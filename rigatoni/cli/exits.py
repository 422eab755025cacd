"""How a command ends: its exit code, and one line on the standard error stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import click
from click.core import ParameterSource

#: Stopped by a signal, or by whoever reads what it writes.
CLEAN_STOP = 0
#: An error that nobody foresaw (Python's own code for it), or a demo that lost something.
FAILED = 1
#: The command line is wrong, or names what is not there; click's own code for it.
USAGE = 2
#: `status` or `doctor` found a problem.
PROBLEM = 3
#: A watcher holds the name, so that its positions cannot be changed now.
HELD = 4
#: A fatal error: the codes of the categories of :class:`rigatoni.StreamError`.
CATEGORIES = {
    "configuration": 10,
    "connection": 11,
    "max_retries": 12,
    "invalid_token": 13,
    "invalidated": 14,
    "conversion": 15,
    "persistence": 16,
    "handler": 17,
}
_MEANINGS = {
    "configuration": "options, privileges or the server must change first",
    "connection": "the server cannot be reached, or breaks off",
    "max_retries": "the server stayed away",
    "invalid_token": "the oplog no longer has the position",
    "invalidated": "what is watched was dropped or renamed",
    "conversion": "an event cannot be decoded: report it",
    "persistence": "the store is not there, or cannot be read or written",
    "handler": "a handler failed",
}
#: Ctrl-C where there was nothing to stop cleanly; what shells say for SIGINT.
INTERRUPTED = 130
#: What each code means, for `rigatoni --help`.
MEANINGS = {
    CLEAN_STOP: "done, stopped, healthy",
    FAILED: "an error that nobody foresaw; a demo that lost something",
    USAGE: "the command line is wrong, or names what is not there",
    PROBLEM: "`status` or `doctor` found a problem",
    HELD: "a watcher holds the name: its positions cannot be changed now",
    **{code: f"{category:14} {_MEANINGS[category]}" for category, code in CATEGORIES.items()},
    INTERRUPTED: "interrupted, or not confirmed",
}

_PASSWORD = re.compile(r"(mongodb(?:\+srv)?://[^/?\s:@]*:)[^\s]*@")


class NotThereError(click.ClickException):
    """Raised when the command line names what is not there."""

    exit_code = USAGE


class NameHeldError(click.ClickException):
    """Raised when what is to be changed belongs to a watcher that runs."""

    exit_code = HELD


@contextmanager
def fatal_errors_end_it() -> Iterator[None]:
    """Turn a fatal error of the library into its line and exit code; enter it only after the process is patched."""
    # Here, because it imports pymongo.
    from rigatoni import StreamError

    try:
        yield
    except StreamError as error:
        text = " ".join(str(error).split())
        click.echo(f"rigatoni: {error.category}: {text}", err=True)
        raise SystemExit(CATEGORIES.get(error.category, FAILED)) from error


def warn_of_password(context: click.Context, uri: str | None, parameter: str = "uri") -> None:
    """Say it when a connection string with a password stands among the arguments of the process.

    :param parameter: that took it.
    """
    if uri and context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE and has_password(uri):
        say("other users can see a password among the arguments of a process: put the URI into RIGATONI_URI")


def say(text: str) -> None:
    """Write a line for a person, beside the output."""
    click.echo(f"rigatoni: {text}", err=True)


def has_password(text: str) -> bool:
    """Tell whether the text holds a connection string with a password."""
    return _PASSWORD.search(text) is not None


def masked(text: str) -> str:
    """Give the text without the passwords of connection strings in it."""
    return _PASSWORD.sub(r"\1***@", text)
