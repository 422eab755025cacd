"""Python and the libraries here."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from logging.handlers import QueueHandler
from queue import SimpleQueue

from .finding import Finding, note, ok, problem, warning

#: Below this, a greenlet that is killed inside pymongo can leave a lock held for ever (PYTHON-6074).
_SAFE_PYMONGO = (4, 19)


def examine_program() -> Iterator[Finding]:
    """Look at versions, at what is compiled, at the environment, and say what patching does."""
    yield _examine_pymongo()
    yield ok("gevent", f"{version('gevent')} on Python {platform.python_version()}")
    yield from _examine_environment()
    yield note(
        "patching",
        "`rigatoni run` patches the process itself; elsewhere an unpatched watcher has a thread of its own, where "
        "concurrency and timeout= have no effect on handlers that block",
        "gevent.monkey.patch_all() before all other imports, or gunicorn -k gevent",
    )


def _examine_pymongo() -> Finding:
    import bson
    import pymongo

    text = f"{pymongo.version}"
    if not (bson.has_c() and pymongo.has_c()):
        mend = "pip install --force-reinstall --only-binary :all: pymongo"
        return warning("pymongo", f"{text} is without its C extensions: several times slower", mend)
    if pymongo.version_tuple[:2] < _SAFE_PYMONGO:
        hint = "a greenlet of the program that is killed inside pymongo can leave a lock held (PYTHON-6074)"
        newer = (
            "pip install -U pymongo"
            if sys.version_info >= (3, 11)
            else "Python 3.11 or later, which pymongo 4.19 needs"
        )
        return note("pymongo", f"{text}: {hint}; rigatoni itself kills none there", newer)
    return ok("pymongo", text)


def _examine_environment() -> Iterator[Finding]:
    from rigatoni import ConfigurationError, Watcher

    told = SimpleQueue[logging.LogRecord]()
    logging.getLogger("rigatoni.knob").addHandler(QueueHandler(told))
    try:
        Watcher.from_mapping(os.environ)
    except ConfigurationError as error:
        yield problem("environment", str(error), "correct or unset it")
    while not told.empty():
        # Only the names of unknown settings are logged there.
        yield warning("environment", told.get().getMessage(), "correct or unset them")
