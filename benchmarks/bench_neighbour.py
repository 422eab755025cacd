"""What else runs on the hub while a Watcher replays at full speed: a ticker, and requests to a WSGI application.

Beside it the same application while pymongo's own loop replays on that hub, and while another process reads the same
as fast as it can: what the machine itself costs, whose cores the server, the reader and the visitor share.
"""

from __future__ import annotations

import sys
from functools import partial

from bench_throughput import LARGE, SMALL, inserts
from measuring import Contestant, Report, median, python, ratios, rounds, server, uri_of


def main(scale: float = 1.0, count: int = 5) -> None:
    """Print a table for small documents and one for documents of 10 kB."""
    report = Report("neighbour")
    for title, events, size, document in (("436 bytes", 200_000, 436, SMALL), ("10 kB", 50_000, 10_000, LARGE)):
        events = int(events * scale)
        with server() as client:
            given = {**inserts(client, events, document), "uri": uri_of(client), "count": events, "event_size": size}
            contestants: dict[str, Contestant] = {
                how: partial(python, "neighbour.py", patched=True, seconds=3.0, replayed_by=program, **given)
                for how, program in {
                    "idle": None,
                    "a Watcher replays": "Watcher",
                    "pymongo's loop replays": "the loop",
                    "reading alone, in another process": "reading_alone.py",
                }.items()
            }
            results = rounds(contestants, count)
        to_idle = {figure: ratios(results, figure, "idle") for figure in ("tick", "request")}
        report.table(
            f"{events:,} events of {title}",
            ["tick late, p99 ms", "request, p99 ms", "to idle", "requests a second", "events a second"],
            {
                name: [
                    median([figures["tick"] for figures in measured]),
                    median([figures["request"] for figures in measured]),
                    median(to_idle["request"][name]),
                    median([figures["requests"] for figures in measured]),
                    median([figures["rate"] for figures in measured]),
                ]
                for name, measured in results.items()
            },
        )
        report.keep(**{title: results})


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
