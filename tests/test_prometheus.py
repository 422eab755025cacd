"""Metrics of real watchers, as Prometheus reads them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from exposed import OPENMETRICS, Exposed, exposed
from programs import Program
from watchers import Make, collecting, failing, watchers

from rigatoni import ChangeStreamConfig, RetryPolicy, SQLiteStore, StreamError
from rigatoni.contrib.prometheus import PrometheusHooks, exposition

ACTIVE = """
from rigatoni import Watcher
from rigatoni.contrib.prometheus import PrometheusHooks

watcher = Watcher(given["uri"], given["database"], store=given["store"], hooks=[PrometheusHooks()])
watcher.on()(lambda event: None)
say(state=watcher.start())
watcher.join()
"""
#: What only the row of a process that lives can tell.
MOMENTARY = [
    "rigatoni_active_info",
    "rigatoni_start_timestamp_seconds",
    "rigatoni_stream_active",
    "rigatoni_stream_catching_up",
    "rigatoni_change_stream_lag_seconds",
    "rigatoni_oplog_headroom_seconds",
    "rigatoni_in_flight",
]


@pytest.fixture
def make(database: Any, mongodb_replica_set: Any) -> Any:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        yield lambda **options: make(**{"hooks": [PrometheusHooks()], **options})


@pytest.fixture
def active(database: Any, mongodb_replica_set: Any, store_path: str, tmp_path: Path) -> Any:
    """Another process that is the active one."""
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "store": store_path}
    with Program(ACTIVE, tmp_path, **given) as program:
        program.wait_said("state")
        yield program


def test_events_are_counted_by_collection_and_operation(database: Any, make: Make) -> None:
    watcher = make()
    collecting(watcher)
    collecting(watcher, "insert", collection="orders")
    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(3)])
    database.orders.update_one({"_id": 1}, {"$set": {"a": 1}})
    database.parcels.insert_one({"_id": 1})
    wait_until(lambda: sum(exposed(watcher).values("rigatoni_events_processed_total")) == 8)
    found = exposed(watcher)
    where = {"watcher": "default", "database": database.name}

    def processed(**labels: str) -> float:
        return found.value("rigatoni_events_processed_total", **where, **labels)

    # Each of the two handlers counts.
    assert processed(collection="orders", operation="insert") == 6
    assert processed(collection="orders", operation="update") == 1
    assert processed(collection="parcels", operation="insert") == 1
    assert found.value("rigatoni_events_received_total", stream=database.name) == 5
    assert found.families["rigatoni_events_processed"] == "counter"


def test_the_seconds_of_handlers_and_the_sizes_of_replies_are_histograms(database: Any, make: Make) -> None:
    watcher = make(hooks=[PrometheusHooks(buckets=[0.02, 10])])

    @watcher.on("insert")
    def handle(event: Any) -> None:
        if event.document_key["_id"] == 0:
            # Falls into the second bucket, however slow the machine is.
            time.sleep(0.03)

    watcher.start()
    database.orders.insert_many([{"_id": number} for number in range(4)])
    wait_until(lambda: exposed(watcher).values("rigatoni_handler_seconds_count") == [4])
    found = exposed(watcher)
    assert found.families["rigatoni_handler_seconds"] == found.families["rigatoni_batch_size"] == "histogram"
    first, second, all_of_them = found.values("rigatoni_handler_seconds_bucket", collection="orders")
    assert first < 4 and first <= second <= all_of_them == 4
    assert found.value("rigatoni_handler_seconds_sum") >= 0.03
    assert found.value("rigatoni_batch_size_sum", stream=database.name) == 4
    assert found.values("rigatoni_batch_size_bucket")[-1] == found.value("rigatoni_batch_size_count") >= 1
    assert found.value("rigatoni_received_bytes_total") > 100


def test_failures_retries_and_letters_are_counted(database: Any, make: Make) -> None:
    watcher = make(retry=RetryPolicy(max_attempts=3, initial_backoff=0.001))

    @watcher.on("insert")
    def fail(event: Any) -> None:
        raise KeyError("no such parcel")

    watcher.start()
    database.orders.insert_one({})
    wait_until(lambda: exposed(watcher).values("rigatoni_dead_letters_total") == [1])
    found = exposed(watcher)
    assert found.value("rigatoni_events_failed_total", collection="orders", error_type="KeyError") == 3
    assert found.value("rigatoni_retries_total", stream=database.name) == 2
    assert found.values("rigatoni_events_processed_total") == []


def test_a_watcher_that_runs_is_up_and_says_how_far_it_is(database: Any, make: Make) -> None:
    watcher = make()
    collecting(watcher)
    watcher.start()
    wait_until(lambda: exposed(watcher).values("rigatoni_oplog_headroom_seconds"))
    wait_until(lambda: exposed(watcher).value("rigatoni_change_stream_lag_seconds") == 0)
    found, row = exposed(watcher), watcher.store.status("default")
    assert (found.value("rigatoni_up"), found.value("rigatoni_pipeline_status")) == (1, 1)
    assert found.labels("rigatoni_active_info") == [
        {"watcher": "default", "host": row["host"], "pid": str(row["pid"])},
    ]
    assert found.value("rigatoni_stream_active", stream=database.name) == 1
    assert found.value("rigatoni_status_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    saved = watcher.store.load("default")[database.name].cluster_time.time
    assert found.value("rigatoni_saved_position_timestamp_seconds") <= saved


def test_what_is_unknown_is_absent(make: Make) -> None:
    away = "mongodb://127.0.0.1:9/?serverSelectionTimeoutMS=100"
    watcher = make(client=away, config=ChangeStreamConfig(max_reconnect_attempts=1))
    collecting(watcher)
    with pytest.raises(StreamError):
        watcher.start()
    row = watcher.store.status("default")
    starting = Exposed(*exposition("default", {**row, "state": "starting"}))
    assert (starting.value("rigatoni_up"), starting.value("rigatoni_pipeline_status")) == (0, 0)
    assert starting.values("rigatoni_change_stream_lag_seconds") == []
    assert exposed(watcher).value("rigatoni_pipeline_status") == 2


def test_without_a_row_it_is_not_up() -> None:
    found = Exposed(*exposition("default", None))

    assert (found.value("rigatoni_up"), found.value("rigatoni_pipeline_status")) == (0, 0)
    assert len(found.samples) == 2


@pytest.mark.parametrize("fails", [False, True], ids=["stopped", "failed"])
def test_the_row_of_an_end_keeps_counts_and_drops_what_was_of_the_moment(
    database: Any, make: Make, fails: bool
) -> None:
    watcher = make(retry=RetryPolicy(max_attempts=1))
    seen = collecting(watcher, "delete") if not fails else failing(watcher)
    watcher.start()
    database.orders.insert_one({"_id": 1})
    database.orders.delete_one({"_id": 1})
    wait_until(lambda: seen if not fails else watcher.error)
    wait_until(lambda: watcher.stop())
    found = exposed(watcher)
    assert (found.value("rigatoni_up"), found.value("rigatoni_pipeline_status")) == (0, 2 if fails else 0)
    assert found.value("rigatoni_events_received_total") >= 1
    assert [name for name in MOMENTARY if found.values(name)] == []


def test_the_row_of_a_process_that_was_killed_is_not_up(database: Any, active: Program, store_path: str) -> None:
    store = SQLiteStore(store_path)
    database.orders.insert_one({})

    def read(now: float | None = None) -> Exposed:
        return Exposed(*exposition("default", store.status("default"), now=now))

    active.wait_for(lambda: read().values("rigatoni_events_processed_total") == [1])
    active.wait_for(lambda: read().values("rigatoni_oplog_headroom_seconds"))
    assert [name for name in MOMENTARY if not read().values(name)] == []
    active.kill()
    assert read().value("rigatoni_up") == 1
    dead = read(now=time.time() + 11)
    assert (dead.value("rigatoni_up"), dead.value("rigatoni_pipeline_status")) == (0, 2)
    assert dead.value("rigatoni_events_processed_total") == 1
    assert [name for name in MOMENTARY if dead.values(name)] == []
    assert dead.value("rigatoni_saved_position_timestamp_seconds") > 0
    store.close()


def test_names_that_are_not_plain_come_back_as_they_are(database: Any, make: Make) -> None:
    names = ['quo"te', "back\\slash", "new\nline", "brace}{", "größe", "<b>", "a=b,c"]
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    for name in names:
        database[name].insert_one({})
    wait_until(lambda: len(seen) == len(names))
    wait_until(lambda: len(exposed(watcher).values("rigatoni_events_processed_total")) == len(names))
    for accept in ("", OPENMETRICS):
        found = exposed(watcher, accept=accept)
        assert {each["collection"] for each in found.labels("rigatoni_events_processed_total")} == {*names}


def test_openmetrics_is_given_to_who_asks_for_it(database: Any, make: Make) -> None:
    watcher = make()
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_one({})
    wait_until(lambda: seen and exposed(watcher).values("rigatoni_events_processed_total"))
    text, content_type = exposition("default", watcher.store.status("default"), OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    assert Exposed(text, content_type).value("rigatoni_events_processed_total") == 1
    assert exposition("default", None)[1].startswith("text/plain; version=0.0.4")


def test_without_hooks_what_is_in_the_row_anyway_is_told(database: Any, make: Make) -> None:
    watcher = make(hooks=[])
    seen = collecting(watcher, "insert")
    watcher.start()
    database.orders.insert_one({})
    wait_until(lambda: seen and exposed(watcher).value("rigatoni_events_received_total") == 1)
    found = exposed(watcher)
    assert found.value("rigatoni_up") == 1
    assert found.values("rigatoni_events_processed_total") == []


def test_a_take_over_begins_its_counts_at_nothing(database: Any, make: Make, active: Program, store_path: str) -> None:
    store = SQLiteStore(store_path)
    database.orders.insert_many([{}, {}])

    def count() -> list[float]:
        return Exposed(*exposition("default", store.status("default"))).values("rigatoni_events_processed_total")

    active.wait_for(lambda: count() == [2])
    standby = make(store=store_path)
    seen = collecting(standby, "insert")
    assert standby.start() == "standby"
    active.kill()
    wait_until(lambda: standby.state == "running")
    database.orders.insert_one({})
    wait_until(lambda: seen)
    wait_until(lambda: count() == [1])
    assert exposed(standby).value("rigatoni_up") == 1
    store.close()
