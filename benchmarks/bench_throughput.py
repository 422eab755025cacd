"""Replay what a collection went through: inserts of 436-byte events, updates with lookup, documents of 10 kB.

Contestants: a Watcher with an empty handler and its tokens on disk, patched and not; pymongo's own loop, alone and with
a token saved after each event; its asyncio loop; the Node driver's; libmongoc without decoding, which is the server's
own limit for one cursor; and reading alone, the limit for anything that decodes in Python.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from measuring import (
    Contestant,
    Report,
    compiled,
    has_libmongoc,
    has_node,
    median,
    node,
    now,
    python,
    ratios,
    rounds,
    server,
    uri_of,
)
from pymongo import UpdateOne

SMALL = {"item": "x" * 100, "price": 1.5, "paid": True}
LARGE = {"item": "x" * 100, **{f"field_{number}": "y" * 150 for number in range(60)}}


def inserts(client: Any, count: int, document: dict[str, Any]) -> dict[str, Any]:
    """Insert documents, and say what to replay."""
    begun = now(client)
    for start in range(0, count, 10_000):
        numbers = range(start, min(start + 10_000, count))
        client.shop.orders.insert_many([{"number": number, **document} for number in numbers])
    return {"begun": begun, "full_document": None}


def updates(client: Any, count: int, document: dict[str, Any]) -> dict[str, Any]:
    """Insert documents, update each, and say how to replay the updates with the documents looked up."""
    inserts(client, count, document)
    begun = now(client)
    for start in range(0, count, 10_000):
        changes = [
            UpdateOne({"number": number}, {"$set": {"paid": False}})
            for number in range(start, min(start + 10_000, count))
        ]
        client.shop.orders.bulk_write(changes)
    return {"begun": begun, "full_document": "updateLookup"}


def contestants(given: dict[str, Any]) -> dict[str, Contestant]:
    """Name who replays, and how."""
    named: dict[str, Contestant] = {
        "collection.watch()": partial(python, "plain_loop.py", **given),
        "Watcher": partial(python, "watcher.py", patched=True, **given),
        "Watcher, unpatched": partial(python, "watcher.py", **given),
        "reading alone": partial(python, "reading_alone.py", patched=True, **given),
        "collection.watch(), a token saved per event": partial(python, "saving_loop.py", **given),
        "asyncio": partial(python, "asyncio_loop.py", **given),
    }
    if has_node():
        named["Node driver"] = partial(node, "node_loop.cjs", **given)
    if has_libmongoc():
        begun, lookup = given["begun"], given["full_document"] or ""
        named["libmongoc, not decoded"] = partial(
            compiled, "libmongoc_loop.c", given["uri"], begun.time, begun.inc, given["count"], lookup
        )
    return named


def main(scale: float = 1.0, count: int = 5) -> None:
    """Print a table for each kind of change.

    :param scale: a share of the full number of events.
    :param count: rounds after the warm-up.
    """
    report = Report("throughput")
    cases: dict[str, tuple[Callable[..., dict[str, Any]], int, dict[str, Any]]] = {
        "inserts, 436 bytes": (inserts, 200_000, SMALL),
        "updates with updateLookup": (updates, 100_000, SMALL),
        "inserts, 10 kB": (inserts, 50_000, LARGE),
    }
    for title, (make, events, document) in cases.items():
        events = int(events * scale)
        with server() as client:
            client.shop.orders.create_index("number")
            given = make(client, events, document)
            size = 436 if document is SMALL else 10_000
            given |= {"uri": uri_of(client), "count": events, "event_size": size}
            results = rounds(contestants(given), count)
        rates = {name: [figures["rate"] for figures in measured] for name, measured in results.items()}
        to_loop, to_reading = (ratios(results, "rate", to) for to in ("collection.watch()", "reading alone"))
        report.table(
            f"{title}: {events:,} events",
            ["events a second", "to collection.watch()", "to reading alone", "client CPU, µs an event"],
            {
                name: [
                    median(rates[name]),
                    median(to_loop[name]),
                    median(to_reading[name]),
                    median([figures["cpu"] for figures in results[name]]),
                ]
                for name in results
            },
        )
        report.bars(f"{title}", "events a second", rates)
        report.keep(**{title: results})


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
