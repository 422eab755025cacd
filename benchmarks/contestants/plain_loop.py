"""pymongo's own loop, as its documentation has it: ``for change in collection.watch()``."""

from contestant import given, replayed
from pymongo import MongoClient

with MongoClient(given["uri"]) as client:
    with replayed() as (numbers, begin):
        options = {"start_at_operation_time": given["begun"], "full_document": given["full_document"]}
        with client.shop.orders.watch(**options) as stream:
            for change in stream:
                if not numbers:
                    begin()
                numbers.append(change["fullDocument"]["number"])
                if len(numbers) == given["count"]:
                    break
