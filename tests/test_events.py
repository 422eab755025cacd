"""One change as a handler sees it: cheap attributes, a mapping, an identity."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from bson import Timestamp

from rigatoni.events import TRUNCATED, AckableEvent, ChangeEvent, UpdateDescription

UPDATE: dict[str, Any] = {
    "_id": {"_data": "8265A1B2C30000002A2B022C0100296E", "_typeBits": b"\x82"},
    "operationType": "update",
    "clusterTime": Timestamp(1705095875, 42),
    "wallTime": datetime(2024, 1, 12, 21, 44, 35),
    "ns": {"db": "shop", "coll": "orders"},
    "documentKey": {"_id": 7},
    "fullDocument": {"_id": 7, "paid": True},
    "fullDocumentBeforeChange": {"_id": 7, "paid": False},
    "updateDescription": {
        "updatedFields": {"address.city": "Bari"},
        "removedFields": ["note"],
        "truncatedArrays": [{"field": "lines", "newSize": 2}],
        "disambiguatedPaths": {"a.0": ["a", "0"]},
    },
    "txnNumber": 3,
    "lsid": {"id": "session"},
}


def test_every_attribute_is_what_the_server_sent() -> None:
    event = ChangeEvent(UPDATE)

    assert event.id == UPDATE["_id"]["_data"]
    assert (event.operation, event.database, event.collection) == ("update", "shop", "orders")
    assert (event.document_key, event.full_document) == (UPDATE["documentKey"], UPDATE["fullDocument"])
    assert event.full_document_before_change == UPDATE["fullDocumentBeforeChange"]
    assert (event.cluster_time, event.wall_time) == (UPDATE["clusterTime"], UPDATE["wallTime"])
    assert (event.txn_number, event.lsid) == (3, {"id": "session"})
    assert event.update_description == UpdateDescription(
        {"address.city": "Bari"}, ["note"], [{"field": "lines", "newSize": 2}], {"a.0": ["a", "0"]}
    )


@pytest.mark.parametrize("raw", [{"_id": {"_data": "82"}, "operationType": "invalidate"}, {"ns": None}, {"ns": {}}])
def test_what_the_server_did_not_send_is_none(raw: dict[str, Any]) -> None:
    event = ChangeEvent(raw)

    for name in (
        "database collection document_key full_document full_document_before_change update_description "
        "cluster_time wall_time txn_number lsid"
    ).split():
        assert getattr(event, name) is None, name
    assert event.truncated == ()


def test_null_fields_of_an_update_description_read_as_empty() -> None:
    description = ChangeEvent({"updateDescription": {"updatedFields": None}}).update_description

    assert description == UpdateDescription({}, [], [], {})


def test_an_event_is_a_read_only_mapping_over_what_pymongo_decoded() -> None:
    event = ChangeEvent(UPDATE)

    assert event["fullDocument"]["paid"] is True
    assert dict(event) == UPDATE and len(event) == len(UPDATE) and "lsid" in event
    assert event.get("missing") is None
    assert event.raw is UPDATE
    with pytest.raises(TypeError):
        event["fullDocument"] = {}  # type: ignore[index]


def test_events_compare_and_hash_by_identity() -> None:
    one, other = ChangeEvent(UPDATE), ChangeEvent(UPDATE)

    assert one == one and one != other and one != UPDATE
    assert len({one, other}) == 2


def test_changing_the_resume_token_that_was_given_changes_no_event() -> None:
    event = ChangeEvent({"_id": {"_data": "82AA"}})

    event.resume_token["_data"] = "no"

    assert event.id == "82AA" and event.resume_token == {"_data": "82AA"}


def test_an_oversized_event_names_what_was_left_out() -> None:
    assert ChangeEvent({TRUNCATED: ["fullDocument"]}).truncated == ("fullDocument",)


@pytest.mark.parametrize(
    ("path", "is_changed"),
    [
        ("address.city", True),
        ("address", True),
        ("address.city.name", True),
        ("note", True),
        ("note.text", True),
        ("lines", True),
        ("lines.5", True),
        ("addres", False),
        ("address.cit", False),
        ("address.street", False),
        ("not", False),
        ("line", False),
    ],
)
def test_a_field_is_changed_with_its_parents_and_children(path: str, is_changed: bool) -> None:
    description = ChangeEvent(UPDATE).update_description

    assert description is not None
    assert description.changes(path) is is_changed


def test_ack_calls_what_was_given_each_time() -> None:
    calls: list[int] = []
    event = AckableEvent(UPDATE, lambda: calls.append(1))

    event.ack()
    event.ack()

    assert calls == [1, 1]
    assert isinstance(event, ChangeEvent) and event.id == UPDATE["_id"]["_data"]


def test_the_repr_names_what_happened_where_and_is_short() -> None:
    assert repr(ChangeEvent(UPDATE)) == "<ChangeEvent update 'shop.orders' _id=7>"
    assert "AckableEvent invalidate ''" in repr(AckableEvent({"operationType": "invalidate"}, print))
    assert len(repr(ChangeEvent(UPDATE | {"documentKey": {"_id": "x" * 10_000}}))) < 200


def test_the_repr_survives_an_id_that_has_none() -> None:
    class Unspeakable:
        """A type of the user's own codec."""

        def __repr__(self) -> str:
            raise ValueError("no words for it")

    event = ChangeEvent(UPDATE | {"documentKey": {"_id": Unspeakable()}})

    assert repr(event).startswith("<ChangeEvent update 'shop.orders' _id=") and f"{event!r}".endswith(">")
