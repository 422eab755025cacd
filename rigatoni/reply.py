"""One reply to a getMore: read as little as the next getMore needs, decoded when the events are wanted.

While this reply is decoded and handled the server already works on the next one; that is where the speed comes from.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import bson
from bson import CodecOptions, DatetimeConversion, Timestamp
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument

from .errors import ConversionError
from .events import ChangeEvent
from .position import Position

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Codec = CodecOptions[Any]

#: How a command is asked for, so that its reply comes back undecoded.
RAW: Codec = CodecOptions(document_class=RawBSONDocument)
#: A reply is decoded in slices, which hold the hub for a millisecond or so: at most so many events, few enough to be
#: handled and gone before the garbage collector would look at them (it does after 700 new objects), and about so many
#: bytes.
SLICE = 50
SLICE_SIZE = 128 * 1024

#: What bson raises for values that a codec does not take.
UNREADABLE = (InvalidBSON, OverflowError, ValueError)

_int32 = struct.Struct("<i").unpack_from
_int64 = struct.Struct("<q").unpack_from
_pack = struct.Struct("<i").pack
#: Sizes of BSON values by type: of some always the same, of most what they begin with and what that leaves out.
_FIXED = {0x01: 8, 0x06: 0, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16, 0x7F: 0, 0xFF: 0}
_COUNTED = {0x02: 4, 0x03: 0, 0x04: 0, 0x05: 5, 0x0C: 16, 0x0D: 4, 0x0E: 4, 0x0F: 0}
_REGEX = 0x0B


class Reply:
    """What the server sent.

    :param document: the reply of an aggregate or getMore command, undecoded.
    :param codec: how to decode the events.
    :param floor: events at or before this position were read before and are left out.
    """

    __slots__ = "cursor cursor_id end floor is_empty operation_time _batch _codec _cuts _heard".split()

    def __init__(self, document: RawBSONDocument, codec: Codec, floor: Position | None = None) -> None:
        self.cursor = bytes(document["cursor"].raw)
        self.operation_time: Timestamp | None = document.get("operationTime")
        self._heard: Mapping[str, Any] = document.get("$clusterTime", {})
        self.floor = floor
        self._codec = codec
        self._cuts: list[tuple[int, int, int]] | None = None
        fields = _fields(self.cursor)
        self.cursor_id: int = _int64(self.cursor, fields["id"])[0]
        self._batch = fields.get("nextBatch") or fields["firstBatch"]
        # An empty array is its length and its end.
        self.is_empty = _int32(self.cursor, self._batch)[0] == 5
        self.end: Mapping[str, Any] | None = None
        if "postBatchResumeToken" in fields:
            start = fields["postBatchResumeToken"]
            self.end = bson.decode(self.cursor[start : start + _int32(self.cursor, start)[0]])

    @property
    def cluster_time(self) -> Timestamp | None:
        """Return the latest time that the server has heard of; a member that lags behind has not reached it itself."""
        return self._heard.get("clusterTime")

    def size(self) -> tuple[int, int]:
        """Return how many events there are and their bytes of BSON, without decoding them."""
        cuts = self._cut()
        return sum(count for _, _, count in cuts), sum(end - begin for begin, end, _ in cuts)

    def slices(self) -> Iterator[tuple[list[Event], Mapping[str, Any] | None, int]]:
        """Decode, a slice at a time: events, the token after them, and their size in bytes.

        :raises ConversionError: for bytes that no codec can read.
        """
        if self.is_empty:
            yield [], self.end, 0
        cuts = self._cut()
        for begin, end, _ in cuts:
            # As a document of its own, which is what the decoder takes.
            part = b"".join((_pack(end - begin + 5), self.cursor[begin:end], b"\0"))
            events: list[Event] = [*self._decode(part).values()]
            yield self._slice(events, self.end if end == cuts[-1][1] else None, end - begin)

    def _cut(self) -> list[tuple[int, int, int]]:
        """Cut the array of events, undecoded, into slices: where each begins and ends, and how many events it holds."""
        if self._cuts is None:
            self._cuts = [*self._found_cuts()]
        return self._cuts

    def _found_cuts(self) -> Iterator[tuple[int, int, int]]:
        cursor = self.cursor
        begin = place = self._batch + 4
        end = self._batch + _int32(cursor, self._batch)[0] - 1
        count = 0
        while place < end:
            # An element is its type, its name, and a document, which begins with its length.
            place = cursor.index(0, place) + 1
            place += _int32(cursor, place)[0]
            count += 1
            if count == SLICE or place - begin >= SLICE_SIZE or place == end:
                yield begin, place, count
                begin, count = place, 0

    def _slice(
        self, events: list[Event], end: Mapping[str, Any] | None, size: int
    ) -> tuple[list[Event], Mapping[str, Any] | None, int]:
        if end is None:
            end = events[-1]["_id"]
        if self.floor is not None:
            events = [event for event in events if not self.floor.covers(event["_id"])]
        return events, end, size

    def _decode(self, data: bytes) -> Any:
        try:
            return bson.decode(data, self._codec)
        except UNREADABLE:
            events = self._decode_tolerantly(data)
            self._tell_of_odd(data, events)
            return events

    def _tell_of_odd(self, data: bytes, events: Mapping[str, Event]) -> None:
        for place, raw in bson.decode(data, RAW).items():
            try:
                bson.decode(raw.raw, self._codec)
            except UNREADABLE:
                logger.warning(
                    "%r holds text that is no UTF-8, which comes with replacements, or a date outside the years 1 to "
                    "9999, which comes as a DatetimeMS; a client with codec options for it gets it without this line",
                    ChangeEvent(events[place]),
                )

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
        except UNREADABLE as error:
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
