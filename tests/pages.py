"""The live page of a watcher, in a Flask application of its own."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import make_server

from rigatoni import DeadLetter, MemoryStore, TokenStore, Watcher
from rigatoni.contrib.flask.guard import FIELD
from rigatoni.contrib.flask.page import blueprint
from rigatoni.testing import make_event

PREFIX = "/rigatoni"
#: What a store holds of a watcher that is well; the store adds ``saved_at``.
RUNNING: dict[str, Any] = {
    **{"name": "default", "host": "harbour", "pid": 4711, "since": 1.0, "state": "running"},
    **{"received": 12_345, "handled": 12_300, "failed": 45, "retried": 30, "dead_lettered": 15, "reconnects": 2},
    **{"in_flight": 7, "lag": 0.25, "headroom": 86_400, "streams": {}},
}
STREAM: dict[str, Any] = {**RUNNING, "state": "active", "catching_up": False}


def page_of(watcher: Watcher, authorize: Any = "public", **config: Any) -> FlaskClient:
    """Give a client of an application that has nothing but this watcher's page."""
    return application(watcher, authorize, **config).test_client()


def application(watcher: Watcher, authorize: Any = "public", **config: Any) -> Flask:
    """Make such an application; its configuration has no secret key."""
    app = Flask("harbour")
    app.config.update(config)
    app.register_blueprint(blueprint(lambda: watcher, authorize), url_prefix=PREFIX)
    return app


@contextmanager
def served(watcher: Watcher, **options: Any) -> Iterator[int]:
    """Serve the page of a watcher with Flask's development server; gives its port."""
    server = make_server("127.0.0.1", 0, application(watcher), **options)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def health(port: int) -> tuple[int, str]:
    """Ask a server how its watcher is, as a probe does; gives the code and the text."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{PREFIX}/health", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode()


def watcher_with(row: dict[str, Any] | None = None, store: TokenStore | None = None) -> Watcher:
    """Make a watcher that does not run, and the row of one that does."""
    watcher = Watcher(store=MemoryStore() if store is None else store)
    if row is not None:
        watcher.store.save("default", {}, row)
    return watcher


def text_of(client: FlaskClient, path: str = "/", **query: Any) -> str:
    """Give the page's HTML, which must have come well."""
    answer = client.get(PREFIX + path, query_string=query)
    assert answer.status_code == 200
    return answer.text


def bury(watcher: Watcher, handler: str = "parcels:ship", **said: Any) -> int:
    """Keep a dead letter and return its id."""
    event = said.pop("event", None) or make_event("insert", "orders", "shop", {"item": "pasta"}).raw
    told = {"error": "ValueError: no such parcel", "traceback": "", "attempts": 3, "buried_at": 1.0, **said}
    watcher.store.bury("default", DeadLetter(None, handler, event, **told))
    (*_, letter) = watcher.store.letters("default")
    assert letter.id is not None
    return letter.id


def form_of(client: FlaskClient) -> dict[str, str]:
    """Load the page as a browser does, and give the fields of its forms."""
    found = re.search(rf'name="{FIELD}" value="([^"]+)"', text_of(client))
    assert found is not None
    return {FIELD: found[1]}


class Stream:
    """A browser's end of a stream."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)
        self._connection.request("GET", f"{PREFIX}/events")
        self.answer = self._connection.getresponse()

    def message(self) -> str:
        """Wait for the next message; empty at the end."""
        lines = iter(self.answer.readline, b"")
        return b"".join(iter(lambda: next(lines, b"\n"), b"\n")).decode()

    def close(self) -> None:
        self.answer.close()
        self._connection.close()
