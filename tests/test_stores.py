"""What every store guarantees: one contract, run against each of them."""

import os
import threading
from datetime import datetime
from uuid import UUID

import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex, Timestamp
from bson.datetime_ms import DatetimeMS

from rigatoni import ConfigurationError, DeadLetter, MemoryStore, Position, SQLiteStore, TokenStore


@pytest.fixture(params=["sqlite", "memory"])
def store(request, tmp_path):
    store = SQLiteStore(tmp_path / "positions.db") if request.param == "sqlite" else MemoryStore()
    store.open()
    yield store
    store.unlock("shop")
    store.close()


def position(seconds, **more):
    token = {"_data": f"82{seconds:08X}000000012B022C0100296E5A1004", **more}
    return Position.of(token, fingerprint="f1", cluster="rs0")


def letter(event="82AA", handler="app:ship", error="ValueError: no address", **more):
    return DeadLetter(None, handler, {"_id": {"_data": event}, **more}, error, "Traceback …", 3, 1700000000.5)


def raw(positions):
    return {scope: (kept.token, kept.cluster_time, kept.fingerprint, kept.cluster) for scope, kept in positions.items()}


def test_an_empty_store_knows_nobody(store):
    assert store.load("shop") == {}
    assert store.status("shop") is None
    assert store.letters("shop") == []
    assert store.names() == []
    assert isinstance(store, TokenStore)


def test_what_is_saved_is_loaded_with_the_time_of_its_saving(store):
    saved = {"": position(1), "shop.orders": position(2), "shop": Position(None, Timestamp(3, 4))}
    store.save("shop", saved)
    loaded = store.load("shop")
    assert raw(loaded) == raw(saved)
    assert all(kept.saved_at > 1_700_000_000 for kept in loaded.values())


def test_saving_again_replaces_only_the_scopes_that_are_given(store):
    store.save("shop", {"a": position(1), "b": position(1)})
    store.save("shop", {"a": position(2)})
    assert raw(store.load("shop")) == raw({"a": position(2), "b": position(1)})


def test_none_deletes_a_position_and_one_that_is_not_there_is_no_error(store):
    store.save("shop", {"a": position(1), "b": position(2)})
    store.save("shop", {"a": None, "never": None})
    assert list(store.load("shop")) == ["b"]


def test_consumers_of_one_store_do_not_see_each_other(store):
    store.save("shop", {"a": position(1)}, {"state": "running"})
    store.bury("shop", letter())
    assert (store.load("mail"), store.status("mail"), store.letters("mail")) == ({}, None, [])
    assert store.discard("mail", store.letters("shop")[0].id) is False
    assert len(store.letters("shop")) == 1


def test_names_lists_whoever_has_a_position_a_status_or_a_letter(store):
    store.save("positions", {"a": position(1)})
    store.save("status", {}, {"state": "standby"})
    store.bury("letters", letter())
    store.save("nothing", {"a": None})
    assert store.names() == ["letters", "positions", "status"]


@pytest.mark.parametrize("scope", ["shop.it's", 'shop."a"', "shop.a;b--", "shop.[x]`%?", "shop.größe\n", "shop.a.b.c"])
def test_scopes_may_hold_what_collection_names_hold(store, scope):
    store.save("it's", {scope: position(1), "shop": position(2)})
    assert raw(store.load("it's")) == raw({scope: position(1), "shop": position(2)})
    store.save("it's", {scope: None})
    assert list(store.load("it's")) == ["shop"]


def test_tokens_keep_the_types_of_their_values(store):
    more = {
        "_typeBits": b"\x82\x01",
        "n": Int64(5),
        "d": Decimal128("1.10"),
        "b": Binary(b"xy", 5),
        "i": 7,
        "o": ObjectId(),
    }
    store.save("shop", {"": position(1, **more)})
    token = store.load("shop")[""].token
    assert {key: (type(token[key]), token[key]) for key in more} == {
        key: (type(value), value) for key, value in more.items()
    }


