"""gunicorn: in each worker the watcher starts when the application is loaded, and stops when the worker ends.

For a Flask application with a :class:`rigatoni.contrib.flask.Rigatoni`, in ``gunicorn.conf.py``::

    from rigatoni.contrib.gunicorn import post_worker_init, worker_exit

For any other one, WSGI or ASGI, name the watchers::

    from rigatoni.contrib.gunicorn import hooks

    post_worker_init, worker_exit = hooks("shop.handlers:watcher")

Of all workers one is active, the others stand by. Every worker class will do; under gevent's the watcher shares the
hub with the requests, else it has a thread of its own.

Importing this imports neither gevent nor pymongo, because that file is read before the gevent worker patches.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rigatoni import Watcher

#: Seconds that running handlers get at most when a worker ends.
STOPPING = 10.0
#: Of the time after which gunicorn kills a worker, the share that running handlers get; requests had theirs before.
SHARE = 0.5

_TARGET = re.compile(r"[\w.]+:[\w.]+")
_IDLE = ("created", "stopped", "failed")


def hooks(*targets: str) -> tuple[Callable[[Any], None], Callable[[Any, Any], None]]:
    """Make the hooks ``post_worker_init`` and ``worker_exit`` of gunicorn.

    The first one starts watchers and does not wait for them: without a server the application serves all the same, and
    the watcher keeps trying as its ``max_reconnect_attempts`` say. What keeps one from starting is logged by gunicorn
    and does the worker no harm. The second one stops them, within half of gunicorn's ``graceful_timeout`` and
    ``timeout``, at most 10 s.

    :param targets: watchers, or Flask extensions, as ``module:name``; imported in the worker. None: the one of the
        Flask application that gunicorn loaded.
    :raises ValueError: for a target that is no such text.
    """
    for target in targets:
        if not _TARGET.fullmatch(target):
            raise ValueError(f"{target!r} names no watcher: write module:name, such as shop.handlers:watcher")
    made = _Hooks(targets)
    return made.post_worker_init, made.worker_exit


class _Hooks:
    def __init__(self, targets: Sequence[str]) -> None:
        self._targets = targets
        self._started: list[Watcher] = []

    def post_worker_init(self, worker: Any) -> None:
        try:
            for watcher in map(_imported, self._targets) if self._targets else [_of_application(worker.app.callable)]:
                self._started.append(watcher)
                if watcher.state in _IDLE:
                    watcher.start(timeout=0)
        except Exception:
            worker.log.exception("rigatoni: this worker starts without a watcher")

    def worker_exit(self, server: Any, worker: Any) -> None:
        # gunicorn may call it in the master too, where nothing was started.
        patience = min(STOPPING, SHARE * worker.cfg.graceful_timeout, SHARE * (worker.cfg.timeout or inf))
        for watcher in self._started:
            watcher.stop(patience / len(self._started))


post_worker_init, worker_exit = hooks()


def _of_application(application: Any) -> Watcher:
    extension = getattr(application, "extensions", {}).get("rigatoni")
    if extension is None:
        raise LookupError(
            f"{application!r} is no Flask application with a Rigatoni extension: for others write "
            'post_worker_init, worker_exit = rigatoni.contrib.gunicorn.hooks("module:watcher")'
        )
    with application.app_context():
        watcher: Watcher = extension.watcher
    return watcher


def _imported(target: str) -> Watcher:
    module, _, path = target.partition(":")
    found = operator.attrgetter(path)(import_module(module))
    watcher: Watcher = getattr(found, "watcher", found)
    return watcher
