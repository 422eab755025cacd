"""Replay inserts through a Watcher with an empty handler and tokens on disk, against pymongo's own loop, in turns.

The rival is the loop of pymongo's documentation, ``for change in collection.watch()``, over the same events in the same
process, without saving anything.
"""

import sys
from time import perf_counter
from typing import Any

from bson import Timestamp
from rivals import compared, filled, watched


def looped(database: Any, begun: Timestamp, expected: int) -> float:
    """Return the events per second of pymongo's loop."""
    count, before = 0, perf_counter()
    with database["orders"].watch(start_at_operation_time=begun) as stream:
        for _ in stream:
            count += 1
            if count == expected:
                break
    return expected / (perf_counter() - before)


def main(documents: int = 120_000, pairs: int = 5) -> None:
    """Print both rates of each pair, and the ratio."""
    with filled(documents, ["orders"]) as (uri, database, begun):

        def ours(check: bool = False) -> float:
            return watched(
                uri, begun, documents, lambda watcher, h: watcher.on("insert", collection="orders")(h), check=check
            )

        looped(database, begun, documents), ours(check=True)
        ratios = []
        for _ in range(pairs):
            theirs, mine = looped(database, begun, documents), ours()
            ratios.append(mine / theirs)
            print(f"collection.watch() {theirs:8.0f}/s   Watcher {mine:8.0f}/s   {mine / theirs:.2f}")
    compared("Watcher : collection.watch()", ratios)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
