"""Change events without a server: what the server would send, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import bson
from bson import ObjectId, Timestamp
from bson.codec_options import DEFAULT_CODEC_OPTIONS, CodecOptions
from bson.datetime_ms import DatetimeMS
from bson.errors import BSONError

from rigatoni import AckableEvent, ConfigurationError

from .clock import Clock

_DESCRIBED = frozenset({"description"})
#: Operation type → what can be said of it.
_TAKES: dict[str, frozenset[str]] = {
    "insert": frozenset({"document", "document_key"}),
    "update": frozenset({"document", "document_key", "before", "updated_fields", "removed_fields", "truncated_arrays"}),
    "replace": frozenset({"document", "document_key", "before"}),
    "delete": frozenset({"document_key", "before"}),
    "drop": frozenset(),
    "rename": frozenset({"to"}),
    "dropDatabase": frozenset(),
    "invalidate": frozenset(),
    "create": _DESCRIBED,
    "createIndexes": _DESCRIBED,
    "dropIndexes": _DESCRIBED,
    "modify": _DESCRIBED,
    "shardCollection": _DESCRIBED,
    "reshardCollection": _DESCRIBED,
    "refineCollectionShardKey": _DESCRIBED,
}
#: Operations that the server sends only with ``showExpandedEvents``.
EXPANDED = frozenset(operation for operation, takes in _TAKES.items() if takes is _DESCRIBED)


_clock = Clock()


def make_event(
    operation: str = "insert",
    collection: str | None = None,
    database: str | None = None,
    document: Mapping[str, Any] | None = None,
    *,
    document_key: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
    updated_fields: Mapping[str, Any] | None = None,
    removed_fields: Iterable[str] | None = None,
    truncated_arrays: Iterable[Mapping[str, Any]] | None = None,
    to: str | None = None,
    description: Mapping[str, Any] | None = None,
    ack: Callable[[AckableEvent], object] | None = None,
    codec_options: CodecOptions[Any] = DEFAULT_CODEC_OPTIONS,
) -> AckableEvent:
    """Make a change event that looks like the server's.

    Each one is later than the one before: its id and its cluster time are greater. What is passed in is copied, through
    BSON, so that a handler sees what it would see after a round trip to the server. An ``_id`` is made up where none is
    given.

    :param operation: "insert", "update", "replace", "delete", "drop", "rename", "dropDatabase", "invalidate", "create",
        "createIndexes", …; default "insert".
    :param collection: default "orders", where the operation has one.
    :param database: default "shop", where the operation has one.
    :param document: after the change. An insert and a replace always have one; an update has one if it is given, as
        with ``full_document=`` in the configuration.
    :param document_key: default: the ``_id`` of the document.
    :param before: the document before an update, a replace or a delete, as with ``full_document_before_change=``.
    :param updated_fields: of an update: dotted path → new value.
    :param removed_fields: of an update: dotted paths.
    :param truncated_arrays: of an update: ``{"field": path, "newSize": length}`` each.
    :param to: the new name of a renamed collection; default: the old one with "_renamed" behind it.
    :param description: ``operationDescription`` of "create", "createIndexes" and the like; default empty.
    :param ack: called with the event by each ``event.ack()``; default: nothing is.
    :param codec_options: the client's, if it has others than pymongo's default.
    :raises ConfigurationError: for an unknown operation, and for what the server would never send, such as a deleted
        document, two different ``_id``, or values that BSON cannot hold.

    https://www.mongodb.com/docs/manual/reference/change-events/
    """
    possible: dict[str, Any] = {
        "document": document,
        "document_key": document_key,
        "before": before,
        "updated_fields": updated_fields,
        "removed_fields": removed_fields,
        "truncated_arrays": truncated_arrays,
        "to": to,
        "description": description,
    }
    said = {name: value for name, value in possible.items() if value is not None}
    _check_operation(operation, said)
    for name in {"removed_fields", "truncated_arrays"} & said.keys():
        said[name] = _listed(name, said[name])
    _check_names(operation, collection, database, said.get("to"))
    _check_paths(said)
    raw = _raw(operation, collection or "orders", database or "shop", said)
    event = AckableEvent(_round_trip(raw, codec_options), lambda: ack and ack(event))
    return event


def _check_operation(operation: str, said: Mapping[str, Any]) -> None:
    if operation not in _TAKES:
        near = get_close_matches(str(operation), _TAKES, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_TAKES)}"
        raise ConfigurationError(f"unknown operation {operation!r}: {hint}")
    for name, value in said.items():
        if name not in _TAKES[operation]:
            able = ", ".join(other for other, takes in _TAKES.items() if name in takes)
            raise ConfigurationError(
                f"the server sends no {name} with {operation!r}: leave it out; it goes with {able}"
            )
        if name in ("document", "document_key", "before", "updated_fields", "description"):
            if not isinstance(value, Mapping):
                raise ConfigurationError(f"{name} must be a mapping, not {type(value).__name__}")


def _listed(name: str, value: object) -> list[Any]:
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        raise ConfigurationError(f"{name} must be a list, not {type(value).__name__}")
    return list(value)


def _check_names(operation: str, collection: object, database: object, to: object) -> None:
    if operation in ("dropDatabase", "invalidate") and collection is not None:
        raise ConfigurationError(f"{operation!r} concerns no single collection: leave collection out")
    if operation == "invalidate" and database is not None:
        raise ConfigurationError("'invalidate' concerns the whole stream: leave database out")
    for option, name in (("collection", collection), ("database", database), ("to", to)):
        if name is not None and (not isinstance(name, str) or not name or "\0" in name):
            raise ConfigurationError(f"{option}={name!r} is no name: text that is not empty")


def _check_paths(said: Mapping[str, Any]) -> None:
    paths = [*said.get("updated_fields", ()), *said.get("removed_fields", ())]
    for path in paths:
        if not isinstance(path, str) or path == "_id":
            raise ConfigurationError(f"an update cannot change {path!r}: name fields by their dotted paths, never _id")
        if paths.count(path) > 1:
            raise ConfigurationError(f"an update either sets {path!r} or removes it: name it once")
    for array in said.get("truncated_arrays", ()):
        if not isinstance(array, Mapping) or set(array) != {"field", "newSize"}:
            raise ConfigurationError('truncated_arrays must be a list of {"field": path, "newSize": length}')


def _raw(operation: str, collection: str, database: str, said: Mapping[str, Any]) -> dict[str, Any]:
    key = _key(said) if "document_key" in _TAKES[operation] else None
    collection_ns = {"db": database, "coll": collection}
    described = _TAKES[operation] is _DESCRIBED
    now = _clock.tick()
    raw = {
        "to": {"db": database, "coll": said.get("to", f"{collection}_renamed")} if operation == "rename" else None,
        "_id": {"_data": _data(operation, now, f"{database}.{collection}", key)},
        "operationType": operation,
        "clusterTime": now,
        "wallTime": DatetimeMS(int(1000 * time.time())),
        "fullDocument": _image(key, {} if operation in ("insert", "replace") else None, said.get("document")),
        "ns": {"dropDatabase": {"db": database}, "invalidate": None}.get(operation, collection_ns),
        "documentKey": key,
        "updateDescription": _update_description(said) if operation == "update" else None,
        "fullDocumentBeforeChange": _image(key, None, said.get("before")),
        "operationDescription": dict(said.get("description", {})) if described else None,
    }
    return {name: value for name, value in raw.items() if value is not None}


def _key(said: Mapping[str, Any]) -> dict[str, Any]:
    given = [said[name] for name in ("document_key", "document", "before") if name in said]
    ids = [mapping["_id"] for mapping in given if "_id" in mapping]
    if "document_key" in said and "_id" not in said["document_key"]:
        raise ConfigurationError("document_key has no _id: every document has one")
    if any(each != ids[0] for each in ids):
        raise ConfigurationError(
            "document_key, document and before have different _id: one event is about one document"
        )
    return dict(said.get("document_key", {"_id": ids[0] if ids else ObjectId()}))


def _image(
    key: Mapping[str, Any] | None, default: Mapping[str, Any] | None, given: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    image = default if given is None else given
    return None if image is None or key is None else {"_id": key["_id"], **image}


def _update_description(said: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "updatedFields": dict(said.get("updated_fields", {})),
        "removedFields": list(said.get("removed_fields", ())),
        "truncatedArrays": list(said.get("truncated_arrays", ())),
    }


def _data(operation: str, at: Timestamp, namespace: str, key: Mapping[str, Any] | None) -> str:
    """Encode the ``_data`` of a resume token as the server does: cluster time, version, namespace, document.

    Only an ``_id`` that is an ObjectId is in it; another's place is taken by one that is made up.
    """
    parts = [f"82{at.time:08X}{at.inc:08X}2B022C010029", "6F" if operation == "invalidate" else "6E"]
    if operation != "dropDatabase":
        parts.append(f"5A1004{uuid5(NAMESPACE_URL, namespace).hex}")
    if key is not None:
        name = key["_id"] if isinstance(key["_id"], ObjectId) else ObjectId()
        parts.append(f"46645F69640064{name}00")
    return "".join([*parts, "04"]).upper()


def _round_trip(raw: dict[str, Any], codec_options: CodecOptions[Any]) -> Mapping[str, Any]:
    try:
        decoded: Mapping[str, Any] = bson.decode(bson.encode(raw, codec_options=codec_options), codec_options)
    except (BSONError, ValueError, OverflowError) as error:
        raise ConfigurationError(f"BSON cannot hold what the event is made of: {error}") from error
    return decoded
