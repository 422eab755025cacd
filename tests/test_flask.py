"""The Flask extension: one watcher for each application, with all handlers, which run inside it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from flask import Flask, current_app

from rigatoni import ChangeStreamConfig, ConfigurationError, Hooks, MemoryStore, RetryPolicy, Watcher
from rigatoni.contrib.flask import Rigatoni
from rigatoni.contrib.prometheus import PrometheusHooks
from rigatoni.testing import make_event

CLOSED = "mongodb://127.0.0.1:9/"
Make = Callable[..., Flask]


@pytest.fixture
def make(mongodb_replica_set: Any, database: Any) -> Iterator[Make]:
    """Make applications for one database; their watchers are stopped at the end."""
    made: list[Flask] = []

    def make_app(extension: Rigatoni | None = None, **settings: Any) -> Flask:
        app = Flask(f"app{len(made)}")
        app.config.update(RIGATONI_URI=mongodb_replica_set.uri, RIGATONI_DATABASE=database.name)
        app.config.update({"RIGATONI_STORE": MemoryStore(), **settings})
        (extension or Rigatoni()).init_app(app)
        made.append(app)
        return app

    yield make_app
    for app in made:
        watcher_of(app).stop(timeout=0.1)


def watcher_of(app: Flask) -> Watcher:
    with app.app_context():
        watcher: Watcher = app.extensions["rigatoni"].watcher
    return watcher


def config_of(watcher: Watcher) -> ChangeStreamConfig:
    return watcher._settings.config


def offline(**settings: Any) -> Flask:
    app = Flask("offline")
    app.config.update({"RIGATONI_URI": CLOSED, "RIGATONI_STORE": MemoryStore(), **settings})
    return app


# -- handlers


def test_handlers_run_inside_the_application_one_by_one_in_batches_and_acknowledging_themselves(
    make: Make, database: Any
) -> None:
    rigatoni, seen = Rigatoni(), []

    @rigatoni.on("insert", collection="orders")
    def note(event: Any) -> None:
        seen.append(("one", current_app.name, event.document_key["_id"]))

    @rigatoni.on_batch("insert", collection="clicks", max_wait=0.01)
    def count(events: Any) -> None:
        seen.append(("batch", current_app.name, len(events)))

    @rigatoni.on("insert", collection="uploads", ack="manual")
    def acknowledge(event: Any) -> None:
        event.ack()
        seen.append(("manual", current_app.name, event.document_key["_id"]))

    make(rigatoni)
    assert rigatoni.start() == "running"
    for collection in ("orders", "clicks", "uploads"):
        database[collection].insert_one({"_id": 1})
    wait_until(lambda: len(seen) == 3)
    wait_until(lambda: rigatoni.watcher.stats()["in_flight"] == 0)

    assert sorted(seen) == [("batch", "app0", 1), ("manual", "app0", 1), ("one", "app0", 1)]
    assert rigatoni.stop() and rigatoni.watcher.state == "stopped"


def test_each_application_has_a_watcher_of_its_own_with_every_handler_before_and_after_init_app() -> None:
    rigatoni, seen = Rigatoni(), []

    @rigatoni.on("insert")
    def before(event: Any) -> None:
        seen.append(("before", current_app.name))

    apps = [Flask("first"), Flask("second")]
    for app in apps:
        app.config.update(RIGATONI_URI=CLOSED, RIGATONI_NAME=app.name)
        rigatoni.init_app(app)

    @rigatoni.on("insert")
    def after(event: Any) -> None:
        seen.append(("after", current_app.name))

    for app in apps:
        assert app.extensions["rigatoni"] is rigatoni
        watcher_of(app).dispatch(make_event("insert", "orders"))
    assert [watcher_of(app).name for app in apps] == ["first", "second"]
    assert seen == [("before", "first"), ("after", "first"), ("before", "second"), ("after", "second")]
    with pytest.raises(ConfigurationError, match="with app.app_context"):
        print(rigatoni.watcher)


def test_a_function_is_returned_unchanged_and_its_handler_has_its_name() -> None:
    class Parcel:
        def __call__(self, event: Any) -> None:
            """Take an event."""

    def ship(event: Any, how: str = "") -> None:
        """Take an event."""

    for function in (ship, partial(ship, how="air"), Parcel()):
        app = offline()
        one = Rigatoni(app)
        assert one.on("insert")(function) is function
        (handler,) = one.watcher._handlers
        plain = Watcher(CLOSED)
        plain.on("insert")(function)
        assert handler.name == plain._handlers[0].name
        one.watcher.dispatch(make_event("insert", "orders"), handler=handler.name)

    app = offline()
    one = Rigatoni(app)
    one.on("insert")(one.on("delete")(ship))
    assert len({id(handler.function) for handler in one.watcher._handlers}) == 1


@pytest.mark.parametrize("bound", [True, False])
def test_a_mistake_in_a_registration_is_refused_there_and_then(bound: bool) -> None:
    rigatoni = Rigatoni(offline() if bound else None)

    def handle(event: Any) -> None:
        """A handler like any other."""

    async def wait(event: Any) -> None:
        """A handler that would never run."""

    rigatoni.on("insert")(handle)
    with pytest.raises(ConfigurationError, match="did you mean 'insert'"):
        rigatoni.on("inserted")
    with pytest.raises(ConfigurationError, match="unknown option 'colection'"):
        rigatoni.on("insert", colection="orders")  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="registered twice"):
        rigatoni.on("insert")(handle)
    with pytest.raises(ConfigurationError, match="async"):
        rigatoni.on("insert")(wait)
    with pytest.raises(ConfigurationError, match="brackets"):
        rigatoni.on(handle)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="no option of ChangeStreamConfig"):
        rigatoni.watch("orders", "shop", colation={})
    rigatoni.on("delete")(handle)


def test_watch_gives_a_collection_a_stream_of_its_own(make: Make, database: Any) -> None:
    rigatoni = Rigatoni()
    rigatoni.watch("orders", full_document="updateLookup")
    rigatoni.on("insert")(lambda event: None)
    make(rigatoni)

    rigatoni.start()

    assert rigatoni.watcher.stats()["streams"].keys() == {database.name, f"{database.name}.orders"}


def test_a_registration_after_the_start_is_refused(make: Make) -> None:
    rigatoni = Rigatoni()
    rigatoni.on("insert")(lambda event: None)
    make(rigatoni)
    rigatoni.start()
    with pytest.raises(ConfigurationError, match=r"registered after start\(\)"):
        rigatoni.on("insert")(print)


def test_an_application_that_nobody_needs_any_more_is_forgotten_with_its_watcher() -> None:
    rigatoni = Rigatoni()
    rigatoni.on("insert")(lambda event: None)
    app = offline()
    rigatoni.init_app(app)
    gone = weakref.ref(watcher_of(app))

    del app
    gc.collect()

    assert gone() is None
    with pytest.raises(ConfigurationError, match="init_app"):
        print(rigatoni.watcher)


# -- settings


def test_every_option_comes_from_the_configuration() -> None:
    hooks, store = Hooks(), MemoryStore()
    app = offline(
        RIGATONI_DATABASE="shop",
        RIGATONI_NAME="search",
        RIGATONI_STORE=store,
        RIGATONI_CONCURRENCY="4",
        RIGATONI_SAVE_INTERVAL=0.5,
        RIGATONI_HOOKS=[hooks],
        RIGATONI_BATCH_SIZE=50,
        RIGATONI_RETRY_MAX_ATTEMPTS="7",
    )
    settings = Rigatoni(app).watcher._settings

    assert (settings.database, settings.name, settings.store) == ("shop", "search", store)
    assert (settings.concurrency, settings.save_interval) == (4, 0.5)
    assert settings.config == ChangeStreamConfig(batch_size=50, max_reconnect_attempts=0)
    assert settings.retry == RetryPolicy(max_attempts=7)
    assert settings.hooks._hooks == (hooks,)


@pytest.mark.parametrize(("setting", "attempts"), [((), 0), (("",), 0), (("7",), 7), ((5,), 5)])
def test_a_watcher_of_the_extension_reconnects_for_ever_unless_told(setting: tuple[Any, ...], attempts: int) -> None:
    settings = dict(zip(["RIGATONI_MAX_RECONNECT_ATTEMPTS"], setting, strict=False))
    assert config_of(Rigatoni(offline(**settings)).watcher).max_reconnect_attempts == attempts


def test_a_watcher_that_is_passed_in_keeps_its_own_settings_and_serves_one_application() -> None:
    watcher, app = Watcher(CLOSED, "shop", store=MemoryStore()), offline()
    rigatoni = Rigatoni(app, watcher)

    assert rigatoni.watcher is watcher
    assert config_of(watcher).max_reconnect_attempts == 5
    with pytest.raises(ConfigurationError, match="serves another application"):
        rigatoni.init_app(offline())
    with pytest.raises(ConfigurationError, match="'shop'"):
        rigatoni.on("insert", database="other")(lambda event: None)


def test_a_wrong_setting_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigurationError, match="^RIGATONI_CONCURRENCY must be a whole number from 1$"):
        Rigatoni(offline(RIGATONI_CONCURRENCY="s3cret"))
    with pytest.raises(ConfigurationError, match="^RIGATONI_URI: a URI is text that begins with"):
        Rigatoni(offline(RIGATONI_URI="s3cret"))


def test_an_application_gets_one_watcher() -> None:
    app = offline()
    Rigatoni(app)
    with pytest.raises(ConfigurationError, match="has a watcher already"):
        Rigatoni(app)


# -- the page


def test_there_is_no_page_unless_it_is_asked_for() -> None:
    app = offline()
    Rigatoni(app)
    assert [rule.rule for rule in app.url_map.iter_rules()] == ["/static/<path:filename>"]


def test_a_page_needs_a_word_on_who_may_see_it_and_the_other_way_round() -> None:
    with pytest.raises(ConfigurationError, match="public"):
        Rigatoni(offline(), page="/rigatoni")
    with pytest.raises(ConfigurationError, match="page="):
        Rigatoni(offline(), authorize="public")


def test_the_page_is_below_its_prefix_for_whom_authorize_lets_in(tmp_path: Path) -> None:
    app = offline(RIGATONI_STORE=str(tmp_path / "tokens.db"))
    Rigatoni(app, page="/rigatoni", authorize=lambda request: request.headers.get("X-Who") == "operator")
    client = app.test_client()

    assert client.get("/rigatoni/").status_code == 403
    assert client.get("/rigatoni/", headers={"X-Who": "operator"}).status_code == 200
    assert client.get("/rigatoni/health", headers={"X-Who": "operator"}).status_code == 503


def test_with_a_page_the_watcher_counts_for_its_metrics_unless_it_does_already() -> None:
    mine, plain = PrometheusHooks(buckets=(1.0,)), Hooks()
    apps = [offline(), offline(RIGATONI_HOOKS=[plain]), offline(RIGATONI_HOOKS=[mine])]
    found = [Rigatoni(app, page="/rigatoni", authorize="public").watcher._settings.hooks._hooks for app in apps]

    assert [[type(hook) for hook in hooks] for hooks in found] == [
        [PrometheusHooks],
        [Hooks, PrometheusHooks],
        [PrometheusHooks],
    ]
    assert found[2] == (mine,)
    with pytest.raises(ConfigurationError, match="^RIGATONI_HOOKS"):
        Rigatoni(offline(RIGATONI_HOOKS=plain), page="/rigatoni", authorize="public")


# -- when it starts


def test_requests_of_the_test_client_start_nothing_and_those_of_the_development_server_do(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rigatoni.contrib.flask.binding.FIRST_REQUEST", 60.0)
    rigatoni = Rigatoni()
    rigatoni.on("insert")(lambda event: None)
    app = make(rigatoni)
    client, served = app.test_client(), {"SERVER_SOFTWARE": "Werkzeug/3.1.9"}

    client.get("/")
    client.get("/", environ_base={"SERVER_SOFTWARE": "gunicorn/22.0"})
    client.get("/", environ_base=served, multiprocess=True)
    assert rigatoni.watcher.state == "created"

    client.get("/", environ_base=served)
    assert rigatoni.watcher.state == "running"
    client.get("/", environ_base=served)
    assert rigatoni.start() == "running"
    rigatoni.stop()
    # Who has stopped it wants it so.
    client.get("/", environ_base=served)
    assert rigatoni.watcher.state == "stopped"
    assert rigatoni.start() == "running"


def test_a_watcher_that_cannot_start_is_logged_and_fails_no_request(make: Make, caplog: Any) -> None:
    app = make()
    assert app.test_client().get("/", environ_base={"SERVER_SOFTWARE": "Werkzeug/3.1.9"}).status_code == 404
    assert "does not start: there is no handler" in caplog.text


def test_without_a_server_the_first_request_is_answered_and_the_watcher_keeps_trying() -> None:
    rigatoni = Rigatoni()
    rigatoni.on("insert")(lambda event: None)
    app = offline(RIGATONI_URI="mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100")
    rigatoni.init_app(app)

    app.test_client().get("/", environ_base={"SERVER_SOFTWARE": "Werkzeug/3.1.9"})

    assert rigatoni.watcher.state == "starting"
    assert rigatoni.start() == "starting"
    assert rigatoni.stop()
