"""What tests of the listener share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pymongo.monitoring import CommandListener

from rigatoni import ChangeStreamConfig, ChangeStreamListener, StreamError

Token = Mapping[str, Any]

#: What a test waits for in vain costs this much.
QUICK = ChangeStreamConfig(max_await_time=0.1)
#: Nothing ends such a wait by itself as long as a test has patience.
LONG = ChangeStreamConfig(max_await_time=600.0)


def place(token: Token | None) -> str:
    """Give what sorts as the events do."""
    assert token is not None
    return str(token["_data"])


def keys(events: list[Any]) -> list[Any]:
    return [event.document_key["_id"] for event in events]


def take(listener: ChangeStreamListener, count: int) -> list[Any]:
    return [next(listener) for _ in range(count)]


def operations(events: list[Any]) -> list[str]:
    return [event.operation for event in events]


def insert(collection: Any, *ids: int) -> None:
    collection.insert_many([{"_id": each} for each in ids])


def until_the_end(listener: ChangeStreamListener) -> tuple[list[Any], StreamError]:
    """Iterate until an error ends it, acknowledging everything."""
    events = []
    with pytest.raises(StreamError) as raised:
        for event in listener:
            events.append(event)
            event.ack()
    assert listener.state == "closed"
    return events, raised.value


class Commands(CommandListener):
    """Remember what a client sends, and the names and codes of what fails."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Mapping[str, Any]]] = []
        self.failures: list[tuple[str, int | None]] = []

    def started(self, event: Any) -> None:
        self.sent.append((event.command_name, dict(event.command)))

    def succeeded(self, event: Any) -> None:
        pass

    def failed(self, event: Any) -> None:
        self.failures.append((event.command_name, event.failure.get("code")))

    def named(self, name: str) -> list[Mapping[str, Any]]:
        return [command for sent, command in self.sent if sent == name]
