"""Handlers that wait 1, 5 and 50 ms, in 1 to 1,000 lanes; documents changed evenly, or few of them most of the time."""

from __future__ import annotations

import random
import sys
from functools import partial
from typing import Any

from measuring import Contestant, Report, median, now, python, ratios, rounds, server, uri_of
from pymongo import UpdateOne

#: Documents and their changes: all different, even, and skewed (the square of a random number picks the document).
KEYS = {"8,000 documents": 8000, "400 documents": 400, "400 documents, skewed": -400}
LANES = (10, 50, 200, 1000)
#: Seconds, and which share of the changes is replayed with such a handler.
WAITS = {0.001: 1.0, 0.005: 1.0, 0.05: 0.25}
CHANGES = 8000


def change(client: Any, name: str, documents: int, count: int, seed: int = 1) -> None:
    """Make changes, numbered."""
    chance = random.Random(seed)
    client.shop[name].insert_many([{"_id": number} for number in range(abs(documents))])
    keys = (
        [int(-documents * chance.random() ** 2) for _ in range(count)]
        if documents < 0
        else [number % documents for number in range(count)]
    )
    changes = [UpdateOne({"_id": key}, {"$set": {"change": number}}) for number, key in enumerate(keys)]
    client.shop[name].bulk_write(changes)


def main(scale: float = 1.0, count: int = 5) -> None:
    """Print a table for each wait."""
    report = Report("concurrency")
    alone = int(200 * scale)
    with server() as client:
        begun = now(client)
        for nth, documents in enumerate(KEYS.values()):
            change(client, f"changed_{nth}", documents, int(CHANGES * scale))
        change(client, "alone", alone, alone)
        given = {"uri": uri_of(client), "begun": begun}
        for wait, share in WAITS.items():
            changes = int(CHANGES * scale * share)
            run = partial(python, "waiting.py", patched=True, wait=wait, **given)
            contestants: dict[str, Contestant] = {
                "one at a time": partial(run, lanes=1, collection="alone", count=alone)
            }
            for nth, name in enumerate(KEYS):
                for lanes in LANES:
                    contestants[f"{name}, {lanes} lanes"] = partial(
                        run, lanes=lanes, collection=f"changed_{nth}", count=changes
                    )
            results = rounds(contestants, count)
            to_one = ratios(results, "rate", "one at a time")
            report.table(
                f"Handlers that wait {wait * 1000:.0f} ms",
                ["events a second", "to one at a time"],
                {
                    name: [median([figures["rate"] for figures in measured]), median(to_one[name])]
                    for name, measured in results.items()
                },
            )
            report.bars(f"Handlers that wait {wait * 1000:.0f} ms", "times one at a time", to_one)
            report.keep(**{f"{wait} s": results})


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
