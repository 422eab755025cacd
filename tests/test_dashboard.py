"""The dashboard and the alerts in ``examples/`` ask for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from exposed import Exposed, exposed
from prometheus_client import CollectorRegistry, generate_latest
from pymongo import MongoClient
from watchers import collecting, watchers

from rigatoni import RetryPolicy
from rigatoni.contrib.prometheus import PrometheusHooks, StatusCollector

EXAMPLES = Path(__file__).parents[1] / "examples"
BOARD = json.loads((EXAMPLES / "grafana-dashboard.json").read_text("utf-8"))
ALERTS = (EXAMPLES / "prometheus-alerts.yml").read_text("utf-8")


def queries() -> Iterator[str]:
    for panel in BOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (annotation["expr"] for annotation in BOARD["annotations"]["list"])
    yield from (each["definition"] for each in BOARD["templating"]["list"] if each["type"] == "query")
    yield from re.findall(r"^ *expr: (.+)$", ALERTS, re.M)


@pytest.fixture(scope="module")
def told(mongodb_replica_set: Any) -> Iterator[Exposed]:
    """What a watcher tells that has seen everything."""
    with watchers(mongodb_replica_set.uri, "dashboard") as make, MongoClient(mongodb_replica_set.uri) as client:
        watcher = make(hooks=[PrometheusHooks()], retry=RetryPolicy(max_attempts=1))
        collecting(watcher, "insert")

        @watcher.on("delete")
        def fail(event: Any) -> None:
            raise ValueError("no")

        watcher.start()
        client.dashboard.orders.insert_one({})
        client.dashboard.orders.delete_one({})
        wait_until(lambda: exposed(watcher).values("rigatoni_dead_letters_total") == [1])
        wait_until(lambda: exposed(watcher).values("rigatoni_oplog_headroom_seconds"))
        registry = CollectorRegistry()
        registry.register(StatusCollector(watcher))
        yield Exposed(generate_latest(registry))
        client.drop_database("dashboard")


@pytest.mark.parametrize("query", [*queries()])
def test_every_query_asks_for_metrics_that_there_are(told: Exposed, query: str) -> None:
    names = re.findall(r"\brigatoni_\w+", query)
    assert names
    grouped = {label for labels in re.findall(r"\bby \(([^)]*)\)", query) for label in labels.split(", ")}
    for name in names:
        (labels, *_) = told.labels(name)
        assert grouped <= labels.keys(), f"{name} has no {grouped - labels.keys()}"


def test_every_metric_is_on_the_dashboard_or_needs_no_place(told: Exposed) -> None:
    asked = " ".join(queries())
    left_out = {name for name in told.families if name not in asked}
    assert left_out == {"rigatoni_active_info", "rigatoni_standby", "rigatoni_status_timestamp_seconds"}


def test_the_legends_name_labels_that_the_queries_keep() -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            kept = set(re.findall(r"\w+", re.findall(r"\bby \(([^)]*)\)", target["expr"])[0]))
            assert {*re.findall(r"{{(\w+)}}", target["legendFormat"])} <= kept, panel["title"]


def test_it_has_what_grafana_needs() -> None:
    assert BOARD.keys() >= {"uid", "title", "schemaVersion", "panels", "templating", "time", "refresh"}
    # Without an id, so that it can be imported into any Grafana.
    assert "id" not in BOARD and BOARD["uid"]
    panels = BOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {each["name"] for each in BOARD["templating"]["list"]}
    assert variables == {"datasource", "watcher"}
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries") and panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["refId"] and target["expr"] for target in panel["targets"])
        assert panel["fieldConfig"]["defaults"]["unit"]
        used = {*re.findall(r"\$(\w+)", json.dumps(panel["targets"]))}
        assert used <= variables | {"__rate_interval"}


def test_no_panel_covers_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
