"""The benchmarks in a small form: every event is handled once, and ratios are printed; speed is not tested here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def printed(program: str, *arguments: int) -> str:
    """Run a benchmark, which ends with an error when it counts another number of events, and return what it prints."""
    ended = subprocess.run(
        [sys.executable, "-m", "gevent.monkey", program, *map(str, arguments)],
        cwd=BENCHMARKS,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout)
    return ended.stdout


def ratios(text: str) -> list[float]:
    """Find the medians, each with its spread."""
    found = re.findall(r": (\d+\.\d\d) \((\d+\.\d\d) to (\d+\.\d\d), (\d+) pairs\)$", text, re.MULTILINE)
    assert all(float(low) <= float(median) <= float(high) for median, low, high, _ in found)
    return [float(median) for median, *_ in found]


def test_a_replay_is_compared_with_the_loop_of_pymongo() -> None:
    text = printed("bench_throughput.py", 4000, 2)

    assert len(re.findall("collection.watch.. .*/s .*Watcher .*/s", text)) == 2
    assert len(ratios(text)) == 1


def test_many_collections_are_compared_with_one_and_with_one_handler_for_all() -> None:
    text = printed("bench_collections.py", 3000, 60, 1)

    assert text.startswith("60 handlers")
    assert len(ratios(text)) == 2
