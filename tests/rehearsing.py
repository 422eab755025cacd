"""What tests on fake servers share."""

from __future__ import annotations

from typing import Any

from rigatoni import Hooks, MemoryStore, Watcher

#: A server that nobody may ask: only rehearsals run.
NOWHERE = "mongodb://nobody.invalid"


def shop(**options: Any) -> Watcher:
    return Watcher(NOWHERE, "shop", **{"store": MemoryStore(), **options})


class Told(Hooks):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.gaps: list[str] = []
        self.opened_streams = 0

    def opened(self, stream: str) -> None:
        self.opened_streams += 1

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        self.errors.append(error)

    def gap(self, stream: str, since: object, until: object) -> None:
        self.gaps.append(stream)
