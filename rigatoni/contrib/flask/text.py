"""How the page writes what it shows: numbers and times for people, and what others chose without its control
characters.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from bson import json_util
from bson.binary import UuidRepresentation
from bson.json_util import JSONMode, JSONOptions

#: Characters of an event or of a traceback that are shown.
SHOWN = 10_000
#: What stands for a number that nobody knows.
UNKNOWN = "–"

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_OPTIONS = JSONOptions(json_mode=JSONMode.RELAXED, uuid_representation=UuidRepresentation.STANDARD)


def plain(value: object, keep: str = "") -> str:
    """Write text on one line, so that it shows all it holds.

    Whatever cannot be printed (line ends, ESC, marks that turn the direction of writing) is written as Python writes
    it in a string.

    :param keep: characters that stay as they are; default none.
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def block(value: object) -> str:
    """Write text of several lines, as :func:`plain` writes one of them; line ends and tabulators stay."""
    return plain(value, keep="\n\t")


def number(value: object) -> str:
    """Write a count with its thousands apart; what is no number is written as it is."""
    if value is None:
        return UNKNOWN
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else plain(value)


def duration(seconds: object) -> str:
    """Write a time in seconds in its two largest units."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return UNKNOWN if seconds is None else plain(seconds)
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s".replace(".0 ", " ")
    rest = int(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        if rest >= size and len(parts) < 2:
            parts.append(f"{rest // size} {unit}")
            rest %= size
        elif parts:
            break
    return " ".join(parts)


def moment(seconds: object) -> str:
    """Write a time in seconds since the epoch in ISO 8601, in UTC."""
    try:
        return datetime.fromtimestamp(seconds, timezone.utc).isoformat(" ", "seconds")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, OSError):
        return plain(seconds)


def shortened(text: str) -> tuple[str, int]:
    """Cut text that is too long to show.

    :returns: what is shown, and how many characters there are in all; 0 when all of it is shown.
    """
    return (block(text), 0) if len(text) <= SHOWN else (block(text[:SHOWN]), len(text))


def event_text(event: Mapping[str, Any]) -> tuple[str, bool]:
    """Write an event as indented Extended JSON, no more of it than is shown.

    Piece by piece, so that an event of many megabytes costs no more than what is shown of it.

    :returns: the text, and whether something is left out.
    """
    encoder = json.JSONEncoder(indent=2, ensure_ascii=False, default=_extended)
    size, pieces = 0, []
    for piece in encoder.iterencode(event):
        pieces.append(piece)
        size += len(piece)
        if size > SHOWN:
            return block("".join(pieces)[:SHOWN]), True
    return block("".join(pieces)), False


def _extended(value: object) -> Any:
    return json_util.default(value, _OPTIONS)


def first_line(text: str, limit: int = 200) -> str:
    """Give the first line of a text, cut where it becomes long."""
    lines = itertools.islice(text.strip().splitlines(), 1)
    line = next(lines, "")
    return plain(line if len(line) <= limit else line[: limit - 1] + "…")