def test_a_token_of_two_megabytes_is_kept_whole(store):
    long = Position.of({"_data": "82" + 8 * "0" + 8 * "1" + "AB" * 1_000_000})
    store.save("shop", {"": long})
    assert store.load("shop")[""].token == long.token


def test_a_save_that_fails_changes_nothing(store):
    store.save("shop", {"a": position(1), "b": position(1)}, {"state": "running"})
    broken = {"a": position(2), "b": None, "c": "not a position"}
    with pytest.raises((AttributeError, TypeError)):
        store.save("shop", broken, {"state": "stopping"})
    assert raw(store.load("shop")) == raw({"a": position(1), "b": position(1)})
    assert store.status("shop")["state"] == "running"


def test_the_status_is_replaced_only_when_one_is_given(store):
    store.save("shop", {}, {"state": "running", "streams": {"shop": {"lag": 0.5, "headroom": None}}})
    store.save("shop", {"shop": position(1)})
    status = store.status("shop")
    assert status.pop("saved_at") > 1_700_000_000
    assert status == {"state": "running", "streams": {"shop": {"lag": 0.5, "headroom": None}}}


def test_a_status_may_hold_what_json_does_not_know(store):
    store.save("shop", {}, {"since": datetime(2024, 1, 2), "raw": b"\xff", ("a",): 1})
    status = store.status("shop")
    assert (status["since"], status["raw"]) == ("datetime.datetime(2024, 1, 2, 0, 0)", r"b'\xff'")
    status["since"] = "changed by the caller"
    assert store.status("shop")["since"] != "changed by the caller"


def test_a_status_may_hold_what_json_cannot_write(store):
    circular: dict[str, object] = {}
    circular["self"] = circular
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    store.save("shop", {"a": position(1)}, {"circular": circular, "deep": deep, "state": "running"})
    status = store.status("shop")
    assert (status["circular"], status["state"]) == ("{'self': {...}}", "running")
    assert isinstance(status["deep"], str)
    assert raw(store.load("shop")) == raw({"a": position(1)})


def test_letters_are_listed_in_order_with_an_id_and_all_that_was_buried(store):
    store.bury("shop", letter("82AA", n=Int64(1), when=datetime(2024, 1, 2)))
    store.bury("shop", letter("82BB"))
    first, second = store.letters("shop")
    assert first.id < second.id
    expected = letter("82AA", n=Int64(1), when=datetime(2024, 1, 2))
    assert first.event == expected.event and type(first.event["n"]) is Int64
    assert (first.handler, first.error, first.traceback, first.attempts, first.buried_at) == (
        "app:ship",
        "ValueError: no address",
        "Traceback …",
        3,
        1700000000.5,
    )


def test_burying_an_event_again_replaces_its_letter_and_keeps_the_id(store):
    store.bury("shop", letter())
    [before] = store.letters("shop")
    store.bury("shop", letter(error="KeyError: 'street'"))
    [after] = store.letters("shop")
    assert (after.id, after.error) == (before.id, "KeyError: 'street'")


def test_another_handler_or_another_event_is_another_letter(store):
    for buried in (letter("82AA"), letter("82AA", handler="app:mail"), letter("82BB")):
        store.bury("shop", buried)
    assert len(store.letters("shop")) == 3


def test_events_without_a_token_are_told_apart_by_what_they_hold(store):
    for event in ({"n": 1}, {"n": 2}, {"n": 1}):
        store.bury("shop", DeadLetter(None, "app:ship", event, "", "", 1, 0.0))
    assert [kept.event for kept in store.letters("shop")] == [{"n": 1}, {"n": 2}]


def test_a_discarded_letter_is_gone_and_its_id_never_means_another(store):
    store.bury("shop", letter("82AA"))
    [first] = store.letters("shop")
    assert store.discard("shop", first.id) is True
    assert store.discard("shop", first.id) is False
    store.bury("shop", letter("82BB"))
    [second] = store.letters("shop")
    assert second.id != first.id


