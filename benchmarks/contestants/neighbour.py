"""A ticker and a WSGI application on one hub: alone, or while a Watcher beside them, or another program, replays."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import gevent
from contestant import given
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from pymongo import MongoClient

from rigatoni import MemoryStore, Watcher

TICK = 0.005


def application(environ, respond):
    respond("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def tick(delays, over):
    while not over.is_set():
        before = perf_counter()
        gevent.sleep(TICK)
        delays.append((perf_counter() - before - TICK) * 1000)


over, done = Event(), Event()
delays: list[float] = []
numbers: list[int] = []
server = WSGIServer(("127.0.0.1", 0), application, log=None)
server.start()
program = [sys.executable, str(Path(__file__).with_name("visitor.py")), str(server.server_port)]
visitor = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
# It says so when its first request was answered.
visitor.stdout.readline()
watcher = Watcher(given["uri"], "shop", store=MemoryStore(), start_at=given["begun"])


@watcher.on("insert", collection="orders")
def note(event):
    numbers.append(event.full_document["number"])
    if len(numbers) == given["count"]:
        done.set()


def replay():
    """Return when all is replayed, or after a while without a replay."""
    if given["replayed_by"] == "Watcher":
        done.wait()
    elif given["replayed_by"] == "the loop":
        with MongoClient(given["uri"]) as client:
            changes = client.shop.orders.watch(start_at_operation_time=given["begun"])
            for _ in range(given["count"]):
                numbers.append(next(changes)["fullDocument"]["number"])
    elif given["replayed_by"]:
        program = str(Path(__file__).with_name(given["replayed_by"]))
        other = [sys.executable, "-m", "gevent.monkey", program, sys.argv[1]]
        subprocess.run(other, check=True, capture_output=True)
    else:
        gevent.sleep(given["seconds"])


if given["replayed_by"] == "Watcher":
    watcher.start()
ticker = gevent.spawn(tick, delays, over)
visitor.stdin.write(b"count\n")
visitor.stdin.flush()
before = perf_counter()
replay()
seconds = perf_counter() - before
answers, _ = visitor.communicate(b"end\n")
over.set()
ticker.join()
watcher.stop()
server.stop()
is_here = given["replayed_by"] in ("Watcher", "the loop")
assert not is_here or numbers == list(range(given["count"])), "not every event once and in order"
requests = json.loads(answers)
print(
    json.dumps(
        {
            "tick": statistics.quantiles(delays, n=100, method="inclusive")[98],
            "request": statistics.quantiles(requests, n=100, method="inclusive")[98],
            "requests": len(requests) / seconds,
            "rate": len(numbers) / seconds,
        }
    )
)
