"""The page as the extension registers it, in one process and under gunicorn."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from conftest import wait_until
from flask import Flask, current_app
from pages import PREFIX, Stream, form_of, text_of
from serving import SHOP, gunicorn

from rigatoni import RetryPolicy, SQLiteStore, Watcher
from rigatoni.contrib.flask import Rigatoni


def test_a_letter_of_an_application_is_replayed_in_another_of_its_processes(
    database: Any, mongodb_replica_set: Any, store_path: str
) -> None:
    shipped: list[Any] = []
    mended: list[bool] = []

    def process() -> tuple[Flask, Watcher]:
        watcher = Watcher(
            mongodb_replica_set.uri, database.name, store=SQLiteStore(store_path), retry=RetryPolicy(max_attempts=1)
        )
        app = Flask("harbour")
        rigatoni = Rigatoni(app, watcher, page=PREFIX, authorize="public")

        @rigatoni.on("insert", collection="orders")
        def ship(event: Any) -> None:
            if not mended:
                raise ValueError("the warehouse is closed")
            shipped.append((event.full_document["_id"], current_app.name))

        return app, watcher

    (_, watcher), (other, idle) = process(), process()
    with watcher:
        database.orders.insert_one({"_id": 7})
        wait_until(lambda: idle.store.letters("default"))
        (letter,) = idle.store.letters("default")
        client = other.test_client()
        form = form_of(client)
        replay = f"{PREFIX}/letters/{letter.id}/replay"
        assert client.post(replay, data=form).status_code == 422
        mended.append(True)
        assert client.post(replay, data=form).status_code == 303
    assert shipped == [(7, "harbour")] and idle.store.letters("default") == []
    assert "Stopped" in text_of(client)
    idle.store.close()


#: Options of gunicorn, and whether a stream stays open.
KINDS = {
    "gevent": (("--worker-class", "gevent"), True),
    "gthread": (("--threads", "2"), True),
    "sync": ((), False),
}


def with_page(folder: Path) -> None:
    """Write down the shop with a page."""
    (folder / "shop.py").write_text(SHOP.replace("Rigatoni()", f'Rigatoni(page={PREFIX!r}, authorize="public")'))


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_page_holds_no_worker_of_any_kind(
    tmp_path: Path, mongodb_replica_set: Any, database: Any, kind: str
) -> None:
    options, stays = KINDS[kind]
    with_page(tmp_path)
    with gunicorn(tmp_path, mongodb_replica_set.uri, database.name, *options) as server:
        server.wait_for(server.active)
        streams = [Stream(server.port) for _ in range(3)]

        assert all("Running" in stream.message() for stream in streams)
        assert server.get()["state"] == "running"
        assert [bool(stream.message()) for stream in streams] == [stays, False, False]
        for stream in streams:
            stream.close()
        assert server.end() == 0


def test_every_worker_shows_the_one_that_is_active(tmp_path: Path, mongodb_replica_set: Any, database: Any) -> None:
    with_page(tmp_path)
    options = ("--worker-class", "gevent", "--workers", "3")
    with gunicorn(tmp_path, mongodb_replica_set.uri, database.name, *options) as server:
        server.wait_for(server.active)
        server.states(3)
        found: dict[bool, str] = {}

        def ask() -> bool:
            with urlopen(f"http://127.0.0.1:{server.port}{PREFIX}/", timeout=60) as answer:
                text = answer.read().decode()
            found["which stands by" in text] = text
            # The row of the one that has just become active may be a moment old.
            shown = (f"pid {server.active()} on" in text and "1 stream open" in text for text in found.values())
            return len(found) == 2 and all(shown)

        server.wait_for(ask)
        assert server.end() == 0
