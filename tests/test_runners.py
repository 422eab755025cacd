"""The greenlets that let lanes work."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from conftest import wait_until

from rigatoni.runners import Runners


@pytest.mark.parametrize(
    "error",
    [gevent.GreenletExit(), gevent.Timeout(1), ValueError("of somebody else")],
    ids=lambda error: type(error).__name__,
)
def test_a_spare_that_somebody_kills_is_noticed_whatever_with_and_another_takes_its_place(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    spares: list[Any] = []
    spawn = Runners.put.__globals__["Haltable"].spawn
    monkeypatch.setattr("rigatoni.runners.Haltable.spawn", lambda run: spares.append(spawn(run)) or spares[-1])
    done: list[int] = []
    failures: list[BaseException] = []
    runners = Runners(failures.append)
    runners.put(lambda: done.append(1))
    runners.put(lambda: done.append(2))

    spares[0].kill(error)

    wait_until(lambda: done == [1, 2], 10)
    assert failures == [error]
