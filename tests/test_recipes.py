"""The recipes do what they say, on a real server."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from conftest import wait_until
from documents import Page
from programs import run_program
from pymongo import MongoClient

from rigatoni import Watcher
from rigatoni.testing import make_event

RECIPES = Page("docs/recipes.rst")
URI = "mongodb://localhost:27017"
BILL = RECIPES.take("def bill(")
ADD_UP = RECIPES.take("def add_up(")
TWO = RECIPES.take("def send_mail(")
CACHE = RECIPES.take("def forget_all(")
SEARCH = RECIPES.take("fts5")
AUDIT = RECIPES.take("def keep_images(")
LIVE = RECIPES.take("text/event-stream")
CELERY = RECIPES.take("from celery")
DRAMATIQ = RECIPES.take("import dramatiq")

Names = dict[str, Any]


@pytest.fixture
def cook(shop: Any, mongodb_replica_set: Any, tmp_path: Path, monkeypatch: Any) -> Iterator[Callable[[str], Names]]:
    """Run a recipe as a module that is imported, in a folder of its own; close at the end what it has opened."""
    monkeypatch.chdir(tmp_path)
    cooked: list[Names] = []

    def cook(text: str) -> Names:
        assert URI in text
        names: Names = {"__name__": "recipe"}
        exec(compile(text.replace(URI, mongodb_replica_set.uri), "recipe", "exec"), names)
        cooked.append(names)
        return names

    yield cook
    for names in cooked:
        for value in names.values():
            if isinstance(value, Watcher):
                value.stop()
            elif hasattr(value, "find_one"):
                value.database.client.close()
            elif isinstance(value, MongoClient):
                value.close()


def test_a_bill_is_written_once(cook: Any, shop: Any) -> None:
    names, event = cook(BILL), make_event("insert", "orders", "shop", {"_id": 7})

    names["watcher"].dispatch(event)
    names["watcher"].dispatch(event)

    assert list(shop.client.accounts.bills.find()) == [{"_id": event.id, "order": 7}]


def test_a_sum_counts_each_event_once(cook: Any, shop: Any) -> None:
    names = cook(ADD_UP)
    events = [make_event("insert", "orders", "shop", {"customer": "Ada", "total": 5}) for _ in range(2)]

    for event in [*events, *events]:
        names["watcher"].dispatch(event)

    assert list(shop.client.accounts.totals.find()) == [{"_id": "Ada", "total": 10}]


def test_two_watchers_of_one_process_each_get_their_events(cook: Any, shop: Any, capsys: Any) -> None:
    names = cook(TWO)
    said: list[str] = []

    def has_said(*lines: str) -> bool:
        said.append(capsys.readouterr().out)
        return all(line in "".join(said) for line in lines)

    with names["mails"], names["prices"]:
        shop.orders.insert_one({"_id": 1})
        shop.products.insert_one({"_id": 2})
        shop.products.update_one({"_id": 2}, {"$set": {"price": 3}})
        wait_until(lambda: has_said("mail for 1", "forget 2"))


def test_a_cache_forgets_what_has_changed_and_all_of_it_after_a_gap(cook: Any, shop: Any) -> None:
    shop.products.insert_many([{"_id": 1, "price": 1}, {"_id": 2, "price": 1}])
    names = cook(CACHE)
    with names["watcher"]:
        assert names["product"](1)["price"] == names["product"](2)["price"] == 1
        shop.products.update_one({"_id": 1}, {"$set": {"price": 2}})
        wait_until(lambda: 1 not in names["cache"])
        assert names["product"](1)["price"] == 2
        assert 2 in names["cache"]
        names["Missed"]().gap("shop", None, None)
        assert names["cache"] == {}
        names["product"](2)
        shop.products.drop()
        wait_until(lambda: names["cache"] == {})


def found(name: str) -> list[str]:
    index = sqlite3.connect("search.db")
    try:
        return [key for (key,) in index.execute("select id from products where name match ?", [name])]
    except sqlite3.OperationalError:
        return []
    finally:
        index.close()


def test_an_index_has_what_was_there_and_follows(cook: Any, shop: Any) -> None:
    shop.products.insert_many([{"_id": 1, "name": "pasta"}, {"_id": 2, "name": "rice"}])
    names = cook(SEARCH)
    shop.products.update_one({"_id": 2}, {"$set": {"name": "red rice"}})
    assert names["watcher"].store.load("search") == {}
    names["write"](shop.products.find(), [])
    with names["watcher"]:
        shop.products.insert_one({"_id": 3, "name": "beans"})
        shop.products.delete_one({"_id": 1})
        shop.products.update_one({"_id": 2}, {"$set": {"name": "black rice"}})
        wait_until(lambda: found("black") == ["2"] and found("beans") == ["3"] and found("pasta") == [])
    assert found("rice") == ["2"] and found("red") == []


def test_an_audit_log_has_what_was_before_and_no_change_twice(cook: Any, shop: Any) -> None:
    shop.create_collection("accounts")
    names = cook(AUDIT)
    names["keep_images"]()
    log = shop.client.audit.accounts
    with names["watcher"]:
        shop.accounts.insert_one({"_id": 1, "owner": "Ada", "closed": False})
        shop.accounts.update_one({"_id": 1}, {"$set": {"owner": "Bob"}, "$unset": {"closed": ""}})
        shop.accounts.delete_one({"_id": 1})
        wait_until(lambda: log.count_documents({}) == 3)
    first, second, third = log.find().sort("_id")
    assert (first["what"], first["before"], first["after"]["owner"]) == ("insert", None, "Ada")
    assert (second["before"]["owner"], second["after"], second["removed"]) == ("Ada", {"owner": "Bob"}, ["closed"])
    assert (third["what"], third["before"]) == ("delete", {"_id": 1, "owner": "Bob"})
    again = make_event("delete", "accounts", "shop", before={"_id": 1})
    names["watcher"].dispatch(again)
    names["watcher"].dispatch(again)
    assert log.count_documents({}) == 4


def test_a_browser_is_told_of_an_order_and_leaves_when_it_does_not_keep_up(cook: Any, shop: Any) -> None:
    names = cook(LIVE)
    messages = names["app"].test_client().get("/orders").iter_encoded()
    assert next(messages) == b"retry: 1000\n\n"
    told: list[bytes] = []
    listener = Thread(target=lambda: told.append(next(messages)))
    listener.start()
    with names["watcher"]:
        shop.orders.insert_one({"item": "pasta"})
        listener.join(60)
        assert json.loads(told[0].removeprefix(b"data: ")) == {"item": "pasta"}
        for _ in range(101):
            names["watcher"].dispatch(make_event("insert", "orders", "shop", {"item": "rice"}))
    assert names["browsers"] == set()
    assert [*messages] == []


BY_CELERY = """
from threading import Event
from celery.contrib.testing.worker import start_worker
from pymongo import MongoClient

