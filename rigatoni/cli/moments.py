"""Times as people write and read them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import click

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SECONDS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def moment(text: str | None, option: str) -> timedelta | datetime | str | None:
    """Read a way back (2h), "earliest", or an ISO time with its zone.

    :param option: where it was given, for the message.
    :raises click.BadParameter: when it is none of these.
    """
    if text is None or text == "earliest":
        return text
    back = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if back:
        return timedelta(**{_UNITS[back[2]]: int(back[1])})
    try:
        found = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    except ValueError:
        raise click.BadParameter(
            f'{text!r} is neither a way back (2h), nor "earliest", nor an ISO time', param_hint=option
        ) from None
    if found.tzinfo is None:
        raise click.BadParameter(f"{text!r} has no time zone: {text}Z is UTC", param_hint=option)
    return found


def span(seconds: float) -> str:
    """Write a duration with its two largest units: "2h 5m", "0.4s"."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    rest, parts = int(seconds), list[str]()
    for unit, length in _SECONDS:
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def clock(seconds: float) -> str:
    """Write a time in seconds since the epoch as an ISO time in UTC, which options take, too."""
    try:
        return datetime.fromtimestamp(int(seconds), timezone.utc).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        # Past the year 9999, where nothing but a damaged row comes from.
        return f"{seconds:.0f}s"
