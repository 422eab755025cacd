"""The server's time goes on between its replies, also when it has nothing to do."""

from __future__ import annotations

from time import sleep

from bson import Timestamp

from rigatoni.clock import ServerClock

T = 1_700_000_000


def clock(now: int | None = T, patience: float = 60.0) -> ServerClock:
    return ServerClock(None if now is None else Timestamp(now, 1), patience)


def test_what_nobody_said_is_unknown() -> None:
    found = clock(None)
    assert found.now() is None

    found.hear(None)
    assert found.now() is None

    found.hear(Timestamp(T, 5))
    assert T <= (found.now() or 0) < T + 10


def test_it_goes_on_without_a_new_operation() -> None:
    found = clock()
    before = found.now() or 0
    sleep(0.02)
    found.hear(Timestamp(T - 100, 1))
    found.hear(Timestamp(T - 100, 1))

    assert before + 0.02 <= (found.now() or 0) < T + 10


def test_an_operation_that_came_just_now_sets_it_forward_and_back() -> None:
    found = clock()
    found.hear(Timestamp(T, 1))

    found.hear(Timestamp(T + 50, 1))
    assert T + 50 <= (found.now() or 0) < T + 60

    found.hear(Timestamp(T + 45, 1))
    assert T + 45 <= (found.now() or 0) < T + 50


def test_after_a_silence_an_operation_may_be_old() -> None:
    found = clock(patience=0.01)
    found.hear(Timestamp(T, 1))
    sleep(0.02)
    assert found.is_late and found.silence >= 0.02

    found.hear(Timestamp(T - 30, 1))

    assert (found.now() or 0) >= T
