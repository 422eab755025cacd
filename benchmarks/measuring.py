"""What the benchmarks share: a throw-away server, contestants as processes of their own, rounds, and reports.

Every contestant is a program in ``contestants/`` that checks what it counted and prints one line of JSON. A round runs
each of them once, so that what else the machine does hits all alike; ratios are taken within a round.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bson import Timestamp, json_util
from pymongo import MongoClient

from rigatoni.mongod import ReplicaSet

HERE = Path(__file__).parent
CONTESTANTS = HERE / "contestants"
RESULTS = HERE / "results"
NODE_MODULES = RESULTS / "node" / "node_modules"

Figures = Mapping[str, float]
Contestant = Callable[[], Figures]


@contextmanager
def server() -> Iterator[MongoClient[Any]]:
    """Run a throw-away server and give a client of it."""
    with ReplicaSet() as replica_set, MongoClient(replica_set.uri) as client:
        yield client


def uri_of(client: MongoClient[Any]) -> str:
    """Say where a client's server is."""
    host, port = client.address or ("", 0)
    return f"mongodb://{host}:{port}/?replicaSet={client.options.replica_set_name}"


def now(client: MongoClient[Any]) -> Timestamp:
    """Return the cluster time right behind the last write."""
    time: Timestamp = client.admin.command("ping")["operationTime"]
    return Timestamp(time.time, time.inc + 1)


def python(program: str, *, patched: bool = False, **given: Any) -> Figures:
    """Run a Python contestant, patched by gevent or not."""
    patch = ["-m", "gevent.monkey"] if patched else []
    # gevent.monkey runs a program without its folder on the path.
    path = os.pathsep.join(filter(None, [str(CONTESTANTS), os.environ.get("PYTHONPATH")]))
    return _run([sys.executable, *patch, str(CONTESTANTS / program), json_util.dumps(given)], PYTHONPATH=path)


def node(program: str, **given: Any) -> Figures:
    """Run a Node contestant."""
    return _run(["node", str(CONTESTANTS / program), json_util.dumps(given)], NODE_PATH=str(NODE_MODULES))


def compiled(program: str, *arguments: object) -> Figures:
    """Run a C contestant, compiled at the first time."""
    binary = RESULTS / program.removesuffix(".c")
    if not binary.exists():
        RESULTS.mkdir(exist_ok=True)
        asked = ["pkg-config", "--cflags", "--libs", "libmongoc-1.0"]
        flags = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
        subprocess.run(["cc", "-O2", "-o", str(binary), str(CONTESTANTS / program), *flags], check=True)
    return _run([str(binary), *map(str, arguments)])


def with_server_cpu(client: MongoClient[Any], contestant: Contestant, events: int) -> Contestant:
    """Have a contestant also say what the server's process used, in microseconds an event (Linux only)."""
    pid = client.admin.command("serverStatus")["pid"]

    def used() -> float:
        # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: user and system time, in ticks.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def measured() -> Figures:
        before = used()
        figures = contestant()
        return {**figures, "server_cpu": (used() - before) / events * 1e6}

    return measured


def has_node() -> bool:
    """Tell whether Node is there, and its driver where ``tox -e bench`` installs it."""
    return bool(shutil.which("node")) and (NODE_MODULES / "mongodb").exists()


def has_libmongoc() -> bool:
    """Tell whether a C compiler and libmongoc are there."""
    tools = shutil.which("cc") and shutil.which("pkg-config")
    return bool(tools) and not subprocess.run(["pkg-config", "--exists", "libmongoc-1.0"]).returncode


def rounds(contestants: Mapping[str, Contestant], count: int) -> dict[str, list[Figures]]:
    """Run all contestants in turns: once to warm up, then `count` times."""
    results: dict[str, list[Figures]] = {name: [] for name in contestants}
    for number in range(count + 1):
        for name, contestant in contestants.items():
            figures = contestant()
            if number:
                results[name].append(figures)
    return results


def median(values: Sequence[float]) -> str:
    """Write a median with its range."""
    return f"{_short(statistics.median(values))} ({_short(min(values))} to {_short(max(values))})"


def ratios(results: Mapping[str, Sequence[Figures]], figure: str, to: str) -> dict[str, list[float]]:
    """Divide a figure of each contestant by that of another, round by round."""
    base = [figures[figure] for figures in results[to]]
    return {
        name: [figures[figure] / other for figures, other in zip(measured, base, strict=True)]
        for name, measured in results.items()
    }


class Report:
    """The tables of one subject, printed at once and kept in ``results`` as JSON and as plots.

    :param subject: names the files.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._kept: dict[str, Any] = {"subject": subject, **machine(), "tables": {}}
        print(f"\n{subject}\n{'=' * len(subject)}")
        print("\n".join(f"{name}: {value}" for name, value in machine().items()))

    def table(self, title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> None:
        """Print a table, a row for each contestant or case."""
        widths = [
            max(map(len, rows)),
            *(max(len(row[n]) for row in [columns, *rows.values()]) for n in range(len(columns))),
        ]
        print(f"\n{title}")
        for name, row in [("", columns), *rows.items()]:
            print("  ".join(cell.ljust(width) for cell, width in zip([name, *row], widths, strict=True)).rstrip())
        self._kept["tables"][title] = {name: dict(zip(columns, row, strict=True)) for name, row in rows.items()}
        self._save()

    def keep(self, **figures: Any) -> None:
        """Keep raw figures in the JSON file."""
        self._kept.update(figures)
        self._save()

    def bars(self, title: str, unit: str, values: Mapping[str, Sequence[float]]) -> None:
        """Plot medians as bars, with their ranges; only where matplotlib is installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(8, 0.5 * len(values) + 1.2), layout="constrained")
        axes = figure.subplots()
        medians = [statistics.median(measured) for measured in values.values()]
        spread = [
            [middle - min(measured) for middle, measured in zip(medians, values.values(), strict=True)],
            [max(measured) - middle for middle, measured in zip(medians, values.values(), strict=True)],
        ]
        axes.barh(list(values), medians, xerr=spread, color="#4878a8", ecolor="#333333", capsize=3)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=unit)
        self._plot(figure, title)

    def lines(self, title: str, x: str, y: str, series: Mapping[str, Mapping[float, Sequence[float]]]) -> None:
        """Plot medians as lines over a number, on logarithmic axes; only where matplotlib is installed."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for name, points in series.items():
            axes.plot(list(points), [statistics.median(values) for values in points.values()], marker="o", label=name)
        axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
        axes.legend()
        self._plot(figure, title)

    def _plot(self, figure: Any, title: str) -> None:
        RESULTS.mkdir(exist_ok=True)
        name = "".join(character if character.isalnum() else "-" for character in title.lower())
        figure.savefig(RESULTS / f"{self._subject}-{name}.png", dpi=100)

    def _save(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self._subject}.json").write_text(json.dumps(self._kept, indent=2) + "\n")


def machine() -> dict[str, str]:
    """Say on what, with what and when."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    parts = ["rigatoni", "pymongo", "gevent"]
    return {
        "machine": f"{os.cpu_count()} cores, {model}",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{part} {version(part)}" for part in parts)]),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _run(command: Sequence[str], **environment: str) -> Figures:
    # sqlite-utils imports numpy where it is installed, as matplotlib has it here, and that starts threads that spin.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    if ended.returncode:
        raise RuntimeError(f"{command[-2]} ended with {ended.returncode}:\n{ended.stderr}")
    figures: Figures = json.loads(ended.stdout.splitlines()[-1])
    return figures
