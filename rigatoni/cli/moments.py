"""Times as people write and read them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import click

_SECONDS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def moment(text: str | None, option: str) -> timedelta | datetime | str | None:
    """Read a way back (2h), "earliest", or an ISO time with its zone.

    :param option: where it was given, for the message.
    :raises click.BadParameter: when it is none of these.
    """
    from rigatoni.client import moment as read

    try:
        return None if text is None else read(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}", param_hint=option) from None


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
