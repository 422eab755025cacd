"""A Watcher whose handler waits while a backlog is there: how much more memory it takes than an idle one."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

from contestant import given

from rigatoni import MemoryStore, Watcher


def resident():
    """Return the resident memory in MB. https://man7.org/linux/man-pages/man5/proc_pid_status.5.html"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


go_on, entered = threading.Event(), threading.Event()
watcher = Watcher(given["uri"], "shop", store=MemoryStore(), start_at=given["begun"])


@watcher.on("insert", collection="orders")
def handle(event):
    entered.set()
    go_on.wait()


idle = Watcher(given["uri"], "elsewhere", store=MemoryStore())
idle.on("insert")(handle)
with idle:
    time.sleep(0.5)
    before = resident()
watcher.start()
entered.wait()
# It has all that it takes once as much is in flight for a while.
most = steady = 0
while steady < 20:
    time.sleep(0.1)
    in_flight = watcher.stats()["in_flight"]
    steady = steady + 1 if in_flight == most else 0
    most = max(most, in_flight)
after = resident()
go_on.set()
watcher.stop()
print(json.dumps({"idle": before, "held": after, "grown": after - before, "in_flight": most}))
