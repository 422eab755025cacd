"""A Watcher with a thousand handlers and nothing to do: the share of a core that it takes."""

import json
from time import process_time, sleep

from contestant import given

from rigatoni import MemoryStore, Watcher

watcher = Watcher(given["uri"], "elsewhere", store=MemoryStore())


def named(name):
    def handler(event):
        raise AssertionError("nothing is written here")

    handler.__qualname__ = name
    return handler


for number in range(given["handlers"]):
    watcher.on("insert", collection=f"collection_{number}")(named(f"handler_{number}"))
with watcher:
    # What starting costs is over by then.
    sleep(1)
    before = process_time()
    sleep(given["seconds"])
    used = process_time() - before
print(json.dumps({"share": used / given["seconds"] * 100}))
