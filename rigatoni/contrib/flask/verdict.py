"""What a status row means, in words, with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rigatoni.contrib.health import is_fresh

from .text import duration, plain

#: The states after which no process has the name.
ENDED = ("stopped", "failed")
#: Seconds of lag from which headroom matters: a server that is new has little of it, and needs no more.
BEHIND = 60.0

Level = Literal["good", "busy", "bad", "off"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Say how a watcher is.

    :param level: "good"; "busy" (it mends itself); "bad" (somebody must act); "off" (nobody watches, as it was asked
        for).
    :param title: in a word or two.
    :param text: what that means now.
    :param advice: what to do; empty when there is nothing to do.
    :param error: what ended it; empty when nothing did.
    """

    level: Level
    title: str
    text: str
    advice: str = ""
    error: str = ""


def verdict(row: Mapping[str, Any] | None, now: float, state_here: str, location: str) -> Verdict:
    """Judge a status row.

    :param row: as the store gives it; None when there is none.
    :param now: seconds since the epoch.
    :param state_here: the state of the watcher of this process, which tells a holder that hangs from one that died.
    :param location: of the store.
    """
    if row is None:
        return _absent(location)
    state, age = row.get("state"), now - row["saved_at"]
    if state == "failed":
        return _failed(row, age)
    if state == "stopped":
        return Verdict(
            "off",
            "Stopped",
            f"It was stopped {duration(age)} ago. What has changed since then waits in the oplog of the server.",
            "Start a process again; it goes on from the saved position.",
        )
    if not is_fresh(row, now):
        return _silent(row, age, state_here)
    return _alive(row, state)


def _absent(location: str) -> Verdict:
    return Verdict(
        "off",
        "Not started",
        f"No watcher of this name has ever written into the store {plain(location)}.",
        "Start one. If one is running, it has another name or another store: look for “watches” in its log.",
    )


def _failed(row: Mapping[str, Any], age: float) -> Verdict:
    return Verdict(
        "bad",
        "Failed",
        f"It ended {duration(age)} ago with an error, which its log tells too, and nothing is handled.",
        "Mend what the error names, then start the process again: it goes on from the saved position, so nothing is "
        "lost while the oplog reaches back to it.",
        plain(row.get("error") or ""),
    )


def _silent(row: Mapping[str, Any], age: float, state_here: str) -> Verdict:
    holder = f"pid {plain(row.get('pid'))} on {plain(row.get('host'))}"
    text = f"The last sign of life is {duration(age)} old; it came from {holder}."
    if state_here == "standby":
        advice = (
            "The process that answers stands by and has not got the name, so the holder lives but hangs: look at what "
            "its handlers do, or kill it. This process then takes over within a second."
        )
    elif state_here == "running":
        advice = "The watcher of this process runs, but saves nothing: a handler may hold its thread. See its log."
    else:
        advice = (
            "The process was killed, or it hangs. One that stands by takes over by itself; if there is none, start one."
        )
    return Verdict("bad", "Silent", text, advice)


def _alive(row: Mapping[str, Any], state: object) -> Verdict:
    if state == "running":
        return _running(streams_of(row))
    if state == "starting":
        return Verdict(
            "busy",
            "Starting",
            "It has the name and is opening its streams.",
            "If this lasts, the MongoDB server does not answer: its log says what is tried.",
        )
    if state == "stopping":
        return Verdict("busy", "Stopping", "It was told to stop; handlers that run are finishing.")
    return Verdict("busy", plain(state), f"It says of itself that it is {plain(state)!r}.")


def _running(streams: Mapping[str, Mapping[str, Any]]) -> Verdict:
    lost = [scope for scope, stream in streams.items() if stream.get("state") != "active"]
    if lost:
        return Verdict(
            "busy",
            "Reconnecting",
            f"{len(lost)} of {_counted(len(streams))} lost the connection to the server. What is in flight stays so.",
            "It tries again by itself. If this lasts, look at the MongoDB server and the network.",
        )
    short = [stream["headroom"] for stream in streams.values() if is_low(stream)]
    if short:
        return Verdict(
            "bad",
            "Running out of oplog",
            f"It is so far behind that the server forgets its position in {duration(min(short))}; then changes are "
            "lost.",
            "Let it handle faster (more lanes by concurrency=), or give the server a larger oplog.",
        )
    behind = sum(bool(stream.get("catching_up")) for stream in streams.values())
    if behind:
        return Verdict("busy", "Catching up", f"The server is looking for changes for {_counted(behind)}.")
    return Verdict("good", "Running", f"{_counted(len(streams))} open, changes are handled as they come.")


def is_low(stream: Mapping[str, Any]) -> bool:
    """Tell whether more than half of what the oplog holds lies between the position and now."""
    lag, headroom = stream.get("lag"), stream.get("headroom")
    return isinstance(lag, (int, float)) and isinstance(headroom, (int, float)) and lag > max(headroom, BEHIND)


def streams_of(row: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give the streams of a status row; what a hook may have written in their place is left out."""
    streams = row.get("streams")
    found = streams.items() if isinstance(streams, Mapping) else ()
    return {scope: stream for scope, stream in found if isinstance(stream, Mapping)}


def _counted(streams: int) -> str:
    return "1 stream" if streams == 1 else f"{streams:,} streams"
