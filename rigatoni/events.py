"""One change as a handler sees it.

An event is a thin, read-only view over the dictionary that pymongo decoded: attributes are looked up when they are
asked for, so that an event that nobody looks into costs nearly nothing. Fields of the server's change event:
https://www.mongodb.com/docs/manual/reference/change-events/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bson import Timestamp

#: The field that says which parts of an oversized event were left out; it never comes from the server.
TRUNCATED = "rigatoni:truncated"


def namespace_of(value: object) -> tuple[str | None, str | None]:
    """Read database and collection of a change; None for what there is not, or what a pipeline made something else."""
    if not isinstance(value, Mapping):
        return None, None
    database, collection = value.get("db"), value.get("coll")
    return database if isinstance(database, str) else None, collection if isinstance(collection, str) else None


@dataclass(frozen=True, slots=True)
class UpdateDescription:
    """Say what an update changed.

    :param updated_fields: dotted path → new value.
    :param removed_fields: dotted paths that are gone.
    :param truncated_arrays: ``{"field": path, "newSize": length}`` for each array that became shorter.
    :param disambiguated_paths: dotted path → its parts, where a field name itself holds a dot or is a number (server
        6.1 and later).

    https://www.mongodb.com/docs/manual/reference/change-events/update/
    """

    updated_fields: Mapping[str, Any]
    removed_fields: Sequence[str]
    truncated_arrays: Sequence[Mapping[str, Any]]
    disambiguated_paths: Mapping[str, Sequence[str | int]]

    def changes(self, path: str) -> bool:
        """Tell whether the update changed `path`, a parent or a child of it; removed and truncated ones count.

        :param path: a dotted path, such as ``"address.city"``.
        """
        truncated = (array.get("field", "") for array in self.truncated_arrays)
        return any(
            changed == path or changed.startswith(path + ".") or path.startswith(changed + ".")
            for changed in (*self.updated_fields, *self.removed_fields, *truncated)
        )


class ChangeEvent(Mapping[str, Any]):
    """Show one change of the database.

    Also a read-only mapping over ``raw``, so that ``event["fullDocument"]`` works as it does in pymongo. Events
    compare and hash by identity. Attributes that the server did not send are None.

    :param raw: the change event as pymongo decodes it with the client's codec options.
    """

    __slots__ = ("raw",)

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    @property
    def id(self) -> str:
        """Identify this change: the same at every delivery and on every cursor level.

        The ``_data`` of the resume token; the idempotency key that handlers called at least once need.
        """
        data: str = self.raw["_id"]["_data"]
        return data

    @property
    def resume_token(self) -> dict[str, Any]:
        """Give the whole resume token, as a copy."""
        return dict(self.raw["_id"])

    @property
    def operation(self) -> str:
        """Name the operation type: "insert", "update", "replace", "delete", "drop", …"""
        operation: str = self.raw.get("operationType", "")
        return operation

    @property
    def database(self) -> str | None:
        """Name the database; None for "invalidate"."""
        return namespace_of(self.raw.get("ns"))[0]

    @property
    def collection(self) -> str | None:
        """Name the collection; None where the event concerns a whole database or stream."""
        return namespace_of(self.raw.get("ns"))[1]

    @property
    def document_key(self) -> Mapping[str, Any] | None:
        """Give the ``_id`` of the changed document, on sharded collections with its shard key."""
        return self.raw.get("documentKey")

    @property
    def full_document(self) -> Mapping[str, Any] | None:
        """Give the document after the change (post-image).

        For updates only with ``full_document=`` in the configuration; with "updateLookup" it may be newer than the
        event, and None when the document is gone by now.
        """
        return self.raw.get("fullDocument")

    @property
    def full_document_before_change(self) -> Mapping[str, Any] | None:
        """Give the document before the change (pre-image), where the collection keeps it and the configuration asks."""
        return self.raw.get("fullDocumentBeforeChange")

    @property
    def update_description(self) -> UpdateDescription | None:
        """Say what an update changed; None for other operations."""
        description = self.raw.get("updateDescription")
        if not isinstance(description, Mapping):
            return None
        return UpdateDescription(
            description.get("updatedFields") or {},
            description.get("removedFields") or [],
            description.get("truncatedArrays") or [],
            description.get("disambiguatedPaths") or {},
        )

    @property
    def cluster_time(self) -> Timestamp | None:
        """Give the time of the oplog entry; the events of one transaction share it."""
        return self.raw.get("clusterTime")

    @property
    def wall_time(self) -> datetime | None:
        """Give the server's date and time of the change (server 6.0 and later)."""
        return self.raw.get("wallTime")

    @property
    def txn_number(self) -> int | None:
        """Give the number of the transaction in its session, None outside transactions."""
        return self.raw.get("txnNumber")

    @property
    def lsid(self) -> Mapping[str, Any] | None:
        """Give the session of the transaction, None outside transactions."""
        return self.raw.get("lsid")

    @property
    def truncated(self) -> Sequence[str]:
        """Name the fields that were left out because the event was over 16 MB; empty for nearly every event."""
        return tuple(self.raw.get(TRUNCATED) or ())

    def __getitem__(self, field: str) -> Any:
        return self.raw[field]

    def __iter__(self) -> Iterator[str]:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        namespace = ".".join(part for part in (self.database, self.collection) if part)
        key = self.document_key
        key = key.get("_id") if isinstance(key, Mapping) else key
        try:
            shown = f"{key!r:.80}"
        except Exception:
            # That of a type of the user's own codec; errors and logs must be able to name the event all the same.
            shown = f"<{type(key).__name__}>"
        return f"<{type(self).__name__} {self.operation} {namespace!r} _id={shown}>"


class AckableEvent(ChangeEvent):
    """Show one change whose handler says itself when it is finished.

    :param raw: the change event as pymongo decodes it.
    :param acknowledge: called by :meth:`ack`.
    """

    __slots__ = ("_acknowledge",)

    def __init__(self, raw: Mapping[str, Any], acknowledge: Callable[[], object]) -> None:
        self.raw = raw
        self._acknowledge = acknowledge

    def ack(self) -> None:
        """Acknowledge this event: it need not be delivered again.

        From any greenlet or thread, once or twice, in any order. Never raises; does nothing after a stop. The saved
        position passes the event only once every event before it is acknowledged too.
        """
        self._acknowledge()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Keep an event that its handler could not handle.

    :param id: given by the store that keeps it; None until then.
    :param handler: the handler's name, ``module:qualname``; :meth:`rigatoni.Watcher.dispatch` takes it to replay the
        letter.
    :param event: the raw change event.
    :param error: the last error, its class and text.
    :param traceback: the traceback of the last error.
    :param attempts: how often the handler was called.
    :param buried_at: when, in seconds since the epoch.
    """

    id: int | None
    handler: str
    event: Mapping[str, Any]
    error: str
    traceback: str
    attempts: int
    buried_at: float
