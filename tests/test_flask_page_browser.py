"""The live page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browsing, complaints, look
from conftest import wait_until
from pages import PREFIX, RUNNING, STREAM, bury, served, watcher_with
from watchers import collecting, watchers

from rigatoni import Watcher
from rigatoni.contrib.flask import feed

HOSTILE = "<img src=x onerror=\"document.title='hacked'\">"

#: The contrast of each text with what is behind it (WCAG 2), where it is less than it has to be.
PALE = """
const bright = c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const shine = ([r, g, b]) => [r, g, b].map(c => bright(c / 255))
    .reduce((sum, c, index) => sum + c * [0.2126, 0.7152, 0.0722][index], 0);
const parts = colour => colour.match(/[0-9.]+/g).map(Number);
const behind = element => {
    for (let each = element; each; each = each.parentElement) {
        const colour = parts(getComputedStyle(each).backgroundColor);
        if (colour.length < 4 || colour[3] > 0) return colour;
    }
};
return [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
    const [one, other] = [parts(getComputedStyle(element).color), behind(element)].map(shine);
    return [(Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05), element.outerHTML.slice(0, 80)];
}).filter(([contrast]) => contrast < 4.5);
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browsing(tmp_path_factory.mktemp("profile")) as window:
        yield window


def url_of(port: int, path: str = "/") -> str:
    return f"http://127.0.0.1:{port}{PREFIX}{path}"


def text(window: Any, selector: str) -> str:
    # Between two pages there is nothing.
    found: str = window.execute_script("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
    return found


def failing_once() -> tuple[Watcher, int, list[Any]]:
    """Make a watcher with a letter whose handler fails at the first replay only."""
    watcher = watcher_with({**RUNNING, "streams": {"shop": STREAM}})
    called: list[Any] = []

    @watcher.on("insert")
    def ship(event: Any) -> None:
        called.append(event)
        if len(called) == 1:
            raise ValueError(HOSTILE)

    return watcher, bury(watcher, f"{__name__}:{ship.__qualname__}", error=f"ValueError: {HOSTILE}"), called


def test_events_that_flow_move_the_numbers_and_both_plots(window: Any, database: Any, mongodb_replica_set: Any) -> None:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        watcher = make()
        collecting(watcher, "insert")
        watcher.start()
        with served(watcher, threaded=True) as port:
            window.get(url_of(port))
            wait_until(lambda: text(window, "#connection") == "live")

            def moved() -> bool:
                database.orders.insert_many([{}, {}])
                plots = window.execute_script(
                    "return [...document.querySelectorAll('.plot path')].map(p => p.outerHTML)"
                )
                return len(plots) == 2 and all(plot.count("L") >= 2 for plot in plots)

            wait_until(moved)
            assert text(window, "#state") == "Running"
            assert float(text(window, "#rate").replace(",", "")) > 0
            watcher.stop()
            wait_until(lambda: text(window, "#state") == "Stopped")
            assert complaints(window) == []
            window.get("about:blank")


def test_a_letter_is_replayed_with_a_click_and_its_failure_is_shown(window: Any) -> None:
    watcher, id, called = failing_once()
    with served(watcher, threaded=True) as port:
        for _ in range(2):
            window.get(url_of(port))
            window.find_element("css selector", f"#letter-{id} summary").click()
            window.find_element("css selector", f"#letter-{id} form[action$=replay] button").click()
            wait_until(lambda: "letter" in text(window, "[role=alert]").lower())
            if len(called) == 1:
                assert f"Letter {id} stays" in text(window, "[role=alert]") and HOSTILE in text(window, "[role=alert]")
        assert f"Letter {id} was replayed" in text(window, "[role=alert]")
        assert "hacked" not in window.title
        window.get("about:blank")
    assert len(called) == 2 and watcher.store.letters("default") == []


def test_a_letter_is_discarded_only_with_the_tick(window: Any) -> None:
    watcher = watcher_with(RUNNING)
    id = bury(watcher)
    with served(watcher, threaded=True) as port:
        window.get(url_of(port))
        window.find_element("css selector", f"#letter-{id} summary").click()
        window.find_element("css selector", f"#letter-{id} form[action$=discard] button").click()
        assert len(watcher.store.letters("default")) == 1
        window.find_element("css selector", f"#letter-{id} [type=checkbox]").click()
        window.find_element("css selector", f"#letter-{id} form[action$=discard] button").click()
        wait_until(lambda: watcher.store.letters("default") == [])
        window.get("about:blank")


def test_letters_that_come_later_are_announced(window: Any) -> None:
    watcher = watcher_with(RUNNING)
    with served(watcher, threaded=True) as port:
        window.get(url_of(port))
        assert not window.find_element("id", "changed").is_displayed()
        watcher.store.save("default", {}, {**RUNNING, "dead_lettered": 16})
        wait_until(window.find_element("id", "changed").is_displayed)
        window.get("about:blank")


def test_a_web_server_that_is_gone_is_said_to_be(window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "LIFE", 0.0)
    with served(watcher_with(RUNNING), threaded=True) as port:
        window.get(url_of(port))
        wait_until(lambda: text(window, "#connection") == "live")
    wait_until(lambda: text(window, "#connection").startswith("not live"))
    window.get("about:blank")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_everything_can_be_read_at_every_width_by_day_and_by_night(window: Any, width: int, scheme: str) -> None:
    streams = {"shop." + 40 * "orders": STREAM, "shop": {**STREAM, "state": "reconnecting"}}
    watcher = watcher_with({**RUNNING, "streams": streams})
    bury(watcher, "parcels:" + 40 * "ship", error="ValueError: " + 400 * "x")
    look(window, width=width, scheme=scheme)
    with served(watcher, threaded=True) as port:
        window.get(url_of(port))
        window.find_element("css selector", ".letters summary").click()
        wide = window.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], "the page itself must not scroll sideways"
        assert window.execute_script(PALE) == []
        assert window.execute_script("return getComputedStyle(document.body).colorScheme") == "light dark"
        window.get("about:blank")


def test_what_has_no_name_for_a_screen_reader_does_not_exist(window: Any) -> None:
    watcher, _, _ = failing_once()
    with served(watcher, threaded=True) as port:
        window.get(url_of(port))
        window.find_element("css selector", ".letters summary").click()
        named = window.find_elements("css selector", "a, button, input:not([type=hidden]), [role=region], summary")
        for each in [each for each in named if each.is_displayed()]:
            assert each.accessible_name, each.get_attribute("outerHTML")
        assert window.execute_script("return document.documentElement.lang") == "en"
        assert len(window.find_elements("css selector", "table th:not([scope])")) == 0
        window.get("about:blank")


def test_without_javascript_everything_can_be_read_and_replayed(tmp_path: Path) -> None:
    with browsing(tmp_path / "profile", scripts=False) as window:
        # Only now, because a row grows old while a browser starts.
        watcher, id, called = failing_once()
        called.append("once")
        with served(watcher, threaded=True) as port:
            window.get(url_of(port))
            shown = window.find_element("css selector", "body").text
            assert "Running" in shown and "12,300" in shown and "Letter" not in shown and HOSTILE in shown
            window.find_element("css selector", f"#letter-{id} summary").click()
            window.find_element("css selector", f"#letter-{id} form[action$=replay] button").click()
            # Not by an element, which may be the last page's.
            wait_until(lambda: f"Letter {id} was replayed" in window.page_source)
    assert watcher.store.letters("default") == []
