"""A collector reads the rows when it is asked, in registries and over HTTP."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from conftest import wait_until
from exposed import OPENMETRICS, Exposed
from programs import BOTH, Program
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from watchers import Make, collecting, messages, watchers

from rigatoni import ConfigurationError, MemoryStore, ResumeTokenPersistenceError, SQLiteStore
from rigatoni.contrib.prometheus import PrometheusHooks, StatusCollector

SERVING = """
from prometheus_client import REGISTRY, start_http_server
from rigatoni import Watcher
from rigatoni.contrib.prometheus import PrometheusHooks, StatusCollector

watcher = Watcher(given["uri"], given["database"], store=given["store"], hooks=[PrometheusHooks()])
watcher.on("insert")(lambda event: None)
REGISTRY.register(StatusCollector(watcher))
server, thread = start_http_server(0, addr="127.0.0.1")
say(port=server.server_port)
watcher.run()
"""


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"hooks": [PrometheusHooks()], **options})


def read(collector: StatusCollector) -> Exposed:
    registry = CollectorRegistry()
    registry.register(collector)
    return Exposed(generate_latest(registry))


class Broken(MemoryStore):
    """Cannot be read."""

    def status(self, name: str) -> Any:
        raise ResumeTokenPersistenceError("the disk is gone")


def test_several_watchers_are_told_apart(database: Any, make: Make, store_path: str) -> None:
    first, second = make(name="first"), make(name="second", store=store_path)
    seen = [*map(collecting, (first, second))]
    first.start()
    database.orders.insert_one({})
    wait_until(lambda: seen[0])
    collector = StatusCollector(first, (SQLiteStore(store_path), "second"))
    wait_until(lambda: read(collector).values("rigatoni_events_processed_total") == [1])
    assert read(collector).value("rigatoni_up", watcher="second") == 0
    second.start()
    wait_until(lambda: read(collector).values("rigatoni_up") == [1, 1])
    found = read(collector)
    # Only of a watcher in this process it is known whether it stands by.
    assert found.labels("rigatoni_standby") == [{"watcher": "first"}]


def test_a_standby_says_so_and_gives_the_numbers_of_the_active_one(
    database: Any, make: Make, mongodb_replica_set: Any, store_path: str, tmp_path: Path
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    with Program(SERVING, tmp_path, **given) as active:
        port = active.wait_said("port")
        active.wait_for(lambda: fetched(port).value("rigatoni_up") == 1)
        standby = make(store=store_path)
        collecting(standby)
        assert standby.start() == "standby"
        database.orders.insert_one({})
        collector = StatusCollector(standby)
        active.wait_for(lambda: read(collector).values("rigatoni_events_processed_total") == [1])
        assert read(collector).value("rigatoni_standby") == 1
        assert read(collector).labels("rigatoni_active_info")[0]["pid"] == str(active.pid)
        assert fetched(port).value("rigatoni_standby") == 0
        active.kill()
        wait_until(lambda: standby.state == "running")
        assert read(collector).value("rigatoni_standby") == 0


def fetched(port: int, accept: str = "text/plain") -> Exposed:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as response:
        return Exposed(response.read(), response.headers["Content-Type"])


@BOTH
def test_the_server_of_prometheus_client_serves_while_the_watcher_runs(
    database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    with Program(SERVING, tmp_path, patched=patched, **given) as program:
        port = program.wait_said("port")
        program.wait_for(lambda: fetched(port).value("rigatoni_up") == 1)
        database.orders.insert_many([{}, {}])
        for accept in ("text/plain", OPENMETRICS):
            program.wait_for(
                lambda accept=accept: fetched(port, accept).values("rigatoni_events_processed_total") == [2]
            )
        # Beside what the process tells of itself.
        assert fetched(port).value("process_start_time_seconds") > 0


def test_it_can_be_mounted_as_an_application(database: Any, make: Make) -> None:
    watcher = make()
    collecting(watcher)
    watcher.start()
    wait_until(lambda: watcher.store.status("default")["state"] == "running")
    registry, environment, said = CollectorRegistry(), dict[str, Any](), []
    registry.register(StatusCollector(watcher))
    setup_testing_defaults(environment)
    body = b"".join(make_wsgi_app(registry)(environment, lambda status, headers: said.append(status)))
    assert said == ["200 OK"] and Exposed(body).value("rigatoni_pipeline_status") == 1


def test_to_register_it_reads_no_store_and_a_second_one_is_refused() -> None:
    registry = CollectorRegistry(auto_describe=True)
    registry.register(StatusCollector((Broken(), "parcels")))
    with pytest.raises(ValueError, match="rigatoni_up"):
        registry.register(StatusCollector((MemoryStore(), "others")))


def test_a_store_that_cannot_be_read_is_logged_and_takes_no_other_metric_away(caplog: Any) -> None:
    found = read(StatusCollector((Broken(), "broken"), (MemoryStore(), "new")))
    assert found.values("rigatoni_up") == [0, 0]
    assert messages(caplog) == ["the status row of 'broken' cannot be read: the disk is gone"]


@pytest.mark.parametrize(
    "watchers", [[], [None], [MemoryStore()], ["parcels"], [("parcels", MemoryStore())], [(MemoryStore(),)]], ids=repr
)
def test_what_is_no_watcher_is_refused(watchers: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"pairs? \(store, name\)"):
        StatusCollector(*watchers)


def test_two_of_one_name_are_refused(make: Make) -> None:
    with pytest.raises(ConfigurationError, match="'default'"):
        StatusCollector(make(), (MemoryStore(), "default"))
