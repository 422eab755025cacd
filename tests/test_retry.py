"""The reconnection: what is waited for how often, and what ends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import gevent
import pytest

from rigatoni.config import ChangeStreamConfig
from rigatoni.errors import (
    ConfigurationError,
    MaxReconnectAttemptsExceededError,
    StreamConnectionError,
    StreamError,
)
from rigatoni.hub import Flag, GivenUp
from rigatoni.retry import UNKNOWN_ATTEMPTS, reconnecting

AWAY = StreamConnectionError("away")
UNKNOWN = StreamConnectionError("unknown", is_known=False)


def config(attempts: int, initial_backoff: float = 0.0001, **options: float) -> ChangeStreamConfig:
    options = {"max_backoff": max(initial_backoff, 0.001), "backoff_jitter": 0.0, **options}
    return ChangeStreamConfig(max_reconnect_attempts=attempts, initial_backoff=initial_backoff, **options)  # type: ignore[arg-type]


class Server:
    """Answer pulls as it is told; the last answer is given for ever."""

    def __init__(self, *answers: Exception | str) -> None:
        self.answers = list(answers)
        self.pulls = 0

    def pull(self) -> str:
        self.pulls += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Attempts:
    """Remember what was told before each wait."""

    def __init__(self) -> None:
        self.told: list[tuple[StreamError, int, float]] = []

    def __call__(self, error: StreamError, attempt: int, delay: float) -> None:
        self.told.append((error, attempt, delay))

    @property
    def delays(self) -> list[float]:
        return [delay for _, _, delay in self.told]


def wrapped(
    server: Server, settings: ChangeStreamConfig, stop: Flag | None = None, told: Attempts | None = None
) -> Callable[[], str]:
    return reconnecting(server.pull, settings, stop or Flag(), told or Attempts())


def test_a_pull_that_works_is_returned_at_once() -> None:
    told = Attempts()

    assert wrapped(Server("reply"), config(5), told=told)() == "reply"
    assert told.told == []


def test_the_delays_grow_by_the_one_formula_until_the_longest() -> None:
    told = Attempts()
    settings = config(0, 0.0001, max_backoff=0.0005)

    wrapped(Server(*[AWAY] * 5, "reply"), settings, told=told)()

    assert [(error, attempt) for error, attempt, _ in told.told] == [(AWAY, number) for number in range(1, 6)]
    assert told.delays == [settings.backoff(number) for number in range(1, 6)]
    assert told.delays == pytest.approx([0.0001, 0.0002, 0.0004, 0.0005, 0.0005])


def test_the_delays_start_anew_after_each_reply() -> None:
    told = Attempts()
    pull = wrapped(Server(AWAY, AWAY, "one", AWAY, "two"), config(5), told=told)

    assert (pull(), pull()) == ("one", "two")
    assert [attempt for _, attempt, _ in told.told] == [1, 2, 1]


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_attempts_are_counted_and_end_with_the_last_error(limit: int) -> None:
    server, told = Server(AWAY), Attempts()

    with pytest.raises(MaxReconnectAttemptsExceededError) as raised:
        wrapped(server, config(limit), told=told)()

    assert raised.value.attempts == limit
    assert raised.value.__cause__ is AWAY
    assert server.pulls == limit + 1 and len(told.told) == limit


@pytest.mark.parametrize("limit", [1, 5])
def test_where_nothing_was_connected_before_the_pull_itself_is_the_first_attempt(limit: int) -> None:
    server, told = Server(AWAY), Attempts()

    with pytest.raises(MaxReconnectAttemptsExceededError) as raised:
        reconnecting(server.pull, config(limit), Flag(), told, is_first=True)()

    assert raised.value.attempts == server.pulls == limit
    assert len(told.told) == limit - 1


def test_the_budget_of_one_pull_is_not_spent_by_another() -> None:
    answers: Iterable[Exception | str] = [AWAY, AWAY, "reply"] * 10
    pull = wrapped(Server(*answers), config(2))

    assert [pull() for _ in range(10)] == ["reply"] * 10


def test_no_limit_is_for_ever() -> None:
    assert wrapped(Server(*[AWAY] * 200, "reply"), config(0))() == "reply"


@pytest.mark.parametrize("limit", [0, 50])
def test_an_error_that_nobody_knows_is_tried_a_few_times_only(limit: int) -> None:
    server = Server(UNKNOWN)

    with pytest.raises(StreamConnectionError) as raised:
        wrapped(server, config(limit))()

    assert raised.value is UNKNOWN
    assert server.pulls == UNKNOWN_ATTEMPTS + 1


def test_unknown_errors_of_different_pulls_do_not_add_up() -> None:
    pull = wrapped(Server(*[UNKNOWN, UNKNOWN, "reply"] * 10), config(0))

    assert [pull() for _ in range(10)] == ["reply"] * 10


@pytest.mark.parametrize(
    "error", [ConfigurationError("wrong"), StreamConnectionError("final", is_retryable=False), ValueError("a bug")]
)
def test_what_no_attempt_can_mend_is_raised_at_once(error: Exception) -> None:
    server, told = Server(error), Attempts()

    with pytest.raises(type(error)) as raised:
        wrapped(server, config(5), told=told)()

    assert raised.value is error
    assert server.pulls == 1 and told.told == []


def test_a_stop_during_a_wait_gives_up_at_once() -> None:
    server, stop = Server(AWAY), Flag()
    waiting = gevent.spawn(wrapped(server, config(5, 3600.0, max_backoff=3600.0), stop))
    gevent.sleep(0)

    stop.set()
    waiting.join(60)

    assert isinstance(waiting.exception, GivenUp)
    assert server.pulls == 1


def test_other_greenlets_go_on_during_a_wait() -> None:
    stop, ticks = Flag(), []

    def tick() -> None:
        for number in range(5):
            ticks.append(number)
            gevent.sleep(0)
        stop.set()

    gevent.spawn(tick)
    with pytest.raises(GivenUp):
        wrapped(Server(AWAY), config(0, 3600.0, max_backoff=3600.0), stop)()

    assert ticks == list(range(5))
