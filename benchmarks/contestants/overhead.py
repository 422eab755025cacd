"""Dispatch and acknowledgement alone: batches that are decoded already go through lanes, handler and watermark."""

import gc
import json
from time import perf_counter, process_time

import gevent
from bson import ObjectId
from contestant import given

from rigatoni import RetryPolicy
from rigatoni.delivery import Delivery
from rigatoni.handlers import Handlers
from rigatoni.hooks import HookChain
from rigatoni.hub import Flag
from rigatoni.lane import Shared
from rigatoni.lanes import Lanes
from rigatoni.watermark import Batch, Watermark

COUNT, BATCH = given["count"], 500


def made(number):
    return {
        "_id": {"_data": f"82{number:024X}"},
        "operationType": "insert",
        "fullDocument": {"number": number},
        "ns": {"db": "shop", "coll": "orders"},
        "documentKey": {"_id": ObjectId()},
    }


def fail(error):
    raise error


numbers = []
handlers = Handlers("shop")


@handlers.on("insert", collection="orders")
def note(event):
    numbers.append(event.full_document["number"])


progress = Flag()
delivery = Delivery(
    retry=RetryPolicy(),
    on_error="stop",
    bury=fail,
    progress=progress.set,
    hooks=HookChain(()),
    stop=Flag(),
    left=Flag(),
)
lanes = Lanes(handlers._lookup, lambda database, collection: given["lanes"], Shared(delivery, progress.set, fail))
events = [made(number) for number in range(COUNT)]
# As after the start of a program: what is there to stay is not looked at again and again.
gc.collect()
gc.freeze()
watermark = Watermark()
before, cpu = perf_counter(), process_time()
for start in range(0, COUNT, BATCH):
    share = events[start : start + BATCH]
    batch = Batch(share, share[-1]["_id"], 436 * len(share))
    watermark.track(batch)
    lanes.put(batch)
    gevent.sleep(0)
    watermark.advance()
while watermark.in_flight:
    gevent.sleep(0)
    watermark.advance()
seconds, cpu = perf_counter() - before, process_time() - cpu
assert sorted(numbers) == list(range(COUNT)), f"{len(numbers)} events instead of {COUNT}"
assert given["lanes"] > 1 or numbers == list(range(COUNT)), "the events came in another order"
assert watermark.advance() == events[-1]["_id"], "not everything is acknowledged"
print(json.dumps({"time": seconds / COUNT * 1e6, "cpu": cpu / COUNT * 1e6}))
