"""Reading alone: plain commands, read ahead by a queue of two, decoded, counted, nothing else.

It handles nothing, acknowledges nothing and goes on after no error: the limit for anything that decodes in Python.
"""

import bson
import gevent
from bson import CodecOptions, Int64
from bson.raw_bson import RawBSONDocument
from contestant import given, replayed
from gevent.queue import Queue
from pymongo import MongoClient

RAW = CodecOptions(document_class=RawBSONDocument)
#: Events of a reply: as many as fit into some 256 kB; with longer ones it is slower, for it decodes them whole.
COUNT = max(1, min(1000, 256 * 1024 // given["event_size"]))


def read(database, replies):
    stage = {"startAtOperationTime": given["begun"]}
    if given["full_document"]:
        stage["fullDocument"] = given["full_document"]
    with database.client.start_session(causal_consistency=False) as session:
        command = {"aggregate": "orders", "pipeline": [{"$changeStream": stage}], "cursor": {"batchSize": 0}}
        opened = database.command(command, session=session)
        while True:
            command = {"getMore": Int64(opened["cursor"]["id"]), "collection": "orders", "batchSize": COUNT}
            replies.put(database.command(command, session=session, codec_options=RAW))


with MongoClient(given["uri"]) as client:
    replies = Queue(2)
    with replayed() as (numbers, begin):
        reader = gevent.spawn(read, client.shop, replies)
        while len(numbers) < given["count"]:
            reply = replies.get()
            if not numbers:
                begin()
            events = bson.decode(reply.raw)["cursor"]["nextBatch"]
            numbers.extend(change["fullDocument"]["number"] for change in events)
    reader.kill()
