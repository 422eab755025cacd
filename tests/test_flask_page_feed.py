"""The live part as server-sent events: it goes on, it ends by itself, and it never holds a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import wait_until
from pages import PREFIX, RUNNING, Stream, page_of, served, text_of, watcher_with

from rigatoni import SQLiteStore
from rigatoni.contrib.flask import feed

ALONE = {"wsgi.multithread": False}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "INTERVAL", 0.05)


@pytest.mark.usefixtures("quick")
def test_a_stream_tells_what_changes_and_ends_by_itself(monkeypatch: pytest.MonkeyPatch, store_path: str) -> None:
    watcher = watcher_with(RUNNING, SQLiteStore(store_path))
    with served(watcher, threaded=True) as port:
        stream = Stream(port)
        assert stream.answer.headers["Content-Type"].startswith("text/event-stream")
        first = stream.message()
        assert first.startswith("retry: ") and "12,300" in first
        watcher.store.save("default", {}, {**RUNNING, "handled": 12_999})
        wait_until(lambda: "12,999" in stream.message())
        monkeypatch.setattr(feed, "LIFE", 0.0)
        while stream.message():
            pass
        stream.close()
    watcher.store.close()


@pytest.mark.usefixtures("quick")
def test_one_stream_stays_open_and_all_others_get_one_message() -> None:
    with served(watcher_with(RUNNING), threaded=True) as port:
        staying, passing = Stream(port), Stream(port)
        assert "Running" in staying.message() and staying.message()
        assert "retry: 2000" in passing.message() and passing.message() == ""
        staying.close()
        passing.close()

        def stays() -> bool:
            again = Stream(port)
            again.message()
            stayed = again.message() != ""
            again.close()
            return stayed

        # Once the server has noticed that the first one is gone.
        wait_until(stays)


def test_a_server_that_answers_one_request_at_a_time_is_never_held() -> None:
    with served(watcher_with(RUNNING), threaded=False) as port:
        first = Stream(port)
        assert "retry: 2000" in first.message() and first.message() == ""
        first.close()
        second = Stream(port)
        assert "Running" in second.message()
        second.close()


def test_a_message_is_one_whatever_the_row_holds() -> None:
    spoilt = "a\n\nevent: forged\rdata: b\u2028"
    client = page_of(watcher_with({**RUNNING, "host": spoilt, "streams": {spoilt: {}}}))

    text = client.get(f"{PREFIX}/events", environ_overrides=ALONE).text

    assert text.count("\n\n") == 1 and text.endswith("\n\n")
    assert all(line.startswith("data: ") for line in text.rstrip().split("\n")[1:])
    assert "\r" not in text and "\u2028" not in text


def test_a_stream_says_when_the_store_cannot_be_read_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    watcher = watcher_with(store=SQLiteStore(folder / "rigatoni.db"))
    client = page_of(watcher)

    assert "Store unreadable" in client.get(f"{PREFIX}/events", environ_overrides=ALONE).text
    folder.mkdir()
    watcher.store.save("default", {}, RUNNING)
    assert "Running" in client.get(f"{PREFIX}/events", environ_overrides=ALONE).text
    watcher.store.close()


def test_health_tells_probes_by_the_code_and_people_by_the_reasons() -> None:
    well, ill, none = (page_of(watcher_with(row)) for row in ({**RUNNING, "streams": {}}, {"state": "failed"}, None))

    assert well.get(f"{PREFIX}/health").get_json() == {"healthy": True, "problems": []}
    for client in (ill, none):
        answer = client.get(f"{PREFIX}/health")
        assert answer.status_code == 503
        assert not answer.get_json()["healthy"] and len(answer.get_json()["problems"]) == 1
    assert "failed" in text_of(ill)
