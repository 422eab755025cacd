"""Who may see the page, and whose forms may change anything."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Response, abort, make_response, request
from pages import PREFIX, RUNNING, application, bury, form_of, page_of, watcher_with

from rigatoni import ConfigurationError, Watcher
from rigatoni.contrib.flask.page import blueprint

READ = ("/", "/events", "/health", "/metrics", "/static/page.css", "/static/page.js")


@pytest.fixture
def watcher() -> Watcher:
    return watcher_with(RUNNING)


@pytest.mark.parametrize("authorize", [None, "everybody", True, ""], ids=repr)
def test_who_may_see_it_must_be_said(watcher: Watcher, authorize: Any) -> None:
    with pytest.raises(ConfigurationError, match="does not say who may see the page"):
        blueprint(lambda: watcher, authorize)


def test_an_async_authorize_is_refused(watcher: Watcher) -> None:
    async def authorize(request: Any) -> bool:
        return False

    with pytest.raises(ConfigurationError, match="write def"):
        blueprint(lambda: watcher, authorize)


@pytest.mark.parametrize("path", READ)
@pytest.mark.parametrize("answer", [False, None, 0, ""], ids=repr)
def test_whoever_is_not_authorized_gets_403_and_nothing_else(watcher: Watcher, path: str, answer: Any) -> None:
    refused = page_of(watcher, lambda request: answer).get(PREFIX + path)

    assert refused.status_code == 403 and "harbour" not in refused.text
    assert refused.headers["Content-Security-Policy"]


def test_letters_are_guarded_too(watcher: Watcher) -> None:
    id = bury(watcher)
    client = page_of(watcher, lambda request: request.method == "GET")
    form = form_of(client)

    for what in ("replay", "discard"):
        assert client.post(f"{PREFIX}/letters/{id}/{what}", data=form).status_code == 403
    assert len(watcher.store.letters("default")) == 1


def test_a_response_of_authorize_is_sent_as_it_is(watcher: Watcher) -> None:
    client = page_of(watcher, lambda request: make_response("who are you?", 401, {"WWW-Authenticate": "Basic"}))

    answer = client.get(PREFIX + "/")

    assert (answer.status_code, answer.text, answer.headers["WWW-Authenticate"]) == (401, "who are you?", "Basic")


def test_what_authorize_raises_goes_to_flask(watcher: Watcher) -> None:
    def teapot(request: Any) -> None:
        abort(418)

    def broken(request: Any) -> None:
        raise LookupError("no session")

    assert page_of(watcher, teapot).get(PREFIX + "/").status_code == 418
    with pytest.raises(LookupError, match="no session"):
        page_of(watcher, broken, TESTING=True).get(PREFIX + "/")


def test_authorize_gets_the_request_and_may_let_paths_through(watcher: Watcher) -> None:
    client = page_of(watcher, lambda asked: asked.path == f"{PREFIX}/health" and asked.args.get("key") == "k")

    assert client.get(f"{PREFIX}/health?key=k").status_code == 200
    assert client.get(f"{PREFIX}/health").status_code == 403
    assert client.get(f"{PREFIX}/?key=k").status_code == 403


async def _coroutine() -> bool:
    return False


@pytest.mark.parametrize("answer", [lambda: False, ("no", 403), Response], ids=["function", "tuple", "class"])
def test_an_answer_that_is_always_true_is_an_error(watcher: Watcher, answer: Any) -> None:
    with pytest.raises(ConfigurationError, match="always true"):
        page_of(watcher, lambda request: answer, TESTING=True).get(PREFIX + "/")


def test_an_answer_that_would_have_to_be_awaited_is_an_error(watcher: Watcher) -> None:
    promise = _coroutine()
    with pytest.raises(ConfigurationError, match="always true"):
        page_of(watcher, lambda request: promise, TESTING=True).get(PREFIX + "/")
    promise.close()


# -- the token of the forms


def test_a_form_that_one_process_made_is_taken_by_another_without_a_secret_key(watcher: Watcher) -> None:
    id = bury(watcher)
    one, other = page_of(watcher), page_of(watcher)
    assert one.application.secret_key is None
    form = form_of(one)
    cookie = one.get_cookie("rigatoni_csrf", path=f"{PREFIX}/")
    assert cookie is not None and (cookie.http_only, cookie.same_site) == (True, "Strict")
    other.set_cookie("rigatoni_csrf", cookie.value, path=f"{PREFIX}/")

    answer = other.post(f"{PREFIX}/letters/{id}/discard", data=form)

    assert answer.status_code == 303
    assert watcher.store.letters("default") == []


def test_a_browser_keeps_its_token_so_that_several_windows_work(watcher: Watcher) -> None:
    bury(watcher)
    client = page_of(watcher)

    assert form_of(client) == form_of(client)
    assert form_of(client) != form_of(page_of(watcher))


def test_over_https_the_cookie_is_secure(watcher: Watcher) -> None:
    answer = page_of(watcher).get(PREFIX + "/", base_url="https://localhost")

    assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize("data", [{}, {"csrf_token": "forged"}, {"csrf_token": "Grüße"}], ids=str)
@pytest.mark.parametrize("with_cookie", [True, False])
def test_without_the_token_nothing_is_changed(watcher: Watcher, data: dict[str, str], with_cookie: bool) -> None:
    id = bury(watcher)
    client = page_of(watcher)
    if with_cookie:
        form_of(client)

    answer = client.post(f"{PREFIX}/letters/{id}/discard", data=data)

    assert answer.status_code == 403 and "reload the page" in answer.text
    assert len(watcher.store.letters("default")) == 1


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost"}, 303),
        # Behind a proxy that changes the Host header: the browser knows better.
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://shop.example"}, 303),
    ],
    ids=str,
)
def test_where_a_form_comes_from_counts_besides(watcher: Watcher, headers: dict[str, str], code: int) -> None:
    id = bury(watcher)
    client = page_of(watcher)

    answer = client.post(f"{PREFIX}/letters/{id}/discard", data=form_of(client), headers=headers)

    assert answer.status_code == code


def test_a_get_changes_nothing(watcher: Watcher) -> None:
    id = bury(watcher)

    for what in ("replay", "discard"):
        assert page_of(watcher).get(f"{PREFIX}/letters/{id}/{what}").status_code == 405
    assert len(watcher.store.letters("default")) == 1


def test_the_rest_of_the_application_is_left_alone(watcher: Watcher) -> None:
    app = application(watcher, lambda request: False)
    app.add_url_rule("/", "shop", lambda: f"welcome to {request.host}")

    answer = app.test_client().get("/")

    assert answer.status_code == 200 and "Content-Security-Policy" not in answer.headers
