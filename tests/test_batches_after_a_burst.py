"""Batches after the stream was held once: they fill again, also in a lane that never runs empty."""

from __future__ import annotations

from conftest import wait_until
from flow import PATIENCE, Flow, insert
from gevent.event import Event

from rigatoni.events import ChangeEvent


def test_after_the_stream_was_held_batches_of_a_lane_that_never_runs_empty_wait_to_be_full_again() -> None:
    flow, calls, free = Flow(), [], Event()

    @flow.on_batch(max_size=3, max_wait=PATIENCE)
    def handle(events: list[ChangeEvent]) -> None:
        calls.append([event["documentKey"]["_id"] for event in events])
        free.wait()

    flow.put(insert(0))
    # As while the stream is held.
    flow.lanes.flush()
    wait_until(lambda: calls == [[0]])
    flow.put(insert(1))
    free.set()
    (lane,) = flow.lanes.live
    wait_until(lambda: lane.is_waiting or len(calls) > 1)
    flow.put(insert(2), insert(3))
    flow.settle()

    assert calls == [[0], [1, 2, 3]]
