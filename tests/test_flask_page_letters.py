"""Dead letters are replayed and discarded from the page, in the process that is asked."""

from __future__ import annotations

import html
import sys
from typing import Any

import gevent
import pytest
from conftest import wait_until
from flask import current_app
from pages import PREFIX, RUNNING, bury, form_of, page_of, text_of, watcher_with
from watchers import watchers

from rigatoni import RetryPolicy, SQLiteStore
from rigatoni.testing import make_event


def post(client: Any, id: int, what: str, **more: Any) -> Any:
    return client.post(f"{PREFIX}/letters/{id}/{what}", data={**form_of(client), **more})


def test_a_letter_shows_its_error_its_event_and_its_traceback(database: Any, mongodb_replica_set: Any) -> None:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        watcher = make(retry=RetryPolicy(max_attempts=2, initial_backoff=0.001))

        @watcher.on("insert")
        def ship(event: Any) -> None:
            raise ValueError("no parcel of this size")

        watcher.start()
        database.orders.insert_one({"_id": 7, "item": "rigatoni al forno"})
        wait_until(lambda: watcher.store.letters("default"))
        text = html.unescape(text_of(page_of(watcher)))

    for shown in ("ValueError: no parcel of this size", "ship", "2 attempts", f"insert {database.name}.orders"):
        assert shown in text
    assert '"item": "rigatoni al forno"' in text and "in ship\n    raise ValueError" in text


def test_a_replay_calls_the_handler_of_the_letter_and_discards_it() -> None:
    watcher = watcher_with(RUNNING)
    called: list[tuple[str, Any]] = []

    @watcher.on("insert")
    def ship(event: Any) -> None:
        called.append(("ship", (event.full_document["item"], current_app.name)))

    @watcher.on("insert")
    def bill(event: Any) -> None:
        called.append(("bill", event))

    id = bury(watcher, f"{__name__}:{ship.__qualname__}")
    client = page_of(watcher)

    answer = post(client, id, "replay")

    assert answer.status_code == 303 and called == [("ship", ("pasta", "harbour"))]
    assert watcher.store.letters("default") == []
    assert f"Letter {id} was replayed" in client.get(answer.location).text


@pytest.mark.parametrize("kind", [ValueError, gevent.Timeout])
def test_a_replay_that_fails_is_shown_and_the_letter_stays(kind: type[BaseException]) -> None:
    watcher = watcher_with(RUNNING)

    @watcher.on("insert")
    def ship(event: Any) -> None:
        raise kind("<b>still</b> no parcel")

    id = bury(watcher, f"{__name__}:{ship.__qualname__}")

    answer = post(page_of(watcher), id, "replay")

    assert answer.status_code == 422
    assert f"Letter {id} stays" in answer.text and "&lt;b&gt;still" in answer.text and "<b>still" not in answer.text
    assert "in ship" in answer.text and "Traceback" in answer.text
    assert [letter.id for letter in watcher.store.letters("default")] == [id]


def test_a_replay_of_a_handler_that_is_not_here_says_so_and_keeps_the_letter() -> None:
    watcher = watcher_with(RUNNING)
    id = bury(watcher, "parcels:renamed")

    answer = post(page_of(watcher), id, "replay")

    assert answer.status_code == 422 and "there is no handler" in answer.text
    assert len(watcher.store.letters("default")) == 1


def test_a_handler_that_ends_the_process_keeps_the_letter() -> None:
    watcher = watcher_with(RUNNING)

    @watcher.on("insert")
    def ship(event: Any) -> None:
        sys.exit("out of paper")

    id = bury(watcher, f"{__name__}:{ship.__qualname__}")

    with pytest.raises(SystemExit):
        post(page_of(watcher), id, "replay")
    assert len(watcher.store.letters("default")) == 1


def test_a_discarded_letter_is_gone_and_its_handler_is_not_called() -> None:
    watcher = watcher_with(RUNNING)
    called = []
    watcher.on("insert")(called.append)
    id, other = bury(watcher, "parcels:one"), bury(watcher, "parcels:other")
    client = page_of(watcher)

    answer = post(client, id, "discard", page="1")

    assert answer.status_code == 303 and called == []
    assert [letter.id for letter in watcher.store.letters("default")] == [other]
    assert f"Letter {id} was discarded" in client.get(answer.location).text


@pytest.mark.parametrize("what", ["replay", "discard"])
def test_a_letter_that_is_gone_meanwhile_is_said_to_be(what: str) -> None:
    watcher = watcher_with(RUNNING)
    id = bury(watcher)
    client = page_of(watcher)
    form = form_of(client)
    watcher.store.discard("default", id)

    answer = client.post(f"{PREFIX}/letters/{id}/{what}", data=form)

    assert answer.status_code == 404 and f"no letter {id} any more" in answer.text


def test_what_a_link_says_was_done_is_never_shown_as_it_stands() -> None:
    client = page_of(watcher_with(RUNNING))

    assert 'role="alert"' not in text_of(client, done="<b>paid</b>", id="7")
    assert 'role="alert"' not in text_of(client, done="replayed", id="<b>7</b>")


def test_a_manual_handler_and_a_batch_handler_are_replayed_too() -> None:
    watcher = watcher_with(RUNNING)
    seen: list[Any] = []

    @watcher.on("insert", ack="manual")
    def manual(event: Any) -> None:
        event.ack()
        seen.append(event.full_document["item"])

    @watcher.on_batch("insert")
    def batch(events: Any) -> None:
        seen.extend(event.full_document["item"] for event in events)

    for number, function in enumerate((manual, batch)):
        event = make_event("insert", document={"item": number}).raw
        id = bury(watcher, f"{__name__}:{function.__qualname__}", event=event)
        assert post(page_of(watcher), id, "replay").status_code == 303

    assert seen == [0, 1] and watcher.store.letters("default") == []


@pytest.mark.parametrize("id", ["0", "99999999999999999999", "x", "-1"])
@pytest.mark.parametrize("what", ["replay", "discard"])
def test_an_id_that_no_letter_can_have_is_404(id: str, what: str, store_path: str) -> None:
    watcher = watcher_with(RUNNING, SQLiteStore(store_path))
    client = page_of(watcher)
    bury(watcher)

    assert client.post(f"{PREFIX}/letters/{id}/{what}", data=form_of(client)).status_code == 404
    watcher.store.close()
