"""pymongo's asyncio loop, as its documentation has it: ``async for change in await collection.watch()``."""

import asyncio

from contestant import given, replayed
from pymongo import AsyncMongoClient


async def main() -> None:
    async with AsyncMongoClient(given["uri"]) as client:
        with replayed() as (numbers, begin):
            options = {"start_at_operation_time": given["begun"], "full_document": given["full_document"]}
            async with await client.shop.orders.watch(**options) as stream:
                async for change in stream:
                    if not numbers:
                        begin()
                    numbers.append(change["fullDocument"]["number"])
                    if len(numbers) == given["count"]:
                        break


asyncio.run(main())
