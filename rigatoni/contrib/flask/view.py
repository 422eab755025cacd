"""What the page shows of a consumer, read from its store alone, so that every process shows the same."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from rigatoni import ChangeEvent, DeadLetter, Position, ResumeTokenPersistenceError, Watcher
from rigatoni.contrib.health import is_fresh

from .text import block, duration, event_text, first_line, moment, number, plain, shortened
from .verdict import ENDED, is_low, streams_of, verdict

#: Streams and positions that are shown unless all are asked for: each second the browser gets them anew.
STREAMS = 50
#: Dead letters of one page.
LETTERS = 20

# What a row of another version may lack, or what is unknown.
_NO_ROW = dict.fromkeys(("host", "pid", "since", "saved_at", "received", "handled", "in_flight", "failed", "retried"))
_NO_ROW |= dict.fromkeys(("dead_lettered", "reconnects", "state", "lag", "headroom", "catching_up"))

_SAYS = {
    "created": "is not started",
    "starting": "is starting",
    "standby": "stands by",
    "running": "is running",
    "stopping": "is stopping",
    "stopped": "has stopped",
    "failed": "has failed",
}

# Not the app's: it may have other delimiters, other filters, or escape nothing.
_templates = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters.update(
    plain=plain, block=block, duration=duration, moment=moment, number=number, first_line=first_line
)


@dataclass(frozen=True, slots=True)
class Place:
    """Show how far a scope is done.

    :param scope: the empty one is the deployment.
    :param begin: of the token: version-independent time and order, nothing of a document; "none" when it is a time.
    :param time: of the last change that is done, in seconds since the epoch.
    :param headroom: seconds until the oplog forgets it, None while unknown.
    """

    scope: str
    begin: str
    time: float
    saved_at: float
    headroom: float | None
    is_low: bool


@dataclass(frozen=True, slots=True)
class Letter:
    """Show a dead letter: what of its event and traceback can be shown, and how much there is."""

    letter: DeadLetter
    place: str
    event: str
    is_cut: bool
    traceback: str
    length: int


def live(watcher: Watcher, everything: bool = False) -> str:
    """Make the HTML of what changes from second to second.

    A store that cannot be read is told in its place.

    :param everything: all streams, not only the first.
    """
    try:
        return render("live.html", **overview(watcher, everything))
    except ResumeTokenPersistenceError as error:
        return render("trouble.html", reason=str(error))


def render(template: str, **shown: Any) -> str:
    """Fill in a template."""
    return _templates.get_template(template).render(**shown)


def overview(watcher: Watcher, everything: bool = False) -> dict[str, Any]:
    """Read what changes from second to second.

    :raises ResumeTokenPersistenceError: when the store cannot be read.
    """
    name, now, here = watcher.name, time.time(), f"pid {os.getpid()} on {socket.gethostname()}"
    row = watcher.store.status(name)
    streams = streams_of(row or {})
    places = _places(watcher.store.load(name), streams, now)
    limit = None if everything else STREAMS
    return {
        "name": name,
        "location": watcher.store.location,
        "now": now,
        "has_row": row is not None,
        "row": {**_NO_ROW, **(row or {})},
        "is_alive": row is not None and is_fresh(row, now) and row.get("state") not in ENDED,
        "verdict": verdict(row, now, watcher.state, watcher.store.location),
        "streams": [(scope, {**_NO_ROW, **stream}) for scope, stream in sorted(streams.items(), key=_urgency)[:limit]],
        "stream_count": len(streams),
        "places": places[:limit],
        "place_count": len(places),
        "here": here,
        "state_here": watcher.state,
        "says_here": _SAYS[watcher.state],
    }


def letters_page(watcher: Watcher, page: int) -> dict[str, Any]:
    """Read one page of dead letters, the newest first.

    :param page: from 1; a page that is not there is the nearest that is.
    :raises ResumeTokenPersistenceError: when the store cannot be read.
    """
    letters = watcher.store.letters(watcher.name)[::-1]
    pages = max(1, -(-len(letters) // LETTERS))
    page = min(max(page, 1), pages)
    first = (page - 1) * LETTERS
    shown = [_letter(each) for each in letters[first : first + LETTERS]]
    return {"letters": shown, "letter_count": len(letters), "first": first + 1, "page": page, "pages": pages}


def _urgency(item: tuple[str, Mapping[str, Any]]) -> tuple[bool, float, str]:
    scope, stream = item
    lag = stream.get("lag")
    # By whole minutes, so that rows stay where they are while all is well.
    return stream.get("state") == "active", -(lag // 60) if isinstance(lag, (int, float)) else 0, scope


def _places(positions: Mapping[str, Position], streams: Mapping[str, Mapping[str, Any]], now: float) -> Sequence[Place]:
    places = [_place(*item, streams) for item in positions.items()]
    return sorted(places, key=lambda place: (-((now - place.time) // 60), place.scope))


def _place(scope: str, position: Position, streams: Mapping[str, Mapping[str, Any]]) -> Place:
    stream = streams.get(scope, {})
    # Its first digits are a time and a version; behind them come collection and document.
    begin = "none" if position.token is None else f"{str(position.token.get('_data'))[:22]}…"
    seconds, saved_at = position.cluster_time.time, position.saved_at
    return Place(scope, begin, seconds, saved_at, stream.get("headroom"), is_low(stream))


def _letter(letter: DeadLetter) -> Letter:
    event = ChangeEvent(letter.event)
    names = ".".join(each for each in (event.database, event.collection) if each)
    text, is_cut = event_text(letter.event)
    traceback, length = shortened(letter.traceback)
    return Letter(letter, f"{event.operation} {names}".strip(), text, is_cut, traceback, length)
