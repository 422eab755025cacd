"""From the write to the handler, at 10, 500 and 5,000 writes a second, against pymongo's own loop.

Counted from the moment the write is sent: on a quiet server a handler can be entered before the writer has read that it
is acknowledged, so that the delay after the acknowledgement, which is printed too, may be negative.
"""

from __future__ import annotations

import sys
from functools import partial

from measuring import Contestant, Report, median, python, ratios, rounds, server, uri_of

RATES = {10: 100, 500: 5000, 5000: 25_000}
QUANTILES = ("p50", "p99", "p99.9")


def main(scale: float = 1.0, count: int = 5) -> None:
    """Print a table for each rate of writes."""
    report = Report("latency")
    with server() as client:
        client.shop.orders.insert_one({})
        for rate, writes in RATES.items():
            given = {"uri": uri_of(client), "names": ["orders"], "count": int(writes * scale), "rate": rate}
            contestants: dict[str, Contestant] = {
                "collection.watch()": partial(python, "live.py", how="loop", **given),
                "Watcher": partial(python, "live.py", patched=True, how="watcher", store=True, **given),
                "Watcher, unpatched": partial(python, "live.py", how="watcher", store=True, **given),
            }
            results = rounds(contestants, count)
            to_loop = {figure: ratios(results, figure, "collection.watch()") for figure in QUANTILES}
            report.table(
                f"Delay at {rate:,} writes a second, milliseconds",
                [column for figure in QUANTILES for column in (figure, f"{figure} to the loop")]
                + ["p50 after acknowledgement", "writes a second"],
                {
                    name: [
                        text
                        for figure in QUANTILES
                        for text in (median([f[figure] for f in measured]), median(to_loop[figure][name]))
                    ]
                    + [median([f[figure] for f in measured]) for figure in ("after", "written")]
                    for name, measured in results.items()
                },
            )
            report.keep(**{f"{rate} a second": results})


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