class Money:
    """What a type decoder of the client's codec options may make of a value."""

    def __repr__(self):
        return "Money(5)"


class Unspeakable:
    """A value that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no repr")


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (Money(), "Money(5)"),
        (Unspeakable(), "<Unspeakable>"),
        ({"deep": [1, Money()]}, {"deep": [1, "Money(5)"]}),
        ({7: "a", ("b",): Money()}, {"7": "a", "('b',)": "Money(5)"}),
        ({"$oid": "junk"}, "{'$oid': 'junk'}"),
        ({"$date": {"$numberLong": "x"}}, "{'$date': {'$numberLong': 'x'}}"),
        ("half \udcff of a character", "half \udcff of a character"),
        ("a\0b", "a\0b"),
        (DatetimeMS(2**60), DatetimeMS(2**60)),
        (UUID(int=5), Binary(UUID(int=5).bytes, 4)),
        (Regex("^a", "i"), Regex("^a", "i")),
        (2**70, 2**70),
    ],
)
def test_no_value_of_an_event_hinders_its_burial(store, value, kept):
    store.bury("shop", letter(value=value, other=Int64(1)))
    [found] = store.letters("shop")
    assert found.event["value"] == kept
    assert found.event["_id"] == {"_data": "82AA"} and found.event["other"] == 1


def test_an_event_that_holds_itself_is_buried_too(store):
    loop = {}
    loop["self"] = loop
    store.bury("shop", letter(value=loop))
    assert [found.event["_id"] for found in store.letters("shop")] == [{"_data": "82AA"}]


def test_a_letter_is_not_changed_by_who_goes_on_using_the_event(store):
    buried = letter(items=["pen"])
    store.bury("shop", buried)
    buried.event["items"].append("ink")
    assert store.letters("shop")[0].event["items"] == ["pen"]


def test_texts_of_an_error_may_hold_any_character(store):
    store.bury("shop", letter(error="\udcff\0€\ud800"))
    assert store.letters("shop")[0].error == "\\udcff\0€\\ud800"


def test_a_name_is_locked_once_in_a_process_and_free_after_unlock(store):
    assert store.lock("shop") is True
    with pytest.raises(ConfigurationError, match="name="):
        store.lock("shop")
    assert store.lock("mail") is True
    store.unlock("mail")
    store.unlock("shop")
    assert store.lock("shop") is True


def test_unlocking_what_is_not_locked_does_nothing(store):
    store.unlock("shop")
    assert store.lock("shop") is True


def test_the_holder_is_named_until_it_unlocks(store):
    assert store.holder("shop") is None
    store.lock("shop")
    assert store.holder("shop") == f"pid {os.getpid()} on {os.uname().nodename}"
    store.unlock("shop")
    assert store.holder("shop") is None


def test_what_was_saved_outlives_close_and_a_closed_store_opens_by_itself(store):
    store.save("shop", {"": position(1)})
    store.close()
    store.close()
    assert raw(store.load("shop")) == raw({"": position(1)})
    store.save("shop", {"": position(2)})
    store.open()
    assert raw(store.load("shop")) == raw({"": position(2)})


def test_close_does_not_unlock(store):
    store.lock("shop")
    store.close()
    with pytest.raises(ConfigurationError):
        store.lock("shop")


def test_native_threads_use_one_store_at_once(store):
    errors = []

    def work(me):
        try:
            for n in range(25):
                store.save("shop", {f"{me}": position(n), f"{me} again": position(n)}, {"by": me})
                found = raw(store.load("shop"))
                assert found[f"{me}"] == found[f"{me} again"] == raw({"": position(n)})[""]
                store.bury("shop", letter(f"82{me}{n}"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert len(store.load("shop")) == 8
    assert len({kept.id for kept in store.letters("shop")}) == 100
