"""``rigatoni watch``: events as lines, for pipes and for eyes."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from bson import ObjectId, tz_util
from commands import rigatoni_ends, running
from conftest import wait_until


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


def test_watch_writes_each_event_as_a_line_at_once_until_sigint(tmp_path: Path, uri: str, database: Any) -> None:
    with running(tmp_path, "watch", uri, "-d", database.name, stdout=subprocess.PIPE) as watch:
        watch.wait_for_error_line("watching")
        assert watch.process.stdout is not None
        lines = []
        for n in range(3):
            # Each line arrives although no later one pushes it.
            database.orders.insert_one({"n": n, "text": "a\nb\x1b"})
            lines.append(json.loads(watch.process.stdout.readline()))
        assert watch.end(signal.SIGINT) == 0
        rest = watch.process.stdout.read()

    assert [line["fullDocument"]["n"] for line in lines] == [0, 1, 2]
    assert lines[0]["fullDocument"]["text"] == "a\nb\x1b"
    assert set(lines[0]["documentKey"]["_id"]) == {"$oid"}
    assert rest == b""
    assert "Traceback" not in watch.err


def test_watch_ends_quietly_when_the_reader_of_its_pipe_goes(tmp_path: Path, uri: str, database: Any) -> None:
    with running(tmp_path, "watch", uri, "-d", database.name, stdout=subprocess.PIPE) as watch:
        watch.wait_for_error_line("watching")
        database.orders.insert_many([{"n": n, "text": "x" * 1000} for n in range(2000)])
        assert watch.process.stdout is not None
        assert json.loads(watch.process.stdout.readline())["fullDocument"]["n"] == 0
        watch.process.stdout.close()
        code = watch.end()

    assert (code, watch.err.count("\n")) == (0, watch.err.count("rigatoni: "))
    assert "Traceback" not in watch.err and "ERROR" not in watch.err


def test_watch_ends_quietly_when_the_reader_of_its_socket_goes(tmp_path: Path, uri: str, database: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, running(tmp_path, "watch", uri, "-d", database.name, stdout=theirs.fileno()) as watch:
        theirs.close()
        watch.wait_for_error_line("watching")
        database.orders.insert_many([{"text": "x" * 10_000} for _ in range(200)])
        assert ours.recv(1) == b"{"
        ours.close()
        code = watch.end()

    assert code == 0
    assert "Traceback" not in watch.err and "ERROR" not in watch.err


def test_watch_ends_with_its_reader_also_when_no_event_comes(tmp_path: Path, uri: str, database: Any) -> None:
    with running(tmp_path, "watch", uri, "-d", database.name, stdout=subprocess.PIPE) as watch:
        watch.wait_for_error_line("watching")
        assert watch.process.stdout is not None
        watch.process.stdout.close()

        assert watch.end() == 0


def test_a_reader_who_takes_his_time_does_not_keep_watch_from_ending(tmp_path: Path, uri: str, database: Any) -> None:
    with running(tmp_path, "watch", uri, "-d", database.name, stdout=subprocess.PIPE) as watch:
        watch.wait_for_error_line("watching")
        database.orders.insert_many([{"text": "x" * 10_000} for _ in range(100)])
        assert watch.process.stdout is not None
        # From here on the pipe is full: nobody reads on.
        watch.process.stdout.readline()
        watch.process.send_signal(signal.SIGINT)
        # Two signals that come as one are only slower.
        sleep(0.1)
        code = watch.end(signal.SIGINT)

    assert code == 0


def test_every_line_is_whole_and_in_order_for_a_slow_reader(tmp_path: Path, uri: str, database: Any) -> None:
    with running(tmp_path, "watch", uri, "-d", database.name, stdout=subprocess.PIPE) as watch:
        watch.wait_for_error_line("watching")
        database.orders.insert_many([{"n": n, "text": "x" * (50 * n)} for n in range(300)])
        assert watch.process.stdout is not None
        lines = [json.loads(watch.process.stdout.readline()) for _ in range(300)]

    assert [line["fullDocument"]["n"] for line in lines] == list(range(300))
    assert all(len(line["fullDocument"]["text"]) == 50 * n for n, line in enumerate(lines))


def test_every_line_is_whole_where_several_collections_change_at_once(tmp_path: Path, uri: str, database: Any) -> None:
    with running(tmp_path, "watch", uri, "-d", database.name, stdout=subprocess.PIPE) as watch:
        watch.wait_for_error_line("watching")
        # Longer than what is written to a pipe at once.
        for name in ("orders", "parcels", "refunds"):
            database[name].insert_many([{"_id": n, "text": "x" * 6000} for n in range(40)])
        assert watch.process.stdout is not None
        lines = [json.loads(watch.process.stdout.readline()) for _ in range(120)]

    for name in ("orders", "parcels", "refunds"):
        assert [line["fullDocument"]["_id"] for line in lines if line["ns"]["coll"] == name] == list(range(40))


@pytest.mark.parametrize("start_at", ["earliest", "1h", "30m", "a time with its zone"])
def test_watch_starts_in_the_past_when_asked(start_at: str, tmp_path: Path, uri: str, database: Any) -> None:
    moment = (datetime.now(tz_util.utc) - timedelta(minutes=1)).isoformat(timespec="seconds")
    database.orders.insert_one({"n": 1})
    when = moment.replace("+00:00", "Z") if "zone" in start_at else start_at
    with running(tmp_path, "watch", uri, "--database", database.name, "--start-at", when) as watch:
        wait_until(lambda: watch.out.endswith("\n"))
        assert watch.end(signal.SIGTERM) == 0

    assert json.loads(watch.out)["fullDocument"]["n"] == 1


def test_watch_shows_only_what_is_asked_for(tmp_path: Path, uri: str, database: Any) -> None:
    asked = ["-d", database.name, "-c", "orders", "-c", "bill*", "-o", "insert", "-o", "update", "-o", "create"]
    images = ["--full-document", "updateLookup"]
    pipeline = ["--pipeline", '[{"$match": {"documentKey._id": {"$ne": {"$oid": "%s"}}}}]' % ("0" * 24)]
    database.orders.insert_one({"_id": "a"})
    with running(tmp_path, "watch", *asked, *images, *pipeline, RIGATONI_URI=uri) as watch:
        watch.wait_for_error_line("watching")
        database.orders.update_one({"_id": "a"}, {"$set": {"n": 1}})
        database.orders.delete_one({"_id": "a"})
        database.others.insert_one({})
        database.bills.insert_one({"_id": ObjectId("0" * 24)})
        database.bills.insert_one({"n": 2})
        wait_until(lambda: '"n": 2' in watch.out)
        watch.end(signal.SIGINT)

    events = [json.loads(line) for line in watch.out.splitlines()]
    assert sorted((event["operationType"], event["ns"]["coll"]) for event in events) == [
        ("create", "bills"),
        ("insert", "bills"),
        ("update", "orders"),
    ]
    assert all("fullDocument" in event for event in events if event["operationType"] == "update")


def test_pretty_is_one_json_over_several_lines_and_without_colours_in_a_file(
    tmp_path: Path, uri: str, database: Any
) -> None:
    database.orders.insert_one({"n": 1})
    with running(tmp_path, "watch", uri, "-d", database.name, "--start-at", "1h", "--pretty") as watch:
        wait_until(lambda: watch.out.endswith("\n}\n"))
        watch.end(signal.SIGINT)

    assert json.loads(watch.out)["fullDocument"]["n"] == 1
    assert watch.out.count("\n") > 5
    assert "\x1b" not in watch.out


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_pretty_is_coloured_on_a_terminal_where_colours_are_welcome(
    environment: dict[str, str], tmp_path: Path, uri: str, database: Any
) -> None:
    database.orders.insert_one({"text": 'a": \x1b'})
    ours, theirs = pty.openpty()
    try:
        arguments = ["watch", uri, "-d", database.name, "--start-at", "1h", "--pretty"]
        with running(tmp_path, *arguments, stdout=theirs, **environment) as watch:
            shown = b""
            while not shown.endswith(b"\n}\r\n"):
                shown += os.read(ours, 65536)
            watch.end(signal.SIGINT)
    finally:
        os.close(ours)
        os.close(theirs)

    assert (b'\x1b[36m"text"\x1b[0m: "a\\": \\u001b"' in shown) is (not environment)
    assert (b"\x1b" in shown) is (not environment)


def test_a_password_among_the_arguments_is_warned_of_and_one_in_the_environment_is_not() -> None:
    uri = "mongodb://me:secret@127.0.0.1:1/?serverSelectionTimeoutMS=1"
    options = {"RIGATONI_MAX_RECONNECT_ATTEMPTS": "1"}
    said = rigatoni_ends("watch", uri, **options)
    kept = rigatoni_ends("watch", **options, RIGATONI_URI=uri)

    assert said.returncode == kept.returncode == 12
    assert "put the URI into RIGATONI_URI" in said.stderr
    assert "RIGATONI_URI" not in kept.stderr
    assert kept.stderr.splitlines()[-1].startswith("rigatoni: max_retries: ")
    assert "secret" not in said.stderr + kept.stderr
    assert "Traceback" not in kept.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "mistake"),
    [
        ([], 2, "Missing argument"),
        (["mongodb://h", "--nonsense"], 2, "--nonsense"),
        (["mongodb://h", "--pipeline", "{"], 2, "this is no JSON"),
        (["mongodb://h", "--pipeline", '{"$match": {}}'], 2, "a list of stages"),
        (["mongodb://h", "--pipeline", '[{"$match": {"$where": "1"}}]'], 2, "$where would run JavaScript"),
        (["mongodb://h", "--pipeline", '[{"$match": {"$expr": [{"$function": {}}]}}]'], 2, "$function would run"),
        (["mongodb://h", "--pipeline", '[{"$group": {"a": [[{"$accumulator": {}}]]}}]'], 2, "$accumulator would run"),
        (["mongodb://h", "--start-at", "yesterday"], 2, "neither a way back (2h)"),
        (["mongodb://h", "--start-at", "-2h"], 2, "neither a way back (2h)"),
        (["mongodb://h", "--start-at", "2030-01-31T12:00"], 2, "no time zone"),
        (["mongodb://h", "--full-document", "yes"], 2, "--full-document"),
        (["mongodb://h", "--operation", "inserted"], 10, "unknown operation 'inserted'"),
        (["http://h"], 10, "mongodb://"),
    ],
)
def test_watch_names_what_is_wrong_on_its_command_line(arguments: list[str], code: int, mistake: str) -> None:
    run = rigatoni_ends("watch", *arguments)

    assert run.returncode == code
    assert mistake in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr
