"""What the server refuses: it is said at once by whoever can mend it, and never asked for again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from conftest import wait_until
from guarded import Guarded, guarded_server
from listening import Commands
from programs import BOTH, Program
from pymongo import MongoClient
from watchers import messages

from rigatoni import ChangeStreamConfig, ConfigurationError, Hooks, MemoryStore, Watcher, gauge
from rigatoni.mongod import ReplicaSet

#: Seconds. Of three starts the best counts, because a machine may be busy.
AT_ONCE = 1.0
#: In place of a user: whoever asks a server that is no replica set.
STANDALONE = "of a standalone server"


class GuardedShop:
    """A server that asks for user and password, and a role that may watch the orders of the shop."""

    def __init__(self, guarded: Guarded) -> None:
        self.uri, self.uri_as, self.root = guarded.uri, guarded.uri_as, guarded.root
        self.shop = self.root.shop
        orders = {"resource": {"db": "shop", "collection": "orders"}, "actions": ["find", "changeStream"]}
        self.root.admin.command("createRole", "watching", privileges=[orders], roles=[])
        self.shop.create_collection("by_day", viewOn="orders")
        self.root.admin.command("createUser", "clerk", pwd="secret", roles=["watching"])

    def grant(self) -> None:
        self.root.admin.command("grantRolesToUser", "clerk", roles=["watching"])

    def revoke(self) -> None:
        self.root.admin.command("revokeRolesFromUser", "clerk", roles=["watching"])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedShop]:
    with guarded_server(tmp_path_factory.mktemp("key")) as guarded:
        yield GuardedShop(guarded)


@pytest.fixture(scope="module")
def standalone() -> Iterator[str]:
    with ReplicaSet(replicated=False) as server:
        yield server.uri


@pytest.fixture
def uri_of(guarded: GuardedShop, standalone: str) -> Callable[[str], str]:
    """Give a function that tells the URI by who asks."""
    uris = {"": guarded.uri, STANDALONE: standalone}
    return lambda user: uris[user] if user in uris else guarded.uri_as(user)


class Attempts(Hooks):
    def __init__(self) -> None:
        self.errors: list[BaseException] = []

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        self.errors.append(error)


REFUSED: dict[str, tuple[str, str, str, dict[str, Any], int, str]] = {
    "nobody": ("", "shop", "orders", {}, 13, "find and changeStream"),
    "another collection": ("clerk:secret", "shop", "customers", {}, 13, "find and changeStream"),
    "a wrong password": ("clerk:mistaken", "shop", "orders", {}, 18, "user name, password"),
    "an unknown user": ("butcher:secret", "shop", "orders", {}, 18, "user name, password"),
    "an unknown stage": ("clerk:secret", "shop", "orders", {"pipeline": [{"$wrong": 1}]}, 40324, "spelling"),
    "a forbidden stage": ("clerk:secret", "shop", "orders", {"pipeline": [{"$sort": {"a": 1}}]}, 20, "not allowed"),
    "a view": ("root:root", "shop", "by_day", {}, 166, "the collection beneath"),
    "the admin database": ("root:root", "admin", "orders", {}, 73, "admin, local, config"),
    "a system collection": ("root:root", "shop", "system.js", {}, 73, "admin, local, config"),
    "a standalone server": (STANDALONE, "shop", "orders", {}, 40573, "replica set"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_server_refuses_is_raised_by_start_at_once_with_the_mend(
    uri_of: Callable[[str], str], case: str
) -> None:
    user, database, collection, config, code, mend = REFUSED[case]
    attempts, took = Attempts(), []
    options = {"store": MemoryStore(), "config": ChangeStreamConfig(**config), "hooks": [attempts]}
    watcher = Watcher(uri_of(user), database, **options)
    watcher.watch(collection)
    watcher.on("insert", collection=collection)(lambda event: None)

    for _ in range(3):
        began = monotonic()
        with pytest.raises(ConfigurationError, match=mend) as raised:
            watcher.start()
        took.append(monotonic() - began)
        assert (raised.value.code, raised.value.is_retryable) == (code, False)
        assert (watcher.state, attempts.errors) == ("failed", [])
        assert "secret" not in str(raised.value) and "mistaken" not in str(raised.value)

    assert min(took) < AT_ONCE


PROGRAM = """
from rigatoni import ChangeStreamConfig, MemoryStore, Watcher

config = ChangeStreamConfig(**given["config"])
watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), config=config)


@watcher.on("insert", collection=given["collection"])
def handle(event):
    pass


watcher.run()
"""


@BOTH
@pytest.mark.parametrize(
    "case", ["a wrong password", "an unknown stage", "a view", "the admin database", "a standalone server"]
)
def test_a_program_that_is_refused_ends_with_an_error_code(
    uri_of: Callable[[str], str], tmp_path: Path, patched: bool, case: str
) -> None:
    user, database, collection, config, code, mend = REFUSED[case]
    given = {"uri": uri_of(user), "database": database, "collection": collection, "config": config}
    with Program(PROGRAM, tmp_path, patched=patched, **given) as program:
        assert program.end() == 1

        *_, error = program.complaints.splitlines()
        assert error.startswith("rigatoni.errors.ConfigurationError: ") and mend in error and f"code {code}" in error
        assert not any(password in program.complaints for password in ("secret", "mistaken", "root:root"))


def test_a_privilege_that_is_taken_away_ends_the_watcher_at_once_and_given_back_it_goes_on(
    guarded: GuardedShop,
) -> None:
    sent, attempts, store, seen = Commands(), Attempts(), MemoryStore(), []
    orders, config = guarded.shop.orders, ChangeStreamConfig(max_await_time=0.1)

    def watcher_of(client: Any) -> Watcher:
        watcher = Watcher(client, "shop", store=store, config=config, hooks=[attempts])
        watcher.on("insert", collection="orders")(lambda event: seen.append(event.document_key["_id"]))
        return watcher

    with MongoClient(guarded.uri_as("clerk:secret"), event_listeners=[sent]) as client:
        watcher = watcher_of(client)
        watcher.start()
        orders.insert_one({"_id": 1})
        wait_until(lambda: seen)
        guarded.revoke()
        try:
            orders.insert_one({"_id": 2})
            with pytest.raises(ConfigurationError, match="grant it find and changeStream") as raised:
                watcher.join(60)
        finally:
            guarded.grant()

    assert (raised.value.code, watcher.state, attempts.errors) == (13, "failed", [])
    # One getMore was refused, and nothing was asked for again.
    assert [failure for failure in sent.failures if failure[0] in ("aggregate", "getMore")] == [("getMore", 13)]
    assert len(sent.openings) == 1
    with watcher_of(guarded.uri_as("clerk:secret")):
        orders.insert_one({"_id": 3})
        wait_until(lambda: len(seen) == 3)
    assert seen == [1, 2, 3]


def test_who_may_not_read_the_oplog_is_told_that_earliest_cannot_work_and_is_not_refused_again_and_again(
    guarded: GuardedShop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gauge, "INTERVAL", 0.01)
    sent, seen, config = Commands(), list[Any](), ChangeStreamConfig(max_await_time=0.1)
    with MongoClient(guarded.uri_as("clerk:secret"), event_listeners=[sent]) as client:
        watcher = Watcher(client, "shop", store=MemoryStore(), config=config, on_history_lost="earliest")
        watcher.on("insert", collection="orders")(seen.append)
        with watcher:
            # Later than a third look of the gauge would be.
            getmores = len(sent.named("getMore"))
            wait_until(lambda: len(sent.named("getMore")) > getmores + 3)
            assert watcher.stats()["headroom"] is None
    warnings = messages(caplog, logging.WARNING)
    assert any("'earliest' cannot work" in told and "find on local.oplog.rs" in told for told in warnings)
    # At the start, and by the gauge.
    assert len(sent.named("find")) == 2
