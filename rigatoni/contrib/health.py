"""Whether a watcher is well, told by its status row alone, so that every process and every shell answers alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

#: Seconds after which a row is no longer news: whoever holds the name writes one a second.
FRESH = 10.0

_REASONS = {
    "starting": "the watcher is starting: it waits for MongoDB, so look whether the server can be reached",
    "stopping": "the watcher is stopping: it waits for handlers that still run; whoever stands by takes over then",
    "stopped": "the watcher has stopped: start it again",
    "failed": "the watcher has failed: its log says why; mend that, and start it again",
}


def problems(status: Mapping[str, Any] | None, now: float | None = None) -> list[str]:
    """Say what is wrong with a watcher, each reason a sentence with what to do; nothing when it is well.

    It is not well when there is no row, when the row is older than 10 s, when the state is not "running", or when a
    stream is reconnecting.

    :param status: the row as :meth:`rigatoni.TokenStore.status` gives it; None when there is none.
    :param now: seconds since the epoch; default the time of this call.
    """
    if status is None:
        return ["there is no status row: no watcher of this name has run with this store; start one, or mend the path"]
    state = status["state"]
    if not is_fresh(status, now) and state not in ("stopped", "failed"):
        return [_silence(status, time.time() if now is None else now)]
    if state != "running":
        return [_REASONS.get(state, f"the watcher is in state {state!r}: look into its log")]
    return [
        f"stream {scope!r} is reconnecting: look whether MongoDB can be reached from there"
        for scope, stream in status["streams"].items()
        if stream["state"] == "reconnecting"
    ]


def is_fresh(status: Mapping[str, Any], now: float | None = None) -> bool:
    """Tell whether the row is of a process that lives and writes; one of the future is of a clock that was put back.

    :param now: seconds since the epoch; default the time of this call.
    """
    age: float = (time.time() if now is None else now) - status["saved_at"]
    return abs(age) <= FRESH


def _silence(status: Mapping[str, Any], now: float) -> str:
    age, who = now - status["saved_at"], f"process {status['pid']} on {status['host']!r}"
    if age < 0:
        return f"the status row is of a time {-age:.0f} s ahead: set the clock here, or that of {who}"
    return f"the status row is {age:.0f} s old: {who} is dead, or held by a handler; start it again, or look at its log"
