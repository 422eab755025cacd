"""A token that its own filter no longer lets through, and another one before what was read is passed again."""

from __future__ import annotations

from typing import Any

from failing import Failing
from listening import keys, take
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, ChangeStreamListener

#: A filter on the document of now: what an event is, its token was.
CONFIG = ChangeStreamConfig(
    pipeline=[{"$match": {"fullDocument.wanted": True}}],
    full_document="updateLookup",
    batch_size=1,
    max_await_time=0.1,
    initial_backoff=0.001,
)


def test_what_was_read_before_two_rescues_is_not_repeated(failing: Failing) -> None:
    def lose(unwanted: int) -> None:
        """Let the event of a document no longer pass, and the cursor die."""
        failing.orders.update_one({"_id": unwanted}, {"$set": {"wanted": False}})
        (idle,) = failing.operations()
        failing.database.command({"killCursors": "orders", "cursors": [idle["cursor"]["cursorId"]]})

    failing.orders.insert_many([{"_id": number, "wanted": True} for number in range(1, 5)])
    with MongoClient(failing.uri) as client, ChangeStreamListener(client[failing.name].orders, CONFIG) as listener:
        # Of one cluster time, which is where a rescue goes back to.
        with client.start_session() as session, session.start_transaction():
            for number in range(1, 4):
                change(client[failing.name].orders, number, session)
        seen = take(listener, 3)
        lose(unwanted=3)
        change(failing.orders, 4)
        # The first event of the three is read again, and left out.
        assert listener.try_next() is None
        lose(unwanted=1)

        assert keys([*seen, next(listener)]) == [1, 2, 3, 4]


def change(orders: Any, number: int, session: Any = None) -> None:
    orders.update_one({"_id": number}, {"$set": {"changed": True}}, session=session)
