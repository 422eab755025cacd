"""A site on four gevent workers of gunicorn, 200 requests a second, while one worker handles 100,000 events.

Three times the same writes and the same requests: without a watcher, with one, and with one whose worker is killed by
SIGKILL half-way. Every event must have been handled.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from measuring import CONTESTANTS, Contestant, Figures, Report, median, ratios, rounds, server, uri_of
from pymongo import MongoClient

WORKERS = 4
RATE = 200
#: Inserts a second, in lots of 100.
WRITES = 5000
HOOKS = "from rigatoni.contrib.gunicorn import post_worker_init, worker_exit\n"


@contextmanager
def site(client: MongoClient[Any], folder: Path, watches: bool) -> Iterator[int]:
    """Serve the site, with hooks or without, and give its port once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (folder / "gunicorn.conf.py").write_text("control_socket_disable = True\n" + (HOOKS if watches else ""))
    settings = {"URI": uri_of(client), "DATABASE": "shop", "STORE": str(folder / "tokens.db")}
    environment = {f"FLASK_RIGATONI_{name}": value for name, value in settings.items()}
    command = [
        "gunicorn",
        "--bind",
        f"127.0.0.1:{port}",
        "--workers",
        str(WORKERS),
        "--worker-class",
        "gevent",
        "shop:app",
    ]
    path = os.pathsep.join(filter(None, [str(CONTESTANTS), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": path, "NOTES": str(folder)},
        stderr=(folder / "log").open("wb"),
    )
    try:
        pids: set[int] = set()
        wait_until(lambda: process.poll() is not None or len(answered(port, pids)) == WORKERS, "all workers")
        assert process.poll() is None, (folder / "log").read_text()
        yield port
    finally:
        process.terminate()
        process.wait()


def measure(client: MongoClient[Any], events: int, watches: bool = True, kills: bool = False) -> Figures:
    """Write, ask and watch at once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        client.drop_database("shop")
        with site(client, folder, watches) as port:
            orders = client.shop.orders
            if watches:
                # So that the watcher is known to have begun; numbers below 0 are not counted.
                wait_until(lambda: orders.insert_one({"_id": -time.monotonic_ns()}) and notes(folder), "a watcher")
            with visitors(port) as results:
                began = time.monotonic()
                writer = threading.Thread(target=write, args=(orders, events))
                writer.start()
                takeover = kill_active(folder, events // 2) if kills else 0.0
                writer.join()
                if watches:
                    wait_until(lambda: size(folder) >= events and len(handled(folder)) == events, "the last event")
                seconds = time.monotonic() - began
            repeated = sum(handled(folder).values()) - events if watches else 0
        return {**results, "rate": events / seconds, "repeated": repeated, "takeover": takeover}


def write(orders: Any, count: int) -> None:
    """Insert orders evenly."""
    due = time.monotonic()
    for number in range(0, count, 100):
        orders.insert_many([{"_id": _id, "item": "pasta"} for _id in range(number, min(number + 100, count))])
        due += 100 / WRITES
        time.sleep(max(0.0, due - time.monotonic()))


@contextmanager
def visitors(port: int) -> Iterator[dict[str, float]]:
    """Have the site visited; what that took is there at the end."""
    command = [sys.executable, "-m", "gevent.monkey", str(CONTESTANTS / "visitors.py")]
    with subprocess.Popen(
        [*command, json.dumps({"port": port, "rate": RATE})], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        results: dict[str, float] = {}
        yield results
        results.update(json.loads(process.communicate()[0]))


def kill_active(folder: Path, count: int) -> float:
    """Kill the worker that handles after so many events, and say after how many seconds another one does."""
    wait_until(lambda: size(folder) >= count, "half of the events")
    before = notes(folder)
    active = max(before, key=lambda path: path.stat().st_mtime_ns)
    began = time.monotonic()
    os.kill(int(active.name), signal.SIGKILL)
    wait_until(lambda: set(notes(folder)) - set(before), "another worker")
    return time.monotonic() - began


def notes(folder: Path) -> list[Path]:
    """Find what the workers wrote down."""
    return [path for path in folder.iterdir() if path.name.isdigit() and path.stat().st_size]


def handled(folder: Path) -> Counter[int]:
    """Count how often each order was handled."""
    counts: Counter[int] = Counter()
    for path in notes(folder):
        written = path.read_bytes()
        numbers = memoryview(written[: len(written) // 8 * 8]).cast("q")
        counts.update(number for number in numbers if number >= 0)
    return counts


def size(folder: Path) -> int:
    """Count the calls of the handler."""
    return sum(path.stat().st_size for path in notes(folder)) // 8


def answered(port: int, pids: set[int]) -> set[int]:
    """Ask once, and add the process that answers."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            pids.add(json.load(answer)["pid"])
    except OSError:
        pass
    return pids


def wait_until(condition: Any, what: str) -> None:
    """Wait for a condition, or fail."""
    end = time.monotonic() + 120
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"waited in vain for {what}")
        time.sleep(0.01)


def main(scale: float = 1.0, count: int = 1) -> None:
    """Print one table."""
    events = int(100_000 * scale)
    report = Report("gunicorn")
    with server() as client:
        contestants: dict[str, Contestant] = {
            "without a watcher": partial(measure, client, events, watches=False),
            "with a watcher": partial(measure, client, events),
            "its worker killed": partial(measure, client, events, kills=True),
        }
        results = rounds(contestants, count)
    to_none = ratios(results, "p99", "without a watcher")
    figures = ("p50", "p99", "requests", "failed", "rate", "repeated", "takeover")
    report.table(
        f"{events:,} events, {RATE} requests a second, 0 events lost",
        [
            "p50 ms",
            "p99 ms",
            "requests a second",
            "failed",
            "events a second",
            "repeated",
            "take-over s",
            "p99 to none",
        ],
        {
            name: [*(median([each[figure] for each in measured]) for figure in figures), median(to_none[name])]
            for name, measured in results.items()
        },
    )
    report.keep(rounds=results)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]), *map(int, sys.argv[2:]))
