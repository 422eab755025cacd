"""Odd names of collections and databases: a handler gets exactly theirs, or is refused."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import wait_until
from watchers import Make, places, watchers

from rigatoni import ConfigurationError


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield make


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ('it\'s "quoted"', "its quoted"),
        ("a.b.c", "aXb.c"),
        ("line\nbreak", "linebreak"),
        ("ends\n", "ends"),
        ("a+b", "aab"),
        ("a|b", "a"),
        ("(a)", "a"),
        ("[ab]", "a"),
        ("^a", "a"),
        ("a\\", "a"),
        ("<script>", "script"),
        ("n" * 150, "n"),
    ],
)
@pytest.mark.parametrize("own", [False, True], ids=["shared", "watch"])
def test_a_name_means_exactly_that_collection(database: Any, make: Make, name: str, similar: str, own: bool) -> None:
    watcher = make()
    seen = places(watcher, "insert", collection=name)
    if own:
        watcher.watch(name)
    watcher.start()
    database[similar].insert_one({})
    database[name].insert_one({})
    database[similar].insert_one({})
    database[name].insert_one({})
    wait_until(lambda: len(seen) >= 2)
    assert seen == [(database.name, name, "insert")] * 2


def test_a_name_with_braces_gets_exactly_its_events_though_no_cursor_can_be_opened_on_it(
    database: Any, make: Make
) -> None:
    watcher = make()
    with pytest.raises(ConfigurationError, match=r"on\(collection="):
        watcher.watch("a{2}b")
    seen = places(watcher, "insert", collection="a{2}b")
    watcher.start()
    for name in ("aab", "a{2}b", "aab", "a{2}b"):
        database[name].insert_one({})
    wait_until(lambda: len(seen) >= 2)
    assert seen == [(database.name, "a{2}b", "insert")] * 2


def test_a_database_with_braces_is_watched_from_the_deployment_only(database: Any, make: Make) -> None:
    odd, similar = (database.client[f"{database.name[-12:]}{end}"] for end in ("a{2}b", "aab"))
    with pytest.raises(ConfigurationError, match=r"without a database, and on\(database="):
        make(database=odd.name)
    watcher = make(database=None)
    with pytest.raises(ConfigurationError, match=r"on\(collection="):
        watcher.watch("orders", odd.name)
    every, exact = (
        places(watcher, "insert", database=odd.name),
        places(watcher, "insert", database=odd.name, collection="orders"),
    )
    alone = make(database=None)
    only = places(alone, "insert", database=odd.name, collection="orders")
    try:
        watcher.start()
        alone.start()
        for each in (similar, odd, similar, odd):
            each.orders.insert_one({})
        wait_until(lambda: len(every) >= 2 and len(exact) >= 2 and len(only) >= 2)
        assert every == exact == only == [(odd.name, "orders", "insert")] * 2
    finally:
        for each in (odd, similar):
            database.client.drop_database(each.name)


@pytest.mark.parametrize("quirk", ["it's", "a+b", "a|b", "(a)", "^a", "ünï"])
def test_a_name_means_exactly_that_database(database: Any, make: Make, quirk: str) -> None:
    # Only the end is odd, so that the name stays this test's own.
    odd = database.client[f"{database.name[-12:]}{quirk}"]
    watcher = make(database=odd.name)
    seen, exact = places(watcher, "insert"), places(watcher, "insert", collection="orders")
    try:
        watcher.start()
        odd.orders.insert_one({})
        odd.customers.insert_one({})
        wait_until(lambda: len(seen) >= 2 and exact)
        assert seen == [(odd.name, "orders", "insert"), (odd.name, "customers", "insert")]
        assert exact == [(odd.name, "orders", "insert")]
        watcher.stop()
    finally:
        database.client.drop_database(odd.name)
