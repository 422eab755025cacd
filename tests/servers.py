"""A real server and a fake one behind the same verbs, for tests that hold for both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bson import Int64
from pymongo import MongoClient

from rigatoni.testing import FakeClient, make_event

Level = tuple[str | None, str | None]


class Real:
    """A database of a real server."""

    def __init__(self, client: MongoClient[Any], name: str) -> None:
        self.client: Any = client
        self.name = name
        self._database = client[name]

    def create(self, collection: str) -> None:
        self._database.create_collection(collection)

    def keep_images(self, collection: str) -> None:
        self._database.create_collection(collection, changeStreamPreAndPostImages={"enabled": True})

    def insert(self, collection: str, document: Mapping[str, Any]) -> None:
        self._database[collection].insert_one(dict(document))

    def update(self, collection: str, key: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        self._database[collection].update_one(key, {"$set": fields})

    def replace(self, collection: str, document: Mapping[str, Any]) -> None:
        self._database[collection].replace_one({"_id": document["_id"]}, document)

    def delete(self, collection: str, key: Mapping[str, Any]) -> None:
        self._database[collection].delete_one(key)

    def drop(self, collection: str) -> None:
        self._database[collection].drop()

    def rename(self, collection: str, to: str) -> None:
        self._database[collection].rename(to)

    def drop_database(self) -> None:
        self.client.drop_database(self.name)

    def write_elsewhere(self) -> None:
        self.client[f"{self.name}_elsewhere"].orders.insert_one({})


class Fake:
    """A fake server, which is told what a real one knows: what documents look like."""

    def __init__(self, name: str) -> None:
        self.client: Any = FakeClient(name)
        self.name = name
        self._documents: dict[Any, dict[str, Any]] = {}
        self._has_images = False

    def create(self, collection: str) -> None:
        self.client.play(make_event("create", collection, self.name))

    def keep_images(self, collection: str) -> None:
        self._has_images = True

    def insert(self, collection: str, document: Mapping[str, Any]) -> None:
        event = self.client.insert(collection, document)
        self._documents[event.document_key["_id"]] = dict(event.full_document)

    def update(self, collection: str, key: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
        before = self._documents[key["_id"]]
        self._documents[key["_id"]] = after = {**before, **fields}
        images = {"document": after, "before": before} if self._has_images else {}
        self.client.update(collection, key, fields, **images)

    def replace(self, collection: str, document: Mapping[str, Any]) -> None:
        images = {"before": self._documents[document["_id"]]} if self._has_images else {}
        self._documents[document["_id"]] = dict(document)
        self.client.replace(collection, document, **images)

    def delete(self, collection: str, key: Mapping[str, Any]) -> None:
        before = self._documents.pop(key["_id"])
        self.client.delete(collection, key, **({"before": before} if self._has_images else {}))

    def drop(self, collection: str) -> None:
        self.client.drop(collection)

    def rename(self, collection: str, to: str) -> None:
        self.client.rename(collection, to)

    def drop_database(self) -> None:
        self.client.drop_database()

    def write_elsewhere(self) -> None:
        self.client.insert("orders", {}, database=f"{self.name}_elsewhere")


Server = Real | Fake


class Cursor:
    """A change stream cursor by plain commands, of which both kinds of server know the same."""

    def __init__(
        self, server: Server, collection: str | None, *stages: Any, deployment: bool = False, batch: int = 0, **how: Any
    ) -> None:
        self._database = server.client.get_database("admin" if deployment else server.name)
        self._collection = collection
        stage = {**how, "allChangesForCluster": True} if deployment else how
        command = {"aggregate": collection or 1, "pipeline": [{"$changeStream": stage}, *stages]}
        self.first = self._took({**command, "cursor": {"batchSize": batch}}, "firstBatch")

    def more(self, count: int = 100, patience: float = 0.2) -> list[Any]:
        """Read at most so many events, as far as there are any."""
        command = {"getMore": Int64(self.number), "collection": self._collection or "$cmd.aggregate"}
        return self._took({**command, "batchSize": count, "maxTimeMS": int(1000 * patience)}, "nextBatch")

    def rest(self) -> Iterator[Any]:
        """Read until nothing comes, or the cursor has ended."""
        while self.number and (events := self.more()):
            yield from events

    def _took(self, command: Mapping[str, Any], batch: str) -> list[Any]:
        self.reply = self._database.command(command)
        cursor = self.reply["cursor"]
        self.number, self.end, self.namespace = cursor["id"], cursor["postBatchResumeToken"], cursor["ns"]
        events: list[Any] = cursor[batch]
        return events


def operations(events: Any) -> list[str]:
    return [event["operationType"] for event in events]


def keys(events: Any) -> list[Any]:
    return [event["documentKey"]["_id"] for event in events]
