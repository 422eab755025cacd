"""Dispatch and acknowledgement per event, with decoded batches in memory: no server, no decoding, no saving.

The Rust original states 780 ns an event for its core without a database. Comparable is what is timed: an event that is
in memory goes to its handler and is acknowledged. Not comparable is the language, and that here the lanes keep the
order of each document and the position waits for the oldest event that is not done.
"""

from __future__ import annotations

import sys
from functools import partial

from measuring import Contestant, Report, median, python, rounds


def main(scale: float = 1.0, count: int = 7) -> None:
    """Print the time of an event, inline (one lane) and over many lanes."""
    report = Report("overhead")
    contestants: dict[str, Contestant] = {
        f"{lanes} lanes" if lanes > 1 else "inline": partial(
            python, "overhead.py", patched=True, lanes=lanes, count=int(200_000 * scale)
        )
        for lanes in (1, 8, 64, 1000)
    }
    results = rounds(contestants, count)
    times = {name: [figures["time"] for figures in measured] for name, measured in results.items()}
    report.table(
        "Dispatch and acknowledgement",
        ["µs an event", "CPU, µs an event"],
        {name: [median(times[name]), median([f["cpu"] for f in results[name]])] for name in results},
    )
    report.bars("Dispatch and acknowledgement", "µs an event", times)
    report.keep(results=results)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
