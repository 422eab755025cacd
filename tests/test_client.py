"""What is decided about servers and times without asking one."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from bson import Timestamp
from pymongo.server_description import ServerDescription

from rigatoni.client import Cluster, StickyServer, starting_point
from rigatoni.errors import ConfigurationError
from rigatoni.position import Position

NOW = 1_700_000_000
CLUSTER = Cluster("rs0/65a1", Timestamp(NOW, 7))
TOKEN = {"_data": f"82{NOW - 60:08X}000000012B0229296E04", "_typeBits": b"\x82"}


def begin(start_at: object) -> Position | None:
    # Only "earliest" asks the server.
    return starting_point(start_at, None, CLUSTER)  # type: ignore[arg-type]


def servers(*ports: int) -> list[ServerDescription]:
    return [ServerDescription(("localhost", port)) for port in ports]


# -- where to begin


def test_nothing_said_is_now() -> None:
    assert begin(None) is None


@pytest.mark.parametrize(
    ("start_at", "time"),
    [
        (Timestamp(NOW - 60, 3), Timestamp(NOW - 60, 3)),
        (datetime.fromtimestamp(NOW - 60, timezone.utc), Timestamp(NOW - 60, 1)),
        (datetime.fromtimestamp(NOW - 60, timezone(timedelta(hours=5))), Timestamp(NOW - 60, 1)),
        (timedelta(minutes=1), Timestamp(NOW - 60, 1)),
        (timedelta(0), Timestamp(NOW, 1)),
        (timedelta(days=999_999), Timestamp(0, 1)),
        (CLUSTER.now, CLUSTER.now),
    ],
)
def test_a_time_is_measured_against_the_servers(start_at: Any, time: Timestamp) -> None:
    assert begin(start_at) == Position(None, time)


def test_a_token_is_taken_whole() -> None:
    assert begin(TOKEN) == Position.of(TOKEN)


@pytest.mark.parametrize(
    ("start_at", "mend"),
    [
        (datetime(2023, 1, 1), "time zone"),
        (timedelta(seconds=-1), "make it positive"),
        (Timestamp(NOW + 60, 1), "60 s ahead of the server's time"),
        (datetime.fromtimestamp(NOW + 60, timezone.utc), "60 s ahead of the server's time"),
        (datetime(1960, 1, 1, tzinfo=timezone.utc), "start_at"),
        (datetime(9000, 1, 1, tzinfo=timezone.utc), "start_at"),
        ({"_data": f"82{NOW + 60:08X}000000012B0229296E04"}, "ahead of the server's time"),
        ({"_data": "junk"}, "not a resume token"),
        ({}, "not a resume token"),
        ("latest", "'earliest'"),
        (NOW, "aware datetime"),
        (True, "aware datetime"),
    ],
)
def test_what_is_no_time_or_in_the_future_is_refused_with_what_it_must_be(start_at: Any, mend: str) -> None:
    with pytest.raises(ConfigurationError, match=mend):
        begin(start_at)


# -- which cluster


@pytest.mark.parametrize(
    ("mine", "stored", "is_other"),
    [
        ("rs0/65a1", "rs0/65a1", False),
        ("rs0/65a1", "rs0/ffff", True),
        ("rs0/65a1", "rs1/65a1", True),
        ("rs0/65a1", "rs0/", False),
        ("rs0/", "rs0/65a1", False),
        ("rs0/", "rs1/65a1", True),
        ("rs0/65a1", "", False),
        ("/", "rs0/65a1", False),
        ("/", "/", False),
        ("rs0/65a1", "/", False),
    ],
)
def test_only_what_is_known_on_both_sides_tells_clusters_apart(mine: str, stored: str, is_other: bool) -> None:
    assert Cluster(mine, CLUSTER.now).is_other(stored) is is_other


# -- which server


def test_the_server_of_last_time_is_chosen_as_long_as_it_is_eligible() -> None:
    choose = StickyServer()
    (first,) = choose(servers(1, 2, 3))

    assert {choose(servers(1, 2, 3))[0].address for _ in range(50)} == {first.address}


def test_when_it_is_gone_another_is_chosen_and_kept() -> None:
    choose = StickyServer()
    assert choose(servers(1)) == servers(1)

    (second,) = choose(servers(2, 3, 4))

    assert {choose(servers(1, 2, 3, 4))[0].address for _ in range(50)} == {second.address}


def test_without_eligible_servers_none_is_chosen_and_the_last_one_is_remembered() -> None:
    choose = StickyServer()
    choose(servers(2))

    assert list(choose([])) == []
    assert choose(servers(1, 2, 3)) == servers(2)


def test_watchers_are_spread_over_the_eligible_servers() -> None:
    chosen = {StickyServer()(servers(1, 2))[0].address for _ in range(200)}

    assert len(chosen) == 2
