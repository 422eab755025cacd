"""What is counted for the status row stays small, whatever comes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rigatoni import ChangeEvent, ConfigurationError, Hooks
from rigatoni.contrib.prometheus import PrometheusHooks

ERROR = ValueError("broken")


def event(collection: str | None = "orders", operation: str = "insert") -> ChangeEvent:
    namespace = {"db": "shop"} if collection is None else {"db": "shop", "coll": collection}
    return ChangeEvent({"operationType": operation, "ns": namespace})


def metrics(hooks: Hooks) -> Any:
    """Give what comes out of a store again."""
    return json.loads(json.dumps(hooks.status()))["metrics"]


def test_it_begins_with_nothing() -> None:
    found = metrics(PrometheusHooks())

    assert {name: found[name] for name in found if name != "buckets"} == {
        "handled": [],
        "failed": [],
        "sizes": {},
        "bytes": {},
        "saved": {},
    }


def test_seconds_fall_into_the_bucket_that_they_are_not_above() -> None:
    hooks = PrometheusHooks(buckets=[0.5, 1])
    for seconds in (0.0, 0.5, 0.75, 1.0, 1.5):
        hooks.handled(event(), seconds)

    ((*key, series),) = metrics(hooks)["handled"]
    assert key == ["shop", "orders", "insert"]
    assert series == [3.75, 2, 2, 1]


def test_more_collections_than_are_told_apart_are_counted_together() -> None:
    hooks = PrometheusHooks(most=2)
    for number in range(10):
        hooks.handled(event(f"orders{number}"), 1.0)
        hooks.failed(event(f"orders{number}"), ERROR, 1)
    hooks.handled(event("orders1"), 1.0)

    found = metrics(hooks)
    handled = [(collection, sum(series[1:])) for _, collection, _, series in found["handled"]]
    assert handled == [("orders0", 1), ("orders1", 2), ("$other", 8)]
    assert [each[1:] for each in found["failed"]][-1] == ["$other", "$other", 8]


def test_a_row_has_a_bound_whatever_the_collections_are_called() -> None:
    hooks = PrometheusHooks()
    for number in range(5000):
        hooks.handled(event(f"orders{number}", "update"), 0.01)
        hooks.failed(event(f"orders{number}"), type(f"Error{number}", (Exception,), {})(), 1)

    found = metrics(hooks)
    assert len(found["handled"]) == len(found["failed"]) == 101


def test_events_without_a_collection_are_counted() -> None:
    hooks = PrometheusHooks()
    hooks.handled(event(None, "dropDatabase"), 0.1)
    hooks.handled(ChangeEvent({}), 0.1)

    assert [each[:3] for each in metrics(hooks)["handled"]] == [["shop", None, "dropDatabase"], [None, None, ""]]


def test_a_position_without_a_token_is_no_news() -> None:
    hooks = PrometheusHooks()
    hooks.saved("shop", None)

    assert metrics(hooks)["saved"] == {}


@pytest.mark.parametrize(
    "buckets", [[], [1, 1], [2, 1], ["1"], [True, 2], [float("inf")], [float("nan")], 5, None], ids=repr
)
def test_buckets_that_are_none_are_refused(buckets: Any) -> None:
    with pytest.raises(ConfigurationError, match="ascending order"):
        PrometheusHooks(buckets=buckets)


@pytest.mark.parametrize("most", [0, -1, 1.5, "5", None, True], ids=repr)
def test_a_number_of_label_sets_that_is_none_is_refused(most: Any) -> None:
    with pytest.raises(ConfigurationError, match="from 1"):
        PrometheusHooks(most=most)
