"""One reply to a getMore: read as little as the next getMore needs, decoded when the events are wanted. Pure.

While this reply is decoded and handled the server already works on the next one; that is where the speed comes from.
"""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import bson
from bson import CodecOptions, DatetimeConversion, Timestamp
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from .errors import ConversionError
from .position import Position

Event = dict[str, Any]
Codec = CodecOptions[Any]

#: How a command is asked for, so that its reply comes back undecoded.
RAW: Codec = CodecOptions(document_class=RawBSONDocument)
#: A reply larger than this is decoded in slices, so that the hub is not held for long.
LARGE = 512 * 1024
SLICE = 128 * 1024

_int32 = struct.Struct("<i").unpack_from
_int64 = struct.Struct("<q").unpack_from
#: Sizes of BSON values by type: of some always the same, of most what they begin with and what that leaves out.
_FIXED = {0x01: 8, 0x06: 0, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16, 0x7F: 0, 0xFF: 0}
_COUNTED = {0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, 0x0E: 4, 0x0F: 0}
_REGEX = 0x0B
#: One entry for each thread that keeps the garbage collector from looking. Whoever does ends it, in any order, so that
#: threads that decode at the same time never leave it off; a list, because its methods are atomic.
_pauses: list[None] = []


class Reply:
    """What the server sent.

    :param document: the reply of an aggregate or getMore command, undecoded.
    :param codec: how to decode the events.
    :param floor: events at or before this position were read before and are left out.
    """

    __slots__ = ("cursor", "cursor_id", "end", "floor", "is_empty", "operation_time", "size", "_codec")

    def __init__(self, document: RawBSONDocument, codec: Codec, floor: Position | None = None) -> None:
        self.cursor = bytes(document["cursor"].raw)
        self.operation_time: Timestamp | None = document.get("operationTime")
        self.floor = floor
        self.size = len(self.cursor)
        self._codec = codec
        fields = _fields(self.cursor)
        self.cursor_id: int = _int64(self.cursor, fields["id"])[0]
        # An empty array is its length and its end.
        self.is_empty = _int32(self.cursor, fields.get("nextBatch") or fields["firstBatch"])[0] == 5
        self.end: Mapping[str, Any] | None = None
        if "postBatchResumeToken" in fields:
            start = fields["postBatchResumeToken"]
            self.end = bson.decode(self.cursor[start : start + _int32(self.cursor, start)[0]])

    def slices(self) -> Iterator[tuple[list[Event], Mapping[str, Any] | None, int]]:
        """Decode, a slice at a time: events, the token after them, and their size in bytes.

        :raises ConversionError: for bytes that no codec can read.
        """
        if self.is_empty:
            yield [], self.end, 0
        elif self.size <= LARGE:
            yield self._slice(self._decode(self.cursor)["nextBatch"], self.end, self.size)
        else:
            yield from self._small_slices()

    def _small_slices(self) -> Iterator[tuple[list[Event], Mapping[str, Any] | None, int]]:
        raw: list[RawBSONDocument] = bson.decode(self.cursor, RAW)["nextBatch"]
        begin = size = 0
        for index, document in enumerate(raw, 1):
            size += len(document.raw)
            if size >= SLICE or index == len(raw):
                events = [self._decode(bytes(document.raw)) for document in raw[begin:index]]
                yield self._slice(events, self.end if index == len(raw) else None, size)
                begin, size = index, 0

    def _slice(
        self, events: list[Event], end: Mapping[str, Any] | None, size: int
    ) -> tuple[list[Event], Mapping[str, Any] | None, int]:
        if end is None:
            end = events[-1]["_id"]
        if self.floor is not None:
            events = [event for event in events if not self.floor.covers(event["_id"])]
        return events, end, size

    def _decode(self, data: bytes) -> Any:
        # Nothing of a reply is garbage while it is decoded, and looking for some costs a third of the time.
        pauses = gc.isenabled() or bool(_pauses)
        if pauses:
            _pauses.append(None)
            gc.disable()
        try:
            return bson.decode(data, self._codec)
        except (InvalidBSON, OverflowError, ValueError):
            return self._decode_tolerantly(data)
        finally:
            if pauses:
                gc.enable()
                _pauses.pop()

    def _decode_tolerantly(self, data: bytes) -> Any:
        # Anyone who may insert can write invalid UTF-8 or a date after year 9999; it must not end the stream. What the
        # client chose by itself stays as it is.
        codec = self._codec
        if codec.unicode_decode_error_handler == "strict":
            codec = codec.with_options(unicode_decode_error_handler="replace")
        if codec.datetime_conversion == DatetimeConversion.DATETIME:
            codec = codec.with_options(datetime_conversion=DatetimeConversion.DATETIME_AUTO)
        try:
            return bson.decode(data, codec)
        except (InvalidBSON, OverflowError, ValueError) as error:
            raise ConversionError(f"a reply of the server cannot be decoded: {type(error).__name__}") from error


def _fields(document: bytes) -> dict[str, int]:
    """Find where the values of a cursor document begin, without decoding them. https://bsonspec.org/spec.html"""
    places: dict[str, int] = {}
    place = 4
    while kind := document[place]:
        end = document.index(0, place + 1)
        places[document[place + 1 : end].decode()] = place = end + 1
        place = _end(kind, document, place)
    return places


def _end(kind: int, document: bytes, place: int) -> int:
    """Find where a value ends."""
    if kind in _FIXED:
        return place + _FIXED[kind]
    if kind == _REGEX:
        return document.index(0, document.index(0, place) + 1) + 1
    if kind not in _COUNTED:
        raise ConversionError(f"a reply of the server holds the type {kind:#x}, which is not one of BSON")
    counted: int = _int32(document, place)[0]
    return place + counted + _COUNTED[kind]


def _collect_again() -> None:
    # In a forked child the thread that was decoding is not there to say so.
    if _pauses:
        _pauses.clear()
        gc.enable()


os.register_at_fork(after_in_child=_collect_again)
