"""What tests of the listener share."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import Any, NamedTuple

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


class Opening(NamedTuple):
    """A change stream that a client asked for: how, where the replies before it ended, and when."""

    stage: Mapping[str, Any]
    token: Token | None
    time: float


class Commands(CommandListener):
    """Remember what a client sends, where the replies end, and the names and codes of what fails."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Mapping[str, Any]]] = []
        self.openings: list[Opening] = []
        self.token: Token | None = None
        self.failures: list[tuple[str, int | None]] = []

    def started(self, event: Any) -> None:
        self.sent.append((event.command_name, dict(event.command)))
        stage = next(iter(event.command.get("pipeline", ())), {}).get("$changeStream")
        if stage is not None:
            self.openings.append(Opening(stage, self.token, monotonic()))

    def succeeded(self, event: Any) -> None:
        token = event.reply.get("cursor", {}).get("postBatchResumeToken")
        if token is not None:
            self.token = dict(token)

    def failed(self, event: Any) -> None:
        self.failures.append((event.command_name, event.failure.get("code")))

    def named(self, name: str) -> list[Mapping[str, Any]]:
        return [command for sent, command in self.sent if sent == name]
