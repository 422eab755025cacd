"""1 to 1,000 collections with a handler each, over one shared cursor, against a cursor per collection.

A cursor per collection is what one gets from ``collection.watch()`` in a greenlet each; here it is the same Watcher
with ``watch()`` for every collection, so that nothing but the number of cursors differs.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from measuring import Contestant, Report, median, now, python, ratios, rounds, server, uri_of, with_server_cpu

#: More cursors than this take minutes for what one takes seconds for.
MOST_CURSORS = 100


def filled(client: Any, collections: int, count: int) -> dict[str, Any]:
    """Insert documents round about over collections, and say what to replay."""
    begun = now(client)
    for nth in range(collections):
        documents = [{"number": number, "item": "x" * 100} for number in range(nth, count, collections)]
        client.shop[f"collection_{nth}"].insert_many(documents)
    return {"uri": uri_of(client), "begun": begun, "collections": collections, "count": count}


def rates(report: Report, scale: float, count: int) -> None:
    """Compare replays of 1 to 1,000 collections."""
    events, rows, plotted = int(100_000 * scale), dict[str, list[str]](), dict[str, dict[float, list[float]]]()
    for collections in (1, 10, 100, 1000):
        with server() as client:
            given = filled(client, collections, events)
            ways = ["a handler each", "one handler", *(["a cursor each"] if collections <= MOST_CURSORS else [])]
            contestants: dict[str, Contestant] = {
                how: with_server_cpu(
                    client, partial(python, "many_collections.py", patched=True, how=how, **given), events
                )
                for how in ways
            }
            results = rounds(contestants, count)
        to_one = ratios(results, "rate", "one handler")
        for how, measured in results.items():
            plotted.setdefault(how, {})[collections] = [figures["rate"] for figures in measured]
            rows[f"{collections} collections, {how}"] = [
                median([figures["rate"] for figures in measured]),
                median(to_one[how]),
                median([figures["server_cpu"] for figures in measured]),
            ]
        report.keep(**{f"rates of {collections}": results})
    report.table(f"Rate: {events:,} inserts", ["events a second", "to one handler", "server CPU, µs an event"], rows)
    report.lines("Rate by collections", "collections", "events a second", plotted)
    each = plotted["a handler each"]
    base = each[1]
    report.table(
        "Rate to that of one collection",
        ["ratio"],
        {f"{n} collections": [median([rate / one for rate, one in zip(each[n], base, strict=True)])] for n in each},
    )


def latencies(report: Report, scale: float, count: int) -> None:
    """Compare delays at 300 writes a second over 1 and over 400 collections."""
    with server() as client:
        contestants: dict[str, Contestant] = {}
        for collections, how in ((1, "a handler each"), (400, "a handler each"), (400, "a cursor each")):
            names = [f"live_{nth}" for nth in range(collections)]
            for name in names:
                client.shop[name].insert_one({})
            contestants[f"{collections} collections, {how}"] = partial(
                python,
                "live.py",
                patched=True,
                uri=uri_of(client),
                names=names,
                count=int(3000 * scale),
                rate=300,
                how=how,
                store=True,
            )
        results = rounds(contestants, count)
    to_one = ratios(results, "p99", "1 collections, a handler each")
    report.table(
        "Delay at 300 writes a second, milliseconds",
        ["p50", "p99", "p99 to one collection", "writes a second"],
        {
            name: [
                median([figures["p50"] for figures in measured]),
                median([figures["p99"] for figures in measured]),
                median(to_one[name]),
                median([figures["written"] for figures in measured]),
            ]
            for name, measured in results.items()
        },
    )
    report.keep(latencies=results)


def main(scale: float = 1.0, count: int = 5) -> None:
    """Print the tables."""
    report = Report("fanout")
    rates(report, scale, count)
    latencies(report, scale, count)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
