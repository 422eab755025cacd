"""The live page: a blueprint that shows one watcher by its store, and replays or discards its dead letters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from traceback import format_exception
from typing import Any, Literal

import gevent
from flask import Blueprint, Response, jsonify, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from rigatoni import DeadLetter, ResumeTokenPersistenceError, Watcher
from rigatoni.contrib.health import problems
from rigatoni.contrib.prometheus import exposition

from .feed import Feed
from .guard import FIELD, Authorize, admit, check_token, checked_authorize, new_token, set_token
from .text import first_line, shortened
from .view import letters_page, live, overview, render

logger = logging.getLogger(__name__)

#: Only what lies below the prefix, and nothing inline: text that slipped through every other net still does nothing.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, with which browsers do not say where a form comes from.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_DONE = {"replayed": "was replayed: its handler returned, and the letter is gone", "discarded": "was discarded"}


def blueprint(watcher: Callable[[], Watcher], authorize: Authorize | Literal["public"] | None) -> Blueprint:
    """Make the page of one watcher, to be registered below a prefix of its own.

    It reads the store only, so that a process that stands by shows what the active one does. `authorize` is asked for
    everything below the prefix: the page, its files, ``events``, ``health``, ``metrics``, and the POSTs that replay or
    discard a letter.

    :param watcher: gives the watcher, each time when a request comes.
    :param authorize: a function of the request: true lets it pass, false is answered by 403, a response is sent as it
        is, an exception goes to Flask; or "public".
    :raises ConfigurationError: when `authorize` decides nothing.
    """
    page, asked = _Page(watcher), checked_authorize(authorize)

    def guard() -> AnyResponse | None:
        refusal = admit(asked)
        if refusal is None and request.method == "POST":
            check_token()
        return refusal

    made = Blueprint("rigatoni", __name__, static_folder="static", static_url_path="/static")
    made.before_request(guard)
    made.after_request(_protected)
    made.register_error_handler(ResumeTokenPersistenceError, _unreadable)
    made.add_url_rule("/", "index", page.index)
    made.add_url_rule("/events", "events", page.events)
    made.add_url_rule("/health", "health", page.health)
    made.add_url_rule("/metrics", "metrics", page.metrics)
    made.add_url_rule("/letters/<int(max=9223372036854775807):id>/replay", "replay", page.replay, methods=["POST"])
    made.add_url_rule("/letters/<int(max=9223372036854775807):id>/discard", "discard", page.discard, methods=["POST"])
    return made


def _protected(response: Response) -> Response:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def _unreadable(error: Exception) -> tuple[str, int]:
    return render("unreadable.html", reason=str(error), files=_files()), 503


def _files() -> str:
    return url_for(".static", filename="")


class _Page:
    """Answer requests.

    :param watcher: gives the watcher.
    """

    def __init__(self, watcher: Callable[[], Watcher]) -> None:
        self._watcher = watcher
        self._feed = Feed()

    def index(self) -> Response:
        """Show everything."""
        done, id = request.args.get("done"), request.args.get("id", type=int)
        return self._shown({"text": f"Letter {id} {_DONE[done]}."} if done in _DONE and id is not None else None)

    def events(self) -> Response:
        """Send what changes, message by message."""
        watcher, everything = self._watcher(), "all" in request.args
        may_stay = bool(request.environ.get("wsgi.multithread"))
        messages = self._feed.messages(lambda: live(watcher, everything), may_stay)
        # For nginx, which would keep the messages back until there are many.
        return Response(messages, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})

    def health(self) -> tuple[Response, int]:
        """Say whether the watcher is well: 200, or 503 with the reasons."""
        watcher = self._watcher()
        try:
            reasons = problems(watcher.store.status(watcher.name))
        except ResumeTokenPersistenceError as error:
            reasons = [str(error)]
        return jsonify(healthy=not reasons, problems=reasons), 503 if reasons else 200

    def metrics(self) -> Response:
        """Give the metrics as Prometheus reads them."""
        watcher = self._watcher()
        status = watcher.store.status(watcher.name)
        text, content_type = exposition(watcher.name, status, request.headers.get("Accept", ""))
        return Response(text, content_type=content_type)

    def replay(self, id: int) -> AnyResponse:
        """Call the handler of a letter once, here, and discard the letter if it returns."""
        watcher = self._watcher()
        letter = self._letter(id)
        if letter is None:
            return self._gone(id)
        try:
            watcher.dispatch(letter.event, handler=letter.handler)
        # The two things that are a failed attempt of a handler; whatever else it raises is meant for the process.
        except (Exception, gevent.Timeout) as error:
            logger.warning("letter %s of %r: %s fails again: %r", id, watcher.name, letter.handler, error)
            return self._shown(_failure(letter, error), 422)
        return self._settled(id, "replayed")

    def discard(self, id: int) -> AnyResponse:
        """Forget a letter."""
        return self._settled(id, "discarded")

    def _letter(self, id: int) -> DeadLetter | None:
        watcher = self._watcher()
        return next((each for each in watcher.store.letters(watcher.name) if each.id == id), None)

    def _settled(self, id: int, done: str) -> AnyResponse:
        watcher = self._watcher()
        if not watcher.store.discard(watcher.name, id) and done == "discarded":
            return self._gone(id)
        logger.info("letter %s of %r was %s by the page", id, watcher.name, done)
        # So that loading the page again repeats nothing.
        return redirect(url_for(".index", done=done, id=id, page=_asked_page()), 303)

    def _gone(self, id: int) -> Response:
        return self._shown({"text": f"There is no letter {id} any more: it was replayed or discarded meanwhile."}, 404)

    def _shown(self, notice: dict[str, Any] | None, code: int = 200) -> Response:
        watcher, everything, token = self._watcher(), "all" in request.args, new_token()
        shown = {**overview(watcher, everything), **letters_page(watcher, _asked_page())}
        urls = {"files": _files(), "events": url_for(".events", all=1 if everything else None)}
        html = render("page.html", notice=notice, field=FIELD, token=token, index=url_for(".index"), **urls, **shown)
        response = Response(html, code, mimetype="text/html")
        set_token(response, token, url_for(".index"))
        return response


def _asked_page() -> int:
    return request.values.get("page", 1, type=int)


def _failure(letter: DeadLetter, error: BaseException) -> dict[str, Any]:
    trace, length = shortened("".join(format_exception(error)))
    text = f"Letter {letter.id} stays: its handler failed again. {first_line(f'{type(error).__name__}: {error}')}"
    return {"text": text, "traceback": trace, "length": length}
