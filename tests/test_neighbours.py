"""Who else lives in the hub: sockets and timers have their turn while a stream is replayed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from flow import Flow, insert
from gevent.socket import wait_read

from rigatoni.hub import let_others_run


@pytest.fixture
def mail() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a line."""
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def test_a_round_of_the_hub_asks_for_sockets(mail: Any) -> None:
    near, far = mail
    reader = gevent.spawn(wait_read, far.fileno())
    let_others_run()
    near.send(b"!")

    let_others_run()
    let_others_run()

    assert reader.dead


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_socket_is_served_between_the_events_of_lanes_that_take_their_time(
    mail: Any, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    # As if every event took as long as a lane may go on.
    monkeypatch.setattr("rigatoni.lane.TURN", 0.0)
    near, far = mail
    flow, handled, served = Flow(concurrency=concurrency), [], []

    @flow.on("insert")
    def handle(event: Any) -> None:
        handled.append(event)
        if len(handled) == 10:
            near.send(b"!")

    def serve() -> None:
        wait_read(far.fileno())
        served.append(len(handled))

    reader = gevent.spawn(serve)
    flow.play(*map(insert, range(200)))

    reader.join()
    # A round of all lanes and then the sockets.
    assert 10 <= served[0] <= 10 + 2 * concurrency
