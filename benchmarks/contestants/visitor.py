"""Ask a server again and again, over a connection each time, and note how long each answer takes."""

from __future__ import annotations

import http.client
import json
import select
import sys
from time import perf_counter, sleep


def ask() -> float:
    """Return the milliseconds that an answer took."""
    before = perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    connection.request("GET", "/")
    connection.getresponse().read()
    connection.close()
    return (perf_counter() - before) * 1000


ask()
print("connected", flush=True)
sys.stdin.readline()
times = []
while not select.select([sys.stdin], [], [], 0)[0]:
    times.append(ask())
    # As a visitor does; one that asks without a pause would measure how fast it is itself.
    sleep(0.002)
print(json.dumps(times))
