"""The program that watches: some handlers are slow, some take batches, and each notes what it saw, in one file.

Run by :mod:`soak.processes`, patched by gevent or not.
"""

from __future__ import annotations

import json
import logging
import random
import sys
from typing import Any

import gevent

from rigatoni import ChangeStreamConfig, Watcher

from .notes import note, opened
from .oracle import DELETED, Bound

NAME = "soak"
COLLECTIONS = ("quick", "slow", "batched", "own")
#: Scopes of its streams, and what is in flight in each at most.
STREAMS = 2
IN_FLIGHT = 100
SAVE_INTERVAL = 0.1
BOUND = Bound(STREAMS * IN_FLIGHT, SAVE_INTERVAL)

#: Kinds of changes that carry a number.
CHANGES = ("insert", "update", "replace", "delete")


def _number(event: Any) -> int:
    if event.operation == "delete":
        return DELETED
    fields = event.update_description.updated_fields if event.operation == "update" else event.full_document
    return int(fields["number"])


def _watch(watcher: Watcher, notes: int) -> None:
    def noted(*events: Any) -> None:
        note(
            notes,
            (((f"{event.collection}/{event.document_key['_id']}", _number(event)), event.id) for event in events),
        )

    @watcher.on(*CHANGES, collection="quick")
    def quick(event: Any) -> None:
        noted(event)

    @watcher.on(*CHANGES, collection="slow", concurrency=16)
    def slow(event: Any) -> None:
        gevent.sleep(random.choice([0.0, 0.02, 0.1]))
        noted(event)
        gevent.sleep(random.choice([0.0, 0.02]))

    @watcher.on_batch(*CHANGES, collection="batched", max_size=20, max_wait=0.05)
    def batched(events: list[Any]) -> None:
        gevent.sleep(0.01)
        noted(*events)
        gevent.sleep(0.01)

    @watcher.on(*CHANGES, collection="own", concurrency=8)
    def own(event: Any) -> None:
        gevent.sleep(random.choice([0.0, 0.01]))
        noted(event)


def main(given: dict[str, str]) -> None:
    """Watch until told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    config = ChangeStreamConfig(max_await_time=0.5, max_backoff=1.0, max_reconnect_attempts=0)
    watcher = Watcher(
        given["uri"],
        given["database"],
        name=NAME,
        store=given["store"],
        config=config,
        concurrency=4,
        max_in_flight=IN_FLIGHT,
        save_interval=SAVE_INTERVAL,
    )
    watcher.watch("own")
    _watch(watcher, opened(given["notes"]))
    watcher.run()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
