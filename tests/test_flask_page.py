"""The live page shows what the store says of a watcher, whoever wrote it."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from bson import Timestamp
from conftest import wait_until
from pages import PREFIX, RUNNING, STREAM, bury, page_of, text_of, watcher_with
from watchers import collecting, failing, watchers

from rigatoni import HandlerError, Position, RetryPolicy, SQLiteStore, Watcher
from rigatoni.contrib.flask.text import SHOWN
from rigatoni.contrib.flask.verdict import verdict
from rigatoni.contrib.flask.view import LETTERS, STREAMS
from rigatoni.testing import make_event

HOSTILE = "<script>alert(1)</script>\n\"'&\u202e\x1b[31m"


def row_with(streams: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**RUNNING, **more, "streams": streams}


# -- a real watcher


def test_it_shows_a_running_watcher_and_the_same_from_a_process_that_stands_by(
    database: Any, mongodb_replica_set: Any, store_path: str
) -> None:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        watcher = make(store=store_path)
        seen = collecting(watcher, "insert")
        watcher.start()
        database.orders.insert_many([{"_id": number} for number in range(3)])
        other = Watcher("mongodb://127.0.0.1:9", store=SQLiteStore(store_path))
        wait_until(lambda: len(seen) == 3 and watcher.store.status("default")["handled"] == 3)

        shown = [text_of(page_of(each)) for each in (watcher, other)]
        other.store.close()

    for text in shown:
        assert "Running" in text and "1 stream open" in text
        assert "<dt>Handled</dt><dd>3</dd>" in text
        assert text.count(f"<code>{database.name}</code>") == 2
    assert "where the watcher is running" in shown[0] and "where the watcher is not started" in shown[1]


def test_of_a_token_it_shows_the_beginning_only(database: Any, mongodb_replica_set: Any) -> None:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        watcher = make()
        collecting(watcher, "insert")
        watcher.start()
        (position,) = watcher.store.load("default").values()
        text = text_of(page_of(watcher))

    token = position.token["_data"]
    assert token[:10] in text and token not in text


def test_it_says_why_a_watcher_failed(database: Any, mongodb_replica_set: Any) -> None:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        watcher = failing(make(retry=RetryPolicy(max_attempts=1)))
        watcher.start()
        database.orders.insert_one({})
        with pytest.raises(HandlerError):
            watcher.join(60)
        text = html.unescape(text_of(page_of(watcher)))

    assert "Failed" in text and "HandlerError(" in text and "start the process again" in text
    assert "was active" in text


# -- states in words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("starting", "does not answer"),
        ("stopping", "handlers that run are finishing"),
        ("stopped", "Start a process again"),
        ("failed", "start the process again"),
        ("pondering", "pondering"),
    ],
)
def test_every_state_is_told_in_words(state: str, words: str) -> None:
    assert words in text_of(page_of(watcher_with(row_with({}, state=state))))


def test_without_a_row_it_says_where_it_looked() -> None:
    text = text_of(page_of(watcher_with()))

    assert "Not started" in text and "the store memory" in text and "No stream is open" in text


@pytest.mark.parametrize(
    ("state_here", "words"), [("standby", "lives but hangs"), ("running", "saves nothing"), ("stopped", "was killed")]
)
def test_silence_is_told_by_what_this_process_knows(state_here: str, words: str) -> None:
    told = verdict({**RUNNING, "saved_at": 100.0}, 111.0, state_here, "memory")

    assert (told.level, told.title) == ("bad", "Silent")
    assert "11 s" in told.text and "pid 4711 on harbour" in told.text and words in told.advice


def test_a_stream_that_reconnects_comes_first_and_is_counted() -> None:
    streams = {"a": STREAM, "b": {**STREAM, "state": "reconnecting", "lag": None}}

    text = text_of(page_of(watcher_with(row_with(streams))))

    assert "1 of 2 streams lost the connection" in text
    assert text.index("<code>b</code>") < text.index("<code>a</code>")


def test_a_position_that_the_oplog_will_soon_forget_is_an_alarm_on_a_server_that_is_not_new() -> None:
    late = {**STREAM, "lag": 7200, "headroom": 600}
    new = {**STREAM, "lag": 2, "headroom": 1}

    assert "Running out of oplog" in text_of(page_of(watcher_with(row_with({"a": late}))))
    assert "Running out of oplog" not in text_of(page_of(watcher_with(row_with({"a": new}))))


def test_catching_up_is_said() -> None:
    assert "Catching up" in text_of(page_of(watcher_with(row_with({"": {**STREAM, "catching_up": True}}))))


def test_a_row_that_lacks_half_of_it_and_that_a_hook_has_spoilt_is_shown_all_the_same() -> None:
    row = {"state": "running", "lag": "late", "handled": HOSTILE, "streams": {"a": 5, "b": {"lag": HOSTILE}}}

    text = text_of(page_of(watcher_with(row)))

    assert "late" in text and "alert" in text and "<script>alert" not in text


def test_a_store_that_cannot_be_read_is_503_with_the_reason(tmp_path: Path) -> None:
    client = page_of(watcher_with(store=SQLiteStore(tmp_path / "nowhere" / "rigatoni.db")))

    for path in ("/", "/metrics", "/health"):
        answer = client.get(PREFIX + path)
        assert answer.status_code == 503
        assert "nowhere" in answer.text and "Traceback" not in answer.text
    assert "Store unreadable" in text_of(client, "/events")


# -- what comes from data


def test_whatever_comes_from_data_is_escaped_and_kept_on_its_line() -> None:
    watcher = watcher_with(
        row_with({HOSTILE: {**STREAM, "state": HOSTILE}}, host=HOSTILE, state="failed", error=HOSTILE)
    )
    watcher.store.save("default", {HOSTILE: Position(None, Timestamp(5, 1), "", "")})
    event = make_event("insert", HOSTILE, "shop", {"_id": HOSTILE, HOSTILE: HOSTILE}).raw
    bury(watcher, HOSTILE, event=event, error=HOSTILE, traceback=HOSTILE)

    text = text_of(page_of(watcher))

    assert "alert(1)" in text and "<script>alert" not in text
    assert "\u202e" not in text and "\x1b" not in text
    shown = html.unescape(re.search(r"<h3>Event.*?<pre[^>]*>(.*?)</pre>", text, re.S)[1])  # type: ignore[index]
    assert r"\u202e" in shown and "shop" in shown


def test_umlauts_and_emoji_are_shown_as_they_are() -> None:
    watcher = watcher_with(RUNNING)
    bury(watcher, event=make_event("insert", "Größen", "shop", {"name": "Spaßvogel 🦜 日本"}).raw)

    text = text_of(page_of(watcher))

    assert "shop.Größen" in text and "Spaßvogel 🦜 日本" in text


# -- much of everything


def test_of_hundreds_of_streams_the_first_are_shown_and_all_when_asked() -> None:
    watcher = watcher_with(row_with({f"shop.c{number:03}": STREAM for number in range(300)}))
    watcher.store.save("default", {f"shop.c{n:03}": Position(None, Timestamp(5, 1), "", "") for n in range(300)})
    client = page_of(watcher)

    some, everything = text_of(client), text_of(client, all=1)

    assert some.count("shop.c") == 2 * STREAMS and f"{STREAMS} of 300 are shown" in some
    assert everything.count("shop.c") == 600 and "are shown:" not in everything
    assert text_of(client, "/events", all=1).count("shop.c") == 600


def test_of_thousands_of_letters_one_page_is_shown_the_newest_first() -> None:
    watcher = watcher_with(RUNNING)
    ids = [bury(watcher, f"parcels:h{number}") for number in range(2 * LETTERS + 5)]
    client = page_of(watcher)

    first, last, beyond = text_of(client), text_of(client, page=3), text_of(client, page=9999)

    assert f"1 to {LETTERS} of {len(ids)}" in first and first.count("<details id=") == LETTERS
    assert first.index(f"letter-{ids[-1]}") < first.index(f"letter-{ids[-2]}")
    assert "Page 1 of 3" in first and "Older" in first and "Newer" not in first
    assert last.count("<details id=") == 5 and "Newer" in last and "Older" not in last
    assert "Page 3 of 3" in beyond and "Page 1 of 3" in text_of(client, page="x")


@pytest.mark.parametrize("document", [{"text": "x" * 10_000_000}, {"many": list(range(300_000))}], ids=["one", "many"])
def test_of_a_letter_of_ten_megabytes_the_beginning_is_shown(document: dict[str, Any]) -> None:
    watcher = watcher_with(RUNNING)
    bury(watcher, event=make_event("insert", document=document).raw, traceback="y" * 1_000_000)

    text = text_of(page_of(watcher))

    assert len(text) < 3 * SHOWN + 20_000
    assert "Only the beginning is shown" in text and "1,000,000 characters" in text


def test_it_is_utf8_with_the_headers_that_keep_a_page_to_itself() -> None:
    client = page_of(watcher_with(RUNNING))

    answer = client.get(PREFIX + "/")

    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Cache-Control"] == "no-store"
    assert (
        " style=" not in answer.text and "<style" not in answer.text and not re.search(r"<script(?! src)", answer.text)
    )


def test_metrics_are_prometheus_text_of_the_row() -> None:
    answer = page_of(watcher_with(row_with({"shop": STREAM}))).get(f"{PREFIX}/metrics")

    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "rigatoni_pipeline_status{" in answer.text
