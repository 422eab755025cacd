"""Tests of handlers without a server.

The smallest step: make an event and have the handlers called that match, here and now::

    from rigatoni.testing import make_event

    def test_an_order_is_shipped():
        watcher.dispatch(make_event("insert", document={"item": "pasta"}))
        assert shipped == ["pasta"]

A handler is also called by itself, and a manual one tells when it acknowledges::

    acknowledged = []
    event = make_event(document={"item": "pasta"}, ack=acknowledged.append)
    ship(event)
    assert acknowledged == [event]

The whole engine, with retries, acknowledgements, dead letters, positions and reconnection, on a server in memory::

    from rigatoni.testing import FakeClient

    def test_an_order_is_shipped_in_spite_of_a_failover():
        client = FakeClient("shop")
        with watcher.rehearsal(client) as rehearsed:
            client.fail(10107)
            client.insert("orders", {"item": "pasta"})
            client.drain(rehearsed)
        assert shipped == ["pasta"]
"""

from __future__ import annotations

from .client import FakeClient as FakeClient
from .events import make_event as make_event

__all__ = ["FakeClient", "make_event"]
