"""Handle inserts while they are made by another process: milliseconds from the write to the handler."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bson import json_util
from contestant import given
from pymongo import MongoClient

from rigatoni import MemoryStore, SQLiteStore, Watcher

entered: dict[int, float] = {}
done = threading.Event()


def enter(number):
    entered[number] = time.monotonic()
    if len(entered) == given["count"]:
        done.set()


def named(name):
    def handler(event):
        enter(event.full_document["number"])

    # Handlers go by name.
    handler.__qualname__ = name
    return handler


def write():
    """Run the writer to its end."""
    wanted = {key: given[key] for key in ("uri", "names", "count", "rate")}
    program = [sys.executable, str(Path(__file__).with_name("writer.py")), json_util.dumps(wanted)]
    return json.loads(subprocess.run(program, check=True, capture_output=True, text=True).stdout)


def loop():
    """Follow by pymongo's own loop, in a thread or greenlet beside the one that waits for the writer."""
    opened = threading.Event()

    def follow():
        with MongoClient(given["uri"]) as client, client.shop[given["names"][0]].watch() as stream:
            opened.set()
            for change in stream:
                enter(change["fullDocument"]["number"])
                if done.is_set():
                    return

    threading.Thread(target=follow, daemon=True).start()
    opened.wait()
    return follow_writer()


def watched():
    """Follow by a Watcher."""
    with TemporaryDirectory() as folder:
        store = SQLiteStore(Path(folder) / "tokens.db") if given["store"] else MemoryStore()
        watcher = Watcher(given["uri"], "shop", store=store)
        for name in given["names"]:
            watcher.on("insert", collection=name)(named(name))
            if given["how"] == "a cursor each":
                watcher.watch(name)
        with watcher:
            return follow_writer()


def follow_writer():
    """Write, and wait until everything was handled."""
    written = write()
    assert done.wait(300), f"{len(entered)} events instead of {given['count']}"
    return written


written = loop() if given["how"] == "loop" else watched()
# From when it was sent: a handler may be entered before the writer has read its answer.
delays = [(entered[number] - at) * 1000 for number, at in enumerate(written["sent"])]
after = [(entered[number] - at) * 1000 for number, at in enumerate(written["acknowledged"])]
parts = statistics.quantiles(delays, n=1000, method="inclusive")
print(
    json.dumps(
        {
            "p50": parts[499],
            "p99": parts[989],
            "p99.9": parts[998],
            "after": statistics.median(after),
            "written": written["rate"],
        }
    )
)
