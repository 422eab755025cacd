"""What a Watcher costs: memory while a handler is blocked before a large backlog, CPU when idle, time to start."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from bench_throughput import LARGE, inserts
from measuring import Figures, Report, median, python, rounds, server, uri_of


def main(scale: float = 1.0, count: int = 5) -> None:
    """Print three tables."""
    report = Report("cost")
    documents = int(200_000 * scale)
    with server() as client:
        given = {**inserts(client, documents, LARGE), "uri": uri_of(client)}
        held = rounds({"held": partial(python, "holding.py", patched=True, **given)}, count)["held"]
        report.table(
            f"Memory before a backlog of {documents * 10 // 1000:,} MB, MB",
            ["idle", "with a blocked handler", "more", "events in flight"],
            {"Watcher": [median([figures[key] for figures in held]) for key in ("idle", "held", "grown", "in_flight")]},
        )
        idle = rounds(
            {
                f"{handlers:,} handlers": partial(
                    python, "idling.py", patched=True, uri=given["uri"], handlers=handlers, seconds=5 * scale + 1
                )
                for handlers in (1, 1000)
            },
            count,
        )
        report.table(
            "CPU when idle, per cent of a core",
            ["share"],
            {name: [median([figures["share"] for figures in measured])] for name, measured in idle.items()},
        )
        with TemporaryDirectory() as folder:

            def started() -> Figures:
                before = perf_counter()
                figures = python("starting.py", patched=True, store=str(Path(folder) / "tokens.db"), **given)
                return {**figures, "program": (perf_counter() - before) * 1000}

            starts = rounds({"started": started}, count)["started"]
        report.table(
            "Time to start, milliseconds",
            ["start()", "start() to the first event", "the whole program, interpreter included"],
            {"Watcher": [median([figures[key] for figures in starts]) for key in ("start", "first", "program")]},
        )
        report.keep(held=held, idle=idle, starts=starts)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
