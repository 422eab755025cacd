"""What a stream asks the server for: the level of its cursor and the ``$match`` that the handlers imply. Pure.

Only what has a handler crosses the wire, where that pays: a filter on operations costs the server nearly nothing, one
on a handful of names little, one on hundreds more than sending everything. The filter stands before the user's
pipeline, so that it sees unmodified events and reaches the oplog scan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .events import TRUNCATED
from .registration import ENDING_OPERATIONS, Handler, is_glob

#: A filter on more collection names than this costs the server more than it saves.
MOST_NAMES = 8

#: The most that an event may weigh, somewhat under the limit of the server's own documents (16 MiB and 16 KiB).
MOST_BYTES = 16 * 1024 * 1024 + 12 * 1024

Namespace = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Selection:
    """Where the cursor is opened, and what it lets through.

    :param database: None for the whole deployment.
    :param collection: None for every collection.
    :param match: the filter, None when everything is wanted.
    """

    database: str | None
    collection: str | None
    match: Mapping[str, Any] | None = None


def select(
    handlers: Sequence[Handler], scope: Namespace, apart: Collection[Namespace] = (), narrow: bool = True
) -> Selection | None:
    """Choose the cursor for a scope; None when no handler wants anything of it.

    :param apart: collections that have a stream of their own.
    :param narrow: whether a cursor on one collection may serve a wider scope, when only that collection has handlers.
    """
    wanted = [want for handler in handlers if (want := _Want.of(handler, scope, apart)) is not None]
    if not wanted:
        return None
    database, collection = scope
    named = {namespace for want in wanted for namespace in want.namespaces}
    open_ended = any(not want.namespaces for want in wanted)
    if collection is None and narrow and not open_ended and len(named) == 1 and is_plain(named):
        ((database, collection),) = named
    by_name = collection is None and not open_ended and len(named) <= MOST_NAMES and is_plain(named)
    return Selection(database, collection, _by_name(wanted, scope) if by_name else _by_operation(wanted))


def is_plain(namespaces: Collection[Namespace]) -> bool:
    """Tell whether the server takes every name as it stands; braces it takes for a quantifier."""
    return all(database and collection and "{" not in database + collection for database, collection in namespaces)


@dataclass(frozen=True, slots=True)
class _Want:
    """What one handler wants of a scope; no namespaces means all, no operations too."""

    namespaces: frozenset[Namespace]
    operations: frozenset[str]

    @classmethod
    def of(cls, handler: Handler, scope: Namespace, apart: Collection[Namespace]) -> _Want | None:
        database, collection = scope
        if database is not None and handler.database not in (None, database):
            return None
        operations = handler.operations or frozenset()
        if collection is not None:
            return cls(frozenset({scope}), operations) if handler.concerns(database, collection) else None
        home = database or handler.database
        if handler.collections is None or any(map(is_glob, handler.collections)) or home is None:
            return cls(frozenset(), operations)
        names = frozenset((home, name) for name in handler.collections) - frozenset(apart)
        return cls(names, operations) if names else None


def _by_operation(wanted: Sequence[_Want]) -> Mapping[str, Any] | None:
    if not all(want.operations for want in wanted):
        return None
    return {"operationType": _one_of({*ENDING_OPERATIONS, *(name for want in wanted for name in want.operations)})}


def _by_name(wanted: Sequence[_Want], scope: Namespace) -> Mapping[str, Any]:
    names: dict[tuple[str | None, frozenset[str]], set[str]] = {}
    for want in wanted:
        for database, collection in want.namespaces:
            names.setdefault((database, want.operations), set()).add(str(collection))
    clauses: list[dict[str, Any]] = []
    for (database, operations), collections in sorted(
        names.items(), key=lambda item: (item[0][0] or "", sorted(item[0][1]))
    ):
        clause: dict[str, Any] = {"ns.coll": _one_of(collections)}
        if scope[0] is None:
            clause["ns.db"] = database
        if operations:
            clause["operationType"] = _one_of(operations)
        clauses.append(clause)
    return {"$or": [*clauses, {"operationType": {"$in": list(ENDING_OPERATIONS)}}]}


def _one_of(names: Collection[str]) -> Any:
    return next(iter(names)) if len(names) == 1 else {"$in": sorted(names)}


def _size(field: str) -> Mapping[str, Any]:
    return {"$cond": [{"$eq": [{"$type": field}, "object"]}, {"$bsonSize": field}, 0]}


def _size_of_parts(parts: Any) -> Mapping[str, Any]:
    # Part by part, because to ask for the size of a whole that is over 16 MB is an error itself.
    return {"$sum": {"$map": {"input": parts, "in": {"$bsonSize": {"part": "$$this"}}}}}


_UPDATE = "$updateDescription"
_IMAGES = ("fullDocument", "fullDocumentBeforeChange")
# The _id is in documentKey, and in hexadecimal digits in the token of the event and in that of the reply.
_WITHOUT_IMAGES: Mapping[str, Any] = {
    "$add": [
        # The paths repeat the names of all parents: an update can weigh many times as much as its document.
        _size_of_parts({"$objectToArray": f"{_UPDATE}.updatedFields"}),
        _size_of_parts({"$objectToArray": f"{_UPDATE}.disambiguatedPaths"}),
        _size_of_parts(f"{_UPDATE}.removedFields"),
        _size_of_parts(f"{_UPDATE}.truncatedArrays"),
        {"$multiply": [5, _size("$documentKey")]},
    ]
}
# By the sum: two images that are small enough each can be too large together.
_WHOLE: Mapping[str, Any] = {"$add": [*(_size(f"${image}") for image in _IMAGES), _WITHOUT_IMAGES]}


def _if_too_large(size: Mapping[str, Any], fields: Collection[str]) -> Mapping[str, Any]:
    present = [{"$cond": [{"$eq": [{"$type": f"${field}"}, "object"]}, [field], []]} for field in fields]
    return {"$cond": [{"$gt": [size, MOST_BYTES]}, {"$concatArrays": present}, []]}


def _unless_cut(field: str) -> Mapping[str, Any]:
    return {"$cond": [{"$in": [field, f"${TRUNCATED}"]}, "$$REMOVE", f"${field}"]}


#: Last stages that take the images, and the description of the update if need be, out of an event that the server could
#: not send (10334, at every reopening), and say so.
#: https://www.mongodb.com/docs/manual/changeStreams/#performance-considerations
STUB_OF_OVERSIZED: Sequence[Mapping[str, Any]] = (
    {
        "$set": {
            TRUNCATED: {
                "$concatArrays": [
                    _if_too_large(_WHOLE, _IMAGES),
                    _if_too_large(_WITHOUT_IMAGES, ("updateDescription",)),
                ]
            }
        }
    },
    {
        "$set": {
            **{field: _unless_cut(field) for field in (*_IMAGES, "updateDescription")},
            TRUNCATED: {"$cond": [{"$eq": [f"${TRUNCATED}", []]}, "$$REMOVE", f"${TRUNCATED}"]},
        }
    },
)