with start_worker(tasks, pool="solo", perform_ping_check=False), watcher:
    with MongoClient(given["uri"]) as client:
        client.shop.orders.insert_one({"item": "pasta"})
        while not said:
            time.sleep(0.01)
say(invoices=said)
"""

BY_DRAMATIQ = """
from pymongo import MongoClient

worker = dramatiq.Worker(broker, worker_timeout=100)
worker.start()
with watcher, MongoClient(given["uri"]) as client:
    client.shop.orders.insert_one({"item": "pasta"})
    while not said:
        time.sleep(0.01)
worker.stop()
say(invoices=said)
"""

STUB = """
import dramatiq
from dramatiq.brokers.stub import StubBroker

broker = StubBroker()
dramatiq.set_broker(broker)
"""

#: What the task prints, kept in a list.
PRINT = "said = []\n\ndef print(*words):\n    said.append(words)\n\n"


def test_a_task_of_celery_is_made_of_each_order(shop: Any, mongodb_replica_set: Any, tmp_path: Path) -> None:
    assert "amqp://localhost" in CELERY
    text = CELERY.replace("amqp://localhost", "memory://").replace(URI, mongodb_replica_set.uri)

    program = run_program(PRINT + text + BY_CELERY, tmp_path, uri=mongodb_replica_set.uri)

    assert program.said("invoices") == [[["invoice for", "pasta"]]]


def test_a_message_of_dramatiq_is_made_of_each_order(shop: Any, mongodb_replica_set: Any, tmp_path: Path) -> None:
    text = DRAMATIQ.replace(URI, mongodb_replica_set.uri)

    program = run_program(PRINT + STUB + text + BY_DRAMATIQ, tmp_path, uri=mongodb_replica_set.uri)

    assert program.said("invoices") == [[["invoice for", "pasta"]]]


def test_every_recipe_is_run() -> None:
    assert RECIPES.left == []
