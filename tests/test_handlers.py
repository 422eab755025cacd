"""What ``on()`` and ``on_batch()`` refuse there and then, whom they match, and how handlers are named."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from rigatoni import ConfigurationError, MemoryStore, RetryPolicy, Watcher
from rigatoni.events import ChangeEvent
from rigatoni.handlers import Handlers
from rigatoni.registration import OPERATIONS, is_like, name_of


def handle(event: Any) -> None:
    """A handler like any other."""


def handle_too(event: Any) -> None:
    """Another one."""


async def never_awaited(event: Any) -> None:
    """A coroutine function."""


async def never_iterated(event: Any) -> AsyncIterator[None]:
    """An asynchronous generator function."""
    yield


def never_started(event: Any) -> Iterator[None]:
    """A generator function."""
    yield


class Shop:
    def handle(self, event: Any) -> None:
        """A method."""

    @staticmethod
    def handle_static(event: Any) -> None:
        """A static method."""

    @classmethod
    def handle_class(cls, event: Any) -> None:
        """A class method."""

    def __call__(self, event: Any) -> None:
        """An object that is called."""


class AsyncShop:
    async def __call__(self, event: Any) -> None:
        """An object that is called and would never run."""


class Away(MemoryStore):
    def open(self) -> None:
        raise OSError("the store is away")


def update(**description: Any) -> dict[str, Any]:
    return {
        "_id": {"_data": "82"},
        "operationType": "update",
        "ns": {"db": "shop", "coll": "orders"},
        "updateDescription": description,
    }


# -- wrong uses


def test_on_without_brackets_says_to_write_them() -> None:
    with pytest.raises(ConfigurationError, match=re.escape("write @watcher.on()")):
        Handlers().on(handle)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match=re.escape("write @watcher.on_batch()")):
        Handlers().on_batch(handle)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("operation", "mend"),
    [
        ("Insert", "did you mean 'insert'"),
        ("inserts", "did you mean 'insert'"),
        ("updated", "did you mean 'update'"),
        ("dropdatabase", "did you mean 'dropDatabase'"),
        ("createIndex", "did you mean 'createIndexes'"),
        ("truncate", "there are .*delete.*insert.*update"),
        ("", "there are .*delete.*insert.*update"),
        (["insert", "update"], "on\\('insert', 'update'\\)"),
        (None, "on\\('insert', 'update'\\)"),
    ],
)
def test_an_unknown_operation_is_refused_with_the_likely_one(operation: Any, mend: str) -> None:
    for register in (Handlers().on, Handlers().on_batch):
        with pytest.raises(ConfigurationError, match=mend):
            register("insert", operation)


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"colection": "orders"}, "unknown option 'colection'.*collection"),
        ({"max_size": 5}, "unknown option 'max_size'"),
        ({"collection": 5}, "a name or a list of names, not int"),
        ({"collection": []}, "leave it out for all"),
        ({"collection": ""}, "no name"),
        ({"collection": "a\0b"}, "no name"),
        ({"collection": ["orders", None]}, "None, which is no name"),
        ({"collection": b"orders"}, "no name"),
        ({"database": ["shop"]}, "one database"),
        ({"database": ""}, "one database"),
        ({"database": "shop.orders"}, "one database"),
        ({"fields": []}, "leave it out for all"),
        ({"fields": {"a": 1, "": 2}}, "no name"),
        ({"ack": "later"}, "'auto' or 'manual'"),
        ({"ack": True}, "'auto' or 'manual'"),
        ({"concurrency": 0}, "from 1"),
        ({"concurrency": True}, "from 1"),
        ({"concurrency": 2.0}, "from 1"),
        ({"retry": 3}, "RetryPolicy\\(max_attempts"),
        ({"retry": RetryPolicy}, "RetryPolicy\\(max_attempts"),
        ({"on_error": "ignore"}, "'dead_letter', 'stop' or 'skip'"),
        ({"on_error": ["stop"]}, "'dead_letter', 'stop' or 'skip'"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": -1}, "above 0"),
        ({"timeout": float("nan")}, "above 0"),
        ({"timeout": float("inf")}, "above 0"),
        ({"timeout": "5"}, "above 0"),
    ],
)
def test_a_wrong_option_is_refused_with_what_it_must_be(options: dict[str, Any], mend: str) -> None:
    for register in (Handlers().on, Handlers().on_batch):
        if register.__name__ == "on" or "max_size" not in options:
            with pytest.raises(ConfigurationError, match=mend):
                register(**options)


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        ({"max_size": 0}, "max_size must be a whole number from 1"),
        ({"max_size": 1.5}, "max_size must be a whole number from 1"),
        ({"max_size": True}, "max_size must be a whole number from 1"),
        ({"max_wait": -0.1}, "max_wait must be a number of seconds from 0"),
        ({"max_wait": None}, "max_wait must be a number of seconds from 0"),
        ({"max_wait": float("inf")}, "max_wait must be a number of seconds from 0"),
    ],
)
def test_a_wrong_batch_size_is_refused(options: dict[str, Any], mend: str) -> None:
    with pytest.raises(ConfigurationError, match=mend):
        Handlers().on_batch(**options)


def test_fields_without_updates_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="add 'update'"):
        Handlers().on("insert", "delete", fields=["a"])

    Handlers().on(fields=["a"])(handle)
    Handlers().on("insert", "update", fields="a.b")(handle)


@pytest.mark.parametrize(
    ("function", "mend"),
    [
        (never_awaited, "is async.*plain def"),
        (never_iterated, "is async.*plain def"),
        (never_started, "generator.*plain def"),
        (functools.partial(never_awaited), "is async.*plain def"),
        (functools.partial(functools.partial(never_started)), "generator.*plain def"),
        (AsyncShop(), "is async.*plain def"),
        (functools.wraps(never_awaited)(lambda event: never_awaited(event)), "is async.*plain def"),
        (None, "decorates functions, not NoneType"),
        ("handle", "decorates functions, not str"),
    ],
)
def test_what_would_never_run_is_refused(function: Any, mend: str) -> None:
    for register in (Handlers().on("insert"), Handlers().on_batch("insert")):
        with pytest.raises(ConfigurationError, match=mend):
            register(function)


def test_another_database_than_the_watchers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="watches 'shop'.*without a database"):
        Watcher(database="shop").on(database="stock")

    Watcher(database="shop").on(database="shop")(handle)
    Watcher().on(database="stock")(handle)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((("insert",), {}), (("insert",), {})),
        ((("insert",), {}), ((), {})),
        ((("insert", "update"), {}), (("update", "delete"), {})),
        (((), {"collection": "a"}), ((), {"collection": ["b", "a"]})),
        (((), {"collection": "a"}), (("insert",), {})),
        (((), {"collection": "orders"}), ((), {"collection": "ord*"})),
        (((), {"collection": "*"}), ((), {"collection": "ord*"})),
        (((), {"database": "shop"}), ((), {})),
    ],
)
def test_one_function_twice_for_the_same_events_is_refused(first: Any, second: Any) -> None:
    for (operations, options), (other_operations, other_options) in ((first, second), (second, first)):
        handlers = Handlers()
        handlers.on(*operations, **options)(handle)
        with pytest.raises(ConfigurationError, match="handle is registered twice"):
            handlers.on(*other_operations, **other_options)(handle)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((("insert",), {}), (("update",), {})),
        (((), {"collection": "a"}), ((), {"collection": "b"})),
        (((), {"collection": "a?"}), ((), {"collection": "b*"})),
        (((), {"database": "shop"}), ((), {"database": "stock"})),
        ((("insert",), {"collection": "a"}), (("update",), {"collection": "a"})),
    ],
)
def test_stacked_decorators_for_different_events_are_fine(first: Any, second: Any) -> None:
    handlers = Handlers()

    assert handlers.on(*first[0], **first[1])(handlers.on(*second[0], **second[1])(handle)) is handle


def test_two_functions_of_one_name_are_refused() -> None:
    handlers = Handlers()
    handlers.on("insert")(lambda event: None)

    with pytest.raises(ConfigurationError, match="give each function its own"):
        handlers.on("delete")(lambda event: None)


def test_a_registration_after_the_start_is_refused() -> None:
    # A start that finds no server has still said which handlers there are.
    watcher = Watcher("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1", store=Away())
    watcher.on("insert")(handle)
    with pytest.raises(Exception, match="the store is away"):
        watcher.start()

    with pytest.raises(ConfigurationError, match="register every handler before"):
        watcher.on("delete")(handle_too)
    with pytest.raises(ConfigurationError, match="register every handler before"):
        watcher.on_batch("delete")(handle_too)


def test_a_refused_registration_leaves_nothing_behind() -> None:
    handlers = Handlers()
    handlers.on("insert")(handle)
    with pytest.raises(ConfigurationError):
        handlers.on()(handle)

    assert [handler.operations for handler in handlers._lookup("shop", "orders", "insert")] == [frozenset({"insert"})]
    assert handlers._lookup("shop", "orders", "update") == ()


# -- whom they match


def matched(handlers: Handlers, *key: str | None) -> list[Callable[..., object]]:
    return [handler.function for handler in handlers._lookup(*key)]  # type: ignore[arg-type]


def test_the_decorated_function_comes_back_unchanged() -> None:
    handlers = Handlers()

    assert handlers.on("insert")(handle) is handle
    assert handlers.on_batch("delete")(handle) is handle


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
def test_every_operation_of_the_server_is_known(operation: str) -> None:
    handlers = Handlers()
    handlers.on(operation)(handle)

    assert matched(handlers, "shop", "orders", operation) == [handle]
    assert matched(handlers, "shop", "orders", "something else") == []


def test_no_operation_means_all_of_them_also_those_to_come() -> None:
    handlers = Handlers()
    handlers.on()(handle)

    assert matched(handlers, "shop", "orders", "insert") == matched(handlers, None, None, "ofTomorrow") == [handle]


def test_handlers_are_found_in_the_order_of_their_registration() -> None:
    handlers = Handlers()
    functions: list[Any] = [handle_too, handle, Shop().handle, Shop(), Shop.handle_static]
    for number, function in enumerate(functions):
        (handlers.on if number % 2 else handlers.on_batch)("insert")(function)

    assert matched(handlers, "shop", "orders", "insert") == functions


def test_a_handler_of_a_collection_gets_nothing_without_one() -> None:
    handlers = Handlers()
    handlers.on(collection="*")(handle)

    assert matched(handlers, "shop", "orders", "drop") == [handle]
    assert matched(handlers, "shop", None, "dropDatabase") == matched(handlers, None, None, "invalidate") == []


def test_a_handler_of_a_database_gets_nothing_of_others() -> None:
    handlers = Handlers()
    handlers.on(database="shop")(handle)

    assert matched(handlers, "shop", "orders", "insert") == matched(handlers, "shop", None, "dropDatabase") == [handle]
    assert matched(handlers, "stock", "orders", "insert") == matched(handlers, None, None, "invalidate") == []


def test_a_rename_is_matched_by_its_source() -> None:
    calls: list[str] = []
    watcher = Watcher(database="shop")
    watcher.on("rename", collection="old")(lambda event: calls.append("source"))

    @watcher.on("rename", collection="new")
    def target(event: ChangeEvent) -> None:
        calls.append("target")

    rename = {"operationType": "rename", "ns": {"db": "shop", "coll": "old"}, "to": {"db": "shop", "coll": "new"}}
    watcher.dispatch(rename)

    assert calls == ["source"]


@pytest.mark.parametrize(
    ("glob", "name", "is_match"),
    [
        ("orders", "orders", True),
        ("orders", "Orders", False),
        ("orders", "orders2", False),
        ("ord*", "orders", True),
        ("ord*", "ord", True),
        ("ord*", "word", False),
        ("*", "", True),
        ("*ers", "orders", True),
        ("o*d*s", "orders", True),
        ("order?", "orders", True),
        ("order?", "order", False),
        ("a.b", "a.b", True),
        ("a.b", "aXb", False),
        ("a.*", "a.b", True),
        ("a.*", "aXb", False),
        ("[ab]", "[ab]", True),
        ("[ab]", "a", False),
        ("[ab]*", "a", False),
        ("[ab]*", "[ab]c", True),
        ("{a,b}", "{a,b}", True),
        ("a{2}*", "aa", False),
        ("a{2}*", "a{2}b", True),
        ("(a|b)*", "a", False),
        ("a+*", "aa", False),
        ("^a$*", "^a$b", True),
        ("a\\*", "a\\b", True),
        ("a\\*", "a*", False),
        ("line*", "line\nbreak", True),
        ("a?c", "a\nc", True),
    ],
)
def test_only_the_star_and_the_question_mark_are_wildcards(glob: str, name: str, is_match: bool) -> None:
    assert is_like(name, glob) is is_match


def test_a_list_of_names_and_globs_matches_each_of_them() -> None:
    handlers = Handlers()
    handlers.on(collection=(name for name in ["a", "b*"]))(handle)

    found = [name for name in ("a", "b", "bc", "c", "ab") if matched(handlers, "shop", name, "insert")]

    assert found == ["a", "b", "bc"]


# -- fields


@pytest.mark.parametrize(
    ("description", "is_wanted"),
    [
        ({"updatedFields": {"a.b": 1}}, True),
        ({"updatedFields": {"a": {}}}, True),
        ({"updatedFields": {"a.b.c": 1}}, True),
        ({"removedFields": ["a.b"]}, True),
        ({"removedFields": ["a"]}, True),
        ({"truncatedArrays": [{"field": "a.b", "newSize": 1}]}, True),
        ({"truncatedArrays": [{"field": "a.b.c", "newSize": 1}]}, True),
        ({"updatedFields": {"a.bc": 1, "a.c": 1, "b": 1}}, False),
        ({"updatedFields": {}, "removedFields": [], "truncatedArrays": []}, False),
        ({}, False),
    ],
)
def test_with_fields_an_update_must_change_one_of_them(description: dict[str, Any], is_wanted: bool) -> None:
    handlers = Handlers()
    handlers.on("update", "insert", fields=["x.y", "a.b"])(handle)
    (handler,) = handlers._lookup("shop", "orders", "update")

    assert handler.wants(update(**description)) is is_wanted


def test_fields_are_about_updates_only() -> None:
    handlers = Handlers()
    handlers.on(fields="a")(handle)
    (handler,) = handlers._lookup("shop", "orders", "insert")

    assert handler.wants({"operationType": "insert", "fullDocument": {"b": 1}})
    assert handler.wants({"operationType": "drop"})


# -- names


def test_functions_methods_and_callables_are_named_by_module_and_place() -> None:
    def inner(event: Any) -> None:
        """A function in a function."""

    here = __name__
    assert name_of(handle) == f"{here}:handle"
    assert name_of(Shop().handle) == name_of(Shop.handle) == f"{here}:Shop.handle"
    assert name_of(Shop.handle_static) == f"{here}:Shop.handle_static"
    assert name_of(Shop.handle_class) == f"{here}:Shop.handle_class"
    assert name_of(Shop()) == f"{here}:Shop"
    assert name_of(functools.partial(handle)) == f"{here}:handle"
    assert name_of(functools.partial(functools.partial(Shop().handle))) == f"{here}:Shop.handle"
    assert name_of(functools.wraps(handle)(lambda event: None)) == f"{here}:handle"
    assert name_of(lambda event: None).endswith("<lambda>")
    assert name_of(inner).endswith(".<locals>.inner")


def test_a_stand_in_for_a_function_can_be_registered() -> None:
    handlers = Handlers()
    stand_in = Mock()

    handlers.on("insert")(stand_in)

    assert matched(handlers, "shop", "orders", "insert") == [stand_in]


# -- dispatch


def test_dispatch_calls_the_matching_handlers_once_in_order() -> None:
    calls: list[Any] = []
    watcher = Watcher(database="shop")

    @watcher.on("update", collection="orders")
    def single(event: ChangeEvent) -> None:
        calls.append(("single", event.operation))

    @watcher.on_batch("update")
    def batch(events: list[ChangeEvent]) -> None:
        calls.append(("batch", len(events)))

    @watcher.on("update", fields="other")
    def picky(event: ChangeEvent) -> None:
        calls.append(("picky", event.operation))

    @watcher.on(ack="manual")
    def manual(event: Any) -> None:
        event.ack()
        calls.append(("manual", event.operation))

    watcher.dispatch(update(updatedFields={"a": 1}))
    assert calls == [("single", "update"), ("batch", 1), ("manual", "update")]

    calls.clear()
    watcher.dispatch(ChangeEvent(update(updatedFields={"a": 1})), handler=name_of(batch))
    assert calls == [("batch", 1)]


def test_dispatch_lets_exceptions_through_and_does_not_retry() -> None:
    calls: list[int] = []
    watcher = Watcher(database="shop", retry=RetryPolicy(max_attempts=5))

    @watcher.on()
    def broken(event: ChangeEvent) -> None:
        calls.append(1)
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        watcher.dispatch(update())
    assert calls == [1]


def test_dispatch_to_a_handler_that_is_not_there_names_those_that_are() -> None:
    watcher = Watcher()
    watcher.on()(handle)

    with pytest.raises(ConfigurationError, match="no handler 'gone'.*test_handlers:handle"):
        watcher.dispatch(update(), handler="gone")


def test_a_letter_is_replayed_by_the_one_of_stacked_decorators_that_it_is_for() -> None:
    calls: list[Any] = []
    watcher = Watcher(database="shop")

    @watcher.on("update", collection="orders", fields="a")
    @watcher.on_batch("delete", collection="orders")
    @watcher.on("update", collection="customers", fields="b")
    def note(event: Any) -> None:
        calls.append(event)

    replayed = ChangeEvent(update(updatedFields={"a": 1}))
    watcher.dispatch(replayed, handler=name_of(note))
    assert calls == [replayed]

    # Nor is it passed over in silence when the registration has changed since.
    calls.clear()
    forsaken = ChangeEvent(update(updatedFields={"c": 1}))
    watcher.dispatch(forsaken, handler=name_of(note))
    assert calls == [forsaken]
