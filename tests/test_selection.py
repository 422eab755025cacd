"""What a stream asks the server for, and which streams there are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigatoni.config import ChangeStreamConfig
from rigatoni.errors import ConfigurationError
from rigatoni.handlers import Handlers
from rigatoni.plan import Plan, Watch, plans
from rigatoni.registration import ENDING_OPERATIONS
from rigatoni.selection import MOST_NAMES, Selection, select

ENDING = {"operationType": {"$in": ["drop", "rename", "dropDatabase", "invalidate"]}}
EXPANDED = ChangeStreamConfig(show_expanded_events=True)


def registered(*registrations: Any, database: str | None = None) -> Handlers:
    """Register a function for each of what :func:`ops` gives."""
    handlers = Handlers(database)
    for number, (operations, options) in enumerate(registrations):
        handlers.on(*operations, **options)(type(f"Function{number}", (), {"__call__": lambda self, event: None})())
    return handlers


def ops(*operations: str, **options: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    return operations, options


def chosen(*registrations: Any, scope: Any = ("shop", None), apart: Any = (), narrow: bool = True) -> Selection | None:
    return select(registered(*registrations)._handlers, scope, apart, narrow)


def passes(match: Any, event: dict[str, Any]) -> bool:
    """Judge a filter as the server does, as far as these filters go."""

    def has(field: str, wanted: Any) -> bool:
        value: Any = event
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value in wanted["$in"] if isinstance(wanted, dict) else value == wanted

    if match is None:
        return True
    return all(
        any(passes(clause, event) for clause in wanted) if field == "$or" else has(field, wanted)
        for field, wanted in match.items()
    )


def an_event(operation: str, database: str | None = "shop", collection: str | None = "orders") -> dict[str, Any]:
    namespace = {name: part for name, part in (("db", database), ("coll", collection)) if part}
    return {"operationType": operation, **({"ns": namespace} if namespace else {})}


# -- the level of the cursor and the filter


def test_without_a_handler_for_it_nothing_is_opened() -> None:
    assert chosen(ops(database="stock")) is None
    assert chosen(ops(collection="stock"), scope=("shop", "orders")) is None


def test_who_wants_everything_gets_it_without_a_filter() -> None:
    assert chosen(ops()) == Selection("shop", None)
    assert chosen(ops(), scope=(None, None)) == Selection(None, None)
    assert chosen(ops(), ops("insert", collection="a")) == Selection("shop", None)


def test_operations_are_filtered_with_those_that_end_cursors() -> None:
    expected = {"operationType": {"$in": sorted({"insert", "delete", *ENDING_OPERATIONS})}}

    assert chosen(ops("insert"), ops("delete")) == Selection("shop", None, expected)


def test_one_collection_gets_a_cursor_of_its_own_level() -> None:
    assert chosen(ops(collection="orders")) == Selection("shop", "orders")
    assert chosen(ops(collection="orders"), ops("insert", collection=["orders"])) == Selection("shop", "orders")
    assert chosen(ops(collection="orders", database="shop"), scope=(None, None)) == Selection("shop", "orders")

    inserts = chosen(ops("insert", collection="orders"))
    assert inserts == Selection("shop", "orders", {"operationType": {"$in": sorted({"insert", *ENDING_OPERATIONS})}})


def test_where_the_level_is_fixed_one_collection_is_a_filter() -> None:
    assert chosen(ops("insert", collection="orders"), narrow=False) == Selection(
        "shop", None, {"$or": [{"ns.coll": "orders", "operationType": "insert"}, ENDING]}
    )


def test_a_few_collections_are_a_filter_on_their_names() -> None:
    assert chosen(ops("insert", collection="a"), ops("insert", "delete", collection=["b", "c"])) == Selection(
        "shop",
        None,
        {
            "$or": [
                {"ns.coll": {"$in": ["b", "c"]}, "operationType": {"$in": ["delete", "insert"]}},
                {"ns.coll": "a", "operationType": "insert"},
                ENDING,
            ]
        },
    )


def test_in_the_deployment_names_are_filtered_with_their_database() -> None:
    selection = chosen(ops(collection="a", database="shop"), ops(collection="a", database="stock"), scope=(None, None))

    assert selection == Selection(
        None, None, {"$or": [{"ns.coll": "a", "ns.db": "shop"}, {"ns.coll": "a", "ns.db": "stock"}, ENDING]}
    )


def test_a_name_without_a_database_in_the_deployment_is_no_filter() -> None:
    assert chosen(ops(collection="a"), scope=(None, None)) == Selection(None, None)


def test_more_than_a_handful_of_names_are_dropped_here_and_not_by_the_server() -> None:
    names = [f"c{number}" for number in range(MOST_NAMES + 1)]

    some, all_of_them = chosen(ops(collection=names[1:])), chosen(ops("insert", collection=names))

    assert some is not None and some.match is not None and "$or" in some.match
    assert all_of_them == chosen(ops("insert"))


@pytest.mark.parametrize("name", ["a{2}", "{", "x{1,}"])
def test_a_name_with_a_brace_is_neither_a_cursor_nor_a_filter(name: str) -> None:
    assert chosen(ops(collection=name)) == Selection("shop", None)
    assert chosen(ops("insert", collection=[name, "b"])) == chosen(ops("insert"))


@pytest.mark.parametrize("glob", ["ord*", "order?", "*"])
def test_a_glob_is_not_sent_to_the_server(glob: str) -> None:
    assert chosen(ops("insert", collection=glob)) == chosen(ops("insert"))
    assert chosen(ops("insert", collection=["orders", glob])) == chosen(ops("insert"))


def test_a_collection_apart_is_not_asked_for_again() -> None:
    apart = {("shop", "orders")}

    assert chosen(ops(collection="orders"), apart=apart) is None
    assert chosen(ops(collection=["orders", "stock"]), apart=apart) == Selection("shop", "stock")
    assert chosen(ops(collection="orders"), ops("insert"), apart=apart) == chosen(ops("insert"))


def test_the_order_of_registration_changes_no_filter() -> None:
    # Else the fingerprint of a stored position would change with it.
    registrations = [
        ops("insert", collection="a"),
        ops("delete", collection=["c", "b"]),
        ops("delete", "insert", collection="d"),
    ]

    assert len({repr(chosen(*order)) for order in itertools.permutations(registrations)}) == 1


OPERATIONS = st.lists(st.sampled_from(["insert", "update", "drop", "invalidate"]), max_size=3, unique=True)
NAMES = st.none() | st.lists(st.sampled_from(["a", "b", "c{1}", "d*", "?"]), min_size=1, max_size=3, unique=True)
DATABASES = st.sampled_from([None, "shop", "stock"])


@given(
    st.lists(st.tuples(OPERATIONS, NAMES, DATABASES), min_size=1, max_size=4),
    st.sampled_from([(None, None), ("shop", None), ("shop", "a")]),
    st.sets(st.sampled_from([("shop", "a"), ("shop", "b")])),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_handler_wants_passes_the_filter(wanted: Any, scope: Any, apart: Any, narrow: bool) -> None:
    handlers = registered(*(ops(*names, collection=colls, database=db) for names, colls, db in wanted))
    if scope[1] is not None:
        apart = set()
    selection = select(handlers._handlers, scope, apart, narrow)

    for database, collection, operation in itertools.product(
        ["shop", "stock"], ["a", "b", "c{1}", "dd", "x"], ["insert", "update", "drop", "create"]
    ):
        is_outside = (scope[0] or database, scope[1] or collection) != (database, collection)
        if is_outside or (database, collection) in apart:
            continue
        if handlers._lookup(database, collection, operation):
            assert selection is not None
            assert selection.database in (None, database) and selection.collection in (None, collection)
            assert passes(selection.match, an_event(operation, database, collection))
    if selection is not None:
        assert all(passes(selection.match, an_event(operation)) for operation in ENDING_OPERATIONS)
        assert passes(selection.match, an_event("dropDatabase", "other", None))
        assert passes(selection.match, an_event("invalidate", None, None))
        assert narrow or selection.collection == scope[1]


# -- which streams there are


def planned(
    handlers: Handlers,
    *watches: Watch,
    config: ChangeStreamConfig | None = None,
    concurrency: int = 1,
    on_invalidate: str = "resume",
) -> list[Plan]:
    return plans(
        handlers._handlers,
        {f"{watch.database}.{watch.collection}": watch for watch in watches},
        database=handlers.database,
        config=config or ChangeStreamConfig(),
        concurrency=concurrency,
        start_at="then",
        on_invalidate=on_invalidate,
    )


def watch(collection: str, concurrency: int | None = None, config: ChangeStreamConfig | None = None) -> Watch:
    return Watch("shop", collection, config or ChangeStreamConfig(), concurrency, None)


def test_without_any_handler_a_start_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no handler: decorate a function with @watcher.on"):
        planned(Handlers("shop"))
    with pytest.raises(ConfigurationError, match="no handler"):
        planned(Handlers("shop"), watch("orders"))


def test_a_watch_without_a_handler_is_refused_and_named() -> None:
    with pytest.raises(ConfigurationError, match="watch\\('orders'\\) has no handler: .*collection='orders'"):
        planned(registered(ops(collection="stock"), database="shop"), watch("orders"))


def test_collections_share_one_stream_under_the_scope_of_the_watcher() -> None:
    (shop,) = planned(registered(ops(collection="a"), ops(collection="b"), database="shop"))
    (deployment,) = planned(registered(ops(collection="a"), ops(collection="b")))

    assert (shop.scope, deployment.scope) == ("shop", "")
    assert shop.start_at == "then"


def test_a_narrowed_stream_keeps_the_scope_it_was_declared_for() -> None:
    (plan,) = planned(registered(ops(collection="a"), database="shop"))

    assert (plan.scope, plan.selection.collection, plan.is_declared_level) == ("shop", "a", False)


def test_where_an_invalidate_is_the_end_the_cursor_stays_at_its_declared_level() -> None:
    (plan,) = planned(registered(ops(collection="a"), database="shop"), on_invalidate="stop")

    assert (plan.scope, plan.selection.collection, plan.is_declared_level) == ("shop", None, True)


def test_the_invalidate_of_a_cursor_that_the_library_narrowed_is_nobodys_business() -> None:
    handlers = registered(ops(collection="a"), database="shop")
    (narrowed,) = planned(handlers)
    (declared,) = planned(registered(ops("invalidate"), database="shop"))

    assert narrowed.lookup(None, None, "invalidate") == ()
    assert declared.lookup(None, None, "invalidate") == tuple(declared.handlers)


def test_a_collection_apart_has_a_stream_of_its_own_and_only_that() -> None:
    apart, shared = planned(registered(ops(), database="shop"), watch("orders"))

    assert (apart.scope, apart.selection) == ("shop.orders", Selection("shop", "orders"))
    assert (shared.scope, shared.selection) == ("shop", Selection("shop", None))
    assert apart.lookup("shop", "orders", "insert") == tuple(apart.handlers)
    assert shared.lookup("shop", "orders", "insert") == ()
    assert shared.lookup("shop", "stock", "insert") == tuple(shared.handlers)


def test_when_everything_is_apart_there_is_no_shared_stream() -> None:
    handlers = registered(ops(collection=["a", "b"]), database="shop")

    assert [plan.scope for plan in planned(handlers, watch("a"), watch("b"))] == ["shop.a", "shop.b"]


def test_what_ends_another_collection_is_not_handled_by_a_cursor_on_one() -> None:
    # A cursor on the target of a rename sees it, under the name of its source.
    handlers = registered(ops(collection=["orders", "old"]), database="shop")
    apart, _ = planned(handlers, watch("orders"))

    assert apart.lookup("shop", "old", "rename") == ()
    assert apart.lookup("shop", "orders", "drop") == tuple(handlers._handlers)


def test_a_collection_has_as_many_lanes_as_the_most_that_is_asked_for() -> None:
    handlers = registered(
        ops("insert", collection="a", concurrency=4),
        ops("delete", collection="a*", concurrency=2),
        ops("update", collection="b"),
        database="shop",
    )
    (plan,) = planned(handlers, concurrency=3)

    assert [plan.width("shop", name) for name in ("a", "aa", "b")] == [4, 2, 3]


def test_what_watch_asks_for_counts_among_the_handlers() -> None:
    handlers = registered(ops(concurrency=4, collection="a"), ops("insert"), database="shop")

    wide, narrow, unsaid, _ = planned(handlers, watch("a", 7), watch("b", 2), watch("c"), concurrency=3)

    assert wide.width("shop", "a") == 7
    assert narrow.width("shop", "b") == 2
    assert unsaid.width("shop", "c") == 3
    assert planned(handlers, watch("a", 2))[0].width("shop", "a") == 4


def test_operations_that_the_server_would_never_send_are_refused() -> None:
    handlers = registered(ops("insert", "createIndexes"), database="shop")

    with pytest.raises(ConfigurationError, match="createIndexes.*show_expanded_events=True"):
        planned(handlers)
    assert planned(handlers, config=EXPANDED)


def test_expanded_events_of_one_stream_do_not_help_a_handler_of_another() -> None:
    handlers = registered(ops("createIndexes", collection="a"), ops(collection="b"), database="shop")

    with pytest.raises(ConfigurationError, match="createIndexes.*show_expanded_events=True"):
        planned(handlers, watch("b", config=EXPANDED))
    assert planned(handlers, watch("a", config=EXPANDED))
