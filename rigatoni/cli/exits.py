"""How a command ends: its exit code, and one line on the standard error stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

#: Stopped by a signal, or by whoever reads what it writes.
CLEAN_STOP = 0
#: An error that nobody foresaw (Python's own code for it), or a demo that lost something.
FAILED = 1
#: The command line is wrong; click's own code for it.
USAGE = 2
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
#: Ctrl-C where there was nothing to stop cleanly; what shells say for SIGINT.
INTERRUPTED = 130

_PASSWORD = re.compile(r"(mongodb(?:\+srv)?://[^/?\s:@]*:)[^\s]*@")


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


def has_password(text: str) -> bool:
    """Tell whether the text holds a connection string with a password."""
    return _PASSWORD.search(text) is not None


def masked(text: str) -> str:
    """Give the text without the passwords of connection strings in it."""
    return _PASSWORD.sub(r"\1***@", text)
