"""From ``start()`` to the first event; what a program that is started again needs until then."""

import json
import threading
from time import perf_counter

from contestant import given

from rigatoni import Watcher

first = threading.Event()
watcher = Watcher(given["uri"], "shop", store=given["store"], start_at=given["begun"])


@watcher.on("insert", collection="orders")
def handle(event):
    first.set()


before = perf_counter()
watcher.start()
started = perf_counter()
first.wait()
entered = perf_counter()
watcher.stop()
print(json.dumps({"start": (started - before) * 1000, "first": (entered - before) * 1000}))
