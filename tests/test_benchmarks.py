"""The benchmarks in a small form: they run, and find every event once and in order; speed is not tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def tables(subject: str, scale: float, folder: Path) -> dict[str, Any]:
    """Run a copy of a benchmark, which ends with an error when an event is missing, and return what it keeps."""
    for source in [*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("contestants/*")]:
        target = folder / source.relative_to(BENCHMARKS)
        target.parent.mkdir(exist_ok=True)
        if source.is_file():
            target.write_bytes(source.read_bytes())
    ended = subprocess.run(
        [sys.executable, f"bench_{subject}.py", str(scale), "1"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr
    kept = json.loads((folder / "results" / f"{subject}.json").read_text())
    assert {"machine", "versions", "date"} <= kept.keys()
    found: dict[str, Any] = kept["tables"]
    return found


def test_the_overhead_of_lanes_is_measured(tmp_path: Path) -> None:
    (table,) = tables("overhead", 0.02, tmp_path).values()
    assert list(table) == ["inline", "8 lanes", "64 lanes", "1000 lanes"]


@pytest.mark.faults
def test_every_kind_of_change_is_replayed_by_every_contestant(tmp_path: Path) -> None:
    found = tables("throughput", 0.01, tmp_path)
    assert len(found) == 3
    for table in found.values():
        assert {"collection.watch()", "Watcher", "Watcher, unpatched", "reading alone", "asyncio"} <= table.keys()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("subject", "scale", "count"),
    [
        ("fanout", 0.02, 3),
        ("concurrency", 0.02, 3),
        ("latency", 0.02, 3),
        ("neighbour", 0.01, 2),
        ("cost", 0.01, 3),
        ("gunicorn", 0.02, 1),
    ],
)
def test_every_subject_has_its_tables(tmp_path: Path, subject: str, scale: float, count: int) -> None:
    assert len(tables(subject, scale, tmp_path)) == count
