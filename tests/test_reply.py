"""Replies of the server: what is read undecoded, slices, and what no sound program would have inserted."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import bson
import pytest
from bson import (
    Binary,
    Code,
    CodecOptions,
    DatetimeConversion,
    DatetimeMS,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
)
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st

from rigatoni.errors import ConversionError
from rigatoni.position import Position
from rigatoni.reply import SLICE, SLICE_SIZE, Codec, Reply

PLAIN: Codec = CodecOptions()
YEAR_40000 = DatetimeMS(1_200_000_000_000_000)


def token(place: int) -> dict[str, Any]:
    return {"_data": f"82{1700000000:08X}{place:08X}2B0229296E04"}


def an_event(place: int, document: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"_id": token(place), "operationType": "insert", "fullDocument": dict(document or {"_id": place})}


def a_cursor(events: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"nextBatch": events, "postBatchResumeToken": token(9999), "id": Int64(77), "ns": "shop.$cmd", **fields}


def a_reply(cursor: Mapping[str, Any], codec: Codec = PLAIN, floor: Position | None = None) -> Reply:
    whole = {"cursor": cursor, "ok": 1.0, "operationTime": Timestamp(1700000001, 3)}
    return Reply(RawBSONDocument(bson.encode(whole)), codec, floor)


def damaged(event: dict[str, Any]) -> Reply:
    """Make a reply in which the text "damaged!" is no UTF-8."""
    whole = bson.encode({"cursor": a_cursor([event])}).replace(b"damaged!", b"dam\xffged!")
    return Reply(RawBSONDocument(whole), PLAIN)


def test_events_token_and_times_are_what_the_server_sent() -> None:
    events = [an_event(1), an_event(2)]
    reply = a_reply(a_cursor(events))

    assert (reply.cursor_id, reply.end, reply.is_empty) == (77, token(9999), False)
    assert reply.operation_time == Timestamp(1700000001, 3)
    assert [found[:2] for found in reply.slices()] == [(events, token(9999))]


def test_how_many_events_there_are_is_known_before_they_are_decoded() -> None:
    events = [an_event(place) for place in range(2 * SLICE + 1)]
    reply = a_reply(a_cursor(events))

    count, size = reply.size()

    slices = list(reply.slices())
    assert count == len(events) == sum(len(found) for found, _, _ in slices)
    assert len(bson.encode(events[0])) * count < size == sum(part for _, _, part in slices)
    assert a_reply(a_cursor([])).size() == (0, 0)


def test_an_empty_reply_still_says_how_far_the_stream_is() -> None:
    reply = a_reply(a_cursor([]))

    assert reply.is_empty
    assert list(reply.slices()) == [([], token(9999), 0)]


def test_the_reply_to_the_open_is_empty_and_has_the_start_position() -> None:
    cursor = {"firstBatch": [], "postBatchResumeToken": token(5), "id": Int64(77), "ns": "shop.$cmd"}

    reply = a_reply(cursor)

    assert reply.is_empty and reply.end == token(5) and reply.cursor_id == 77


def test_a_dead_cursor_has_the_id_zero() -> None:
    assert a_reply(a_cursor([], id=Int64(0))).cursor_id == 0


def test_without_a_token_of_the_batch_the_last_event_has_it() -> None:
    cursor = a_cursor([an_event(1), an_event(2)])
    del cursor["postBatchResumeToken"]

    assert [end for _, end, _ in a_reply(cursor).slices()] == [token(2)]


def test_a_reply_without_an_operation_time_has_none() -> None:
    reply = Reply(RawBSONDocument(bson.encode({"cursor": a_cursor([]), "ok": 1.0})), PLAIN)

    assert reply.operation_time is None


@pytest.mark.parametrize("count", [3, 2000])
def test_what_was_read_before_is_left_out_and_the_end_stays(count: int) -> None:
    events = [an_event(place, {"text": "x" * 500}) for place in range(1, count + 1)]

    slices = list(a_reply(a_cursor(events), floor=Position.of(token(2))).slices())

    assert [event["_id"] for found, _, _ in slices for event in found] == [token(n) for n in range(3, count + 1)]
    assert slices[-1][1] == token(9999)


@pytest.mark.parametrize("length", [10, 10_000])
def test_a_reply_is_decoded_in_slices_and_only_the_last_has_the_end(length: int) -> None:
    events = [an_event(place, {"text": "x" * length}) for place in range(1, 4 * SLICE)]
    reply = a_reply(a_cursor(events))

    slices = list(reply.slices())

    assert [event for found, _, _ in slices for event in found] == events
    assert [end for _, end, _ in slices[:-1]] == [found[-1]["_id"] for found, _, _ in slices[:-1]]
    assert slices[-1][1] == token(9999)
    for found, _, size in slices[:-1]:
        # An element of an array has a name beside its document.
        assert 0 <= size - sum(len(bson.encode(event)) for event in found) < 10 * len(found)
        assert len(found) == SLICE or size >= SLICE_SIZE
        assert size < SLICE_SIZE + len(bson.encode(events[-1])) + 20


@pytest.mark.parametrize("count", [1, SLICE - 1, SLICE, SLICE + 1, 2 * SLICE])
def test_the_last_slice_is_never_empty(count: int) -> None:
    events = [an_event(place) for place in range(1, count + 1)]

    slices = list(a_reply(a_cursor(events)).slices())

    assert [event for found, _, _ in slices for event in found] == events
    assert slices[-1][0] and slices[-1][1] == token(9999)


def test_one_event_that_is_larger_than_a_slice_is_a_slice() -> None:
    events = [an_event(1), an_event(2, {"text": "x" * SLICE_SIZE}), an_event(3)]

    slices = list(a_reply(a_cursor(events)).slices())

    assert [len(found) for found, _, _ in slices] == [2, 1]


def test_slices_are_decoded_when_they_are_asked_for() -> None:
    events = [an_event(place, {"text": "x" * 1000}) for place in range(1, 1500)]
    slices = a_reply(a_cursor(events)).slices()

    first, _, _ = next(slices)

    assert 0 < len(first) < len(events) // 2


EXTRAS: list[Any] = [
    1.5,
    "text",
    "",
    {"a": {"b": 1}},
    [1, [2]],
    Binary(b"\0bytes", 5),
    b"",
    ObjectId(),
    True,
    datetime(2024, 1, 1),
    None,
    Regex("a.b", "im"),
    Code("function () {}"),
    Code("function () {}", {"scope": 1}),
    7,
    Timestamp(1, 2),
    Int64(2**40),
    Decimal128("1.5"),
    MinKey(),
    MaxKey(),
]


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: type(extra).__name__)
def test_a_field_that_is_new_in_the_cursor_document_disturbs_nothing(extra: Any) -> None:
    events = [an_event(1)]

    reply = a_reply({"new": extra, **a_cursor(events), "newer": extra})

    assert (reply.cursor_id, reply.end, reply.is_empty) == (77, token(9999), False)
    assert [found[:2] for found in reply.slices()] == [(events, token(9999))]


@pytest.mark.parametrize(
    "value",
    [
        b"\x06new\0",
        b"\x0enew\0" + struct.pack("<i", 4) + b"sym\0",
        b"\x0cnew\0" + struct.pack("<i", 4) + b"a.b\0" + b"\0" * 12,
    ],
    ids=["undefined", "symbol", "pointer"],
)
def test_even_types_that_nobody_writes_any_more_are_skipped(value: bytes) -> None:
    body = value + bson.encode(a_cursor([an_event(1)]))[4:]
    cursor = struct.pack("<i", len(body) + 4) + body
    whole = b"\x03cursor\0" + cursor + b"\0"

    reply = Reply(RawBSONDocument(struct.pack("<i", len(whole) + 4) + whole), PLAIN)

    assert (reply.cursor_id, reply.end, reply.is_empty) == (77, token(9999), False)


@given(st.permutations(["nextBatch", "postBatchResumeToken", "id", "ns", "extra", "more"]), st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_fields_does_not_matter(names: list[str], data: st.DataObject) -> None:
    fields = a_cursor([an_event(1)], extra=data.draw(st.sampled_from(EXTRAS)), more=data.draw(st.sampled_from(EXTRAS)))

    reply = a_reply({name: fields[name] for name in names})

    assert (reply.cursor_id, reply.end, reply.is_empty) == (77, token(9999), False)


def test_invalid_text_that_somebody_inserted_does_not_end_the_stream() -> None:
    ((events, _, _),) = damaged(an_event(1, {"_id": 1, "text": "damaged!"})).slices()

    assert events[0]["fullDocument"] == {"_id": 1, "text": "dam\N{REPLACEMENT CHARACTER}ged!"}


def test_a_date_in_the_year_40000_does_not_end_the_stream() -> None:
    when = datetime(2024, 1, 1)

    ((events, _, _),) = a_reply(a_cursor([an_event(1, {"far": YEAR_40000, "near": when})])).slices()

    assert events[0]["fullDocument"] == {"far": YEAR_40000, "near": when}


def test_in_a_large_reply_only_the_damaged_slice_is_decoded_tolerantly() -> None:
    events = [an_event(place, {"text": "x" * 1000}) for place in range(1, 1500)]
    events[700]["fullDocument"]["far"] = YEAR_40000

    found = [event for found, _, _ in a_reply(a_cursor(events)).slices() for event in found]

    assert found == events


def test_what_the_client_chose_for_dates_holds_for_tolerant_decoding_too() -> None:
    codec: Codec = CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS)
    whole = bson.encode({"cursor": a_cursor([an_event(1, {"text": "damaged!", "near": datetime(2024, 1, 1)})])})

    reply = Reply(RawBSONDocument(whole.replace(b"damaged!", b"dam\xffged!")), codec)

    ((events, _, _),) = reply.slices()
    assert isinstance(events[0]["fullDocument"]["near"], DatetimeMS)


def test_what_the_client_chose_for_invalid_text_holds_for_tolerant_decoding_too() -> None:
    codec: Codec = CodecOptions(unicode_decode_error_handler="ignore")
    whole = bson.encode({"cursor": a_cursor([an_event(1, {"text": "damaged!", "far": YEAR_40000})])})

    reply = Reply(RawBSONDocument(whole.replace(b"damaged!", b"dam\xffged!")), codec)

    ((events, _, _),) = reply.slices()
    assert events[0]["fullDocument"]["text"] == "damged!"


def test_bytes_that_nobody_can_read_are_a_conversion_error_without_the_bytes() -> None:
    whole = bson.encode({"cursor": a_cursor([an_event(1, {"secret": True})])})
    # 0x63 is no type of BSON.
    reply = Reply(RawBSONDocument(whole.replace(b"\x08secret", b"\x63secret")), PLAIN)

    with pytest.raises(ConversionError) as raised:
        list(reply.slices())

    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is not None
