"""One application and its watcher."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from flask import Flask, request

from rigatoni import StreamError, Watcher

#: Seconds that the first request waits for the watcher, so that it sees what this request changes.
FIRST_REQUEST = 2.0


class Binding:
    """An application, its watcher, and the handlers that run inside the application."""

    def __init__(self, app: Flask, watcher: Watcher) -> None:
        self.app = app
        self.watcher = watcher
        self._inside: list[tuple[Callable[..., object], Callable[..., object]]] = []
        # Acquired by the first request and never released.
        self._first = threading.Lock()

    def inside(self, function: Callable[..., object]) -> Callable[..., object]:
        """Give the function that runs it in the application's context: always the same one, of the same name."""
        for known, wrapper in self._inside:
            if known == function:
                return wrapper

        def inside(events: Any) -> object:
            with self.app.app_context():
                return function(events)

        update_wrapper(inside, _named(function)).__wrapped__ = function
        self._inside.append((function, inside))
        return inside

    def start_with_first_request(self) -> None:
        """Start on the development server, which is told by its name; the test client has none.

        Not on one that forks for each request: what is started there ends with the request.
        """
        environ = request.environ
        is_development = environ.get("SERVER_SOFTWARE", "").startswith("Werkzeug/") and not environ["wsgi.multiprocess"]
        if is_development and self.watcher.state == "created" and self._first.acquire(blocking=False):
            try:
                self.watcher.start(FIRST_REQUEST)
            except StreamError as error:
                # What a watcher fails with it has logged itself.
                if error is not self.watcher.error:
                    self.app.logger.error("the watcher %r does not start: %s", self.watcher.name, error)


def _named(function: Any) -> Any:
    """Find what names a handler: partials and objects that are called have no name of their own."""
    while isinstance(function, partial):
        function = function.func
    return function if hasattr(function, "__qualname__") else type(function)
