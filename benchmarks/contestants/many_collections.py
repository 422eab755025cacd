"""Replay the inserts of many collections through one Watcher: a handler each, one for all, or a cursor each."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from contestant import given

from rigatoni import Watcher

seen: dict[str, list[int]] = defaultdict(list)
left = given["count"]
done = threading.Event()


def note(event):
    global left
    seen[event.collection].append(event.full_document["number"])
    left -= 1
    if not left:
        done.set()


def named(name):
    def handler(event):
        note(event)

    # Handlers go by name.
    handler.__qualname__ = name
    return handler


names = [f"collection_{number}" for number in range(given["collections"])]
with TemporaryDirectory() as folder:
    watcher = Watcher(given["uri"], "shop", store=Path(folder) / "tokens.db", start_at=given["begun"])
    if given["how"] == "one handler":
        watcher.on("insert")(note)
    else:
        for name in names:
            watcher.on("insert", collection=name)(named(name))
            if given["how"] == "a cursor each":
                watcher.watch(name)
    before, cpu = perf_counter(), process_time()
    watcher.start()
    started = perf_counter() - before
    done.wait()
    seconds, cpu = perf_counter() - before, process_time() - cpu
    watcher.stop()
count = given["count"]
for nth, name in enumerate(names):
    assert seen[name] == list(range(nth, count, len(names))), f"{name}: not every event once and in order"
print(json.dumps({"rate": count / seconds, "cpu": cpu / count * 1e6, "start": started}))
