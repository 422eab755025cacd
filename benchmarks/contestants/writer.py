"""Insert documents at an even rate, round about over collections; note when each was sent and acknowledged."""

from __future__ import annotations

import sys
import time

from bson import json_util
from pymongo import MongoClient

given = json_util.loads(sys.argv[1])
sent, acknowledged = [], []
with MongoClient(given["uri"]) as client:
    collections = [client.shop[name] for name in given["names"]]
    # Connected before the clock runs.
    client.admin.command("ping")
    begun = time.monotonic()
    for number in range(given["count"]):
        wait = begun + number / given["rate"] - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        sent.append(time.monotonic())
        collections[number % len(collections)].insert_one({"number": number, "item": "x" * 100})
        acknowledged.append(time.monotonic())
took = time.monotonic() - begun
print(json_util.dumps({"sent": sent, "acknowledged": acknowledged, "rate": given["count"] / took}))
