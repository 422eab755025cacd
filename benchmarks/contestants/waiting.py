"""Replay updates through handlers that wait, as those that call a service do; each document keeps its order."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict

from contestant import given

from rigatoni import MemoryStore, Watcher

seen: dict[int, list[int]] = defaultdict(list)
left, began, done = given["count"], 0.0, threading.Event()
watcher = Watcher(
    given["uri"], "shop", store=MemoryStore(), start_at=given["begun"], concurrency=given["lanes"], max_in_flight=20_000
)


@watcher.on("update", collection=given["collection"])
def handle(event):
    global left, began
    began = began or time.perf_counter()
    time.sleep(given["wait"])
    if not left:
        # There are more changes than were asked for.
        return
    seen[event.document_key["_id"]].append(event.update_description.updated_fields["change"])
    left -= 1
    if not left:
        done.set()


with watcher:
    done.wait()
    seconds = time.perf_counter() - began
for document, changes in seen.items():
    assert changes == sorted(changes) and len(changes) == len(set(changes)), f"{document}: another order"
assert sum(map(len, seen.values())) == given["count"], "not every change once"
print(json.dumps({"rate": given["count"] / seconds}))
