"""``rigatoni dead-letters``: shown safely, replayed through the handler that failed, discarded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId, Timestamp
from commands import rigatoni_ends

from rigatoni import DeadLetter, SQLiteStore

PROGRAM = """\
import os, threading
from gevent.monkey import is_module_patched
from rigatoni import Watcher

watcher = Watcher("mongodb://127.0.0.1:1", store="letters.db", name="shop")

@watcher.on("insert", collection="orders")
def ship(event):
    assert is_module_patched("socket")
    number = event.full_document["n"]
    if str(number) in os.environ.get("BROKEN", ""):
        raise LookupError(f"no parcel \\x1b[31m for\\n{number}")
    print("shipped", number)

@watcher.on("insert", collection="orders")
def bill(event):
    print("billed", event.full_document["n"])
"""


def letter(n: int, handler: str = "program:ship", **event: Any) -> DeadLetter:
    raw = {
        "_id": {"_data": f"8264{n:020X}"},
        "operationType": "insert",
        "clusterTime": Timestamp(1_700_000_000, n),
        "ns": {"db": "shop", "coll": "orders"},
        "documentKey": {"_id": ObjectId(f"{n:024x}")},
        "fullDocument": {"_id": ObjectId(f"{n:024x}"), "n": n},
    }
    trace = "Traceback (most recent call last):\n  \x1b[31mred\nLookupError: no parcel\n"
    return DeadLetter(None, handler, raw | event, "LookupError: no\nparcel \x1b[31m", trace, 3, 1_700_000_000.0)


def buried(folder: Path) -> list[int]:
    store = SQLiteStore(folder / "letters.db")
    found = [each.event["fullDocument"]["n"] for each in store.letters("shop")]
    store.close()
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a program and three dead letters of it."""
    (tmp_path / "program.py").write_text(PROGRAM)
    store = SQLiteStore(tmp_path / "letters.db")
    for n in (1, 2, 3):
        store.bury("shop", letter(n))
    store.close()
    return tmp_path


def letters(folder: Path, command: str, *arguments: str, **environment: str) -> Any:
    environment = {"RIGATONI_STORE": "letters.db", "RIGATONI_NAME": "shop", **environment}
    return rigatoni_ends("dead-letters", command, *arguments, cwd=folder, **environment)


def test_list_gives_each_letter_a_line_whatever_is_in_it(folder: Path) -> None:
    store = SQLiteStore(folder / "letters.db")
    store.bury(
        "shop", letter(4, "odd\n\x1b[31m", ns={"db": "a\nb", "coll": "\u202e<script>"}, documentKey={"_id": "\r"})
    )
    store.bury("shop", letter(5, ns=None, documentKey=7, operationType=None))
    store.close()
    run = letters(folder, "list")

    lines = run.stdout.splitlines()
    assert (run.returncode, len(lines)) == (0, 6)
    assert [line.split()[0] for line in lines] == ["ID", "1", "2", "3", "4", "5"]
    assert "insert shop.orders" in lines[1] and "0" * 23 + "1" in lines[1] and r"no parcel \x1b[31m" in lines[1]
    assert run.stdout.isascii() and "\x1b" not in run.stdout


def test_list_as_json_is_a_line_each(folder: Path) -> None:
    found = [json.loads(line) for line in letters(folder, "list", "--json").stdout.splitlines()]

    assert [each["id"] for each in found] == [1, 2, 3]
    assert found[0]["document_id"] == {"$oid": "0" * 23 + "1"}
    assert (found[0]["name"], found[0]["attempts"], found[0]["operation"]) == ("shop", 3, "insert")


def test_show_gives_event_and_traceback_and_drives_no_terminal(folder: Path) -> None:
    plain, as_json = letters(folder, "show", "2"), letters(folder, "show", "2", "--json")

    assert '"$oid": "000000000000000000000002"' in plain.stdout
    assert "called 3 times" in plain.stdout and r"\x1b[31mred" in plain.stdout and "\x1b" not in plain.stdout
    assert json.loads(as_json.stdout)["event"]["fullDocument"]["n"] == 2


def test_a_replayed_letter_goes_to_its_handler_alone_and_is_gone(folder: Path) -> None:
    run = letters(folder, "replay", "program:watcher", "2")

    assert (run.returncode, run.stdout) == (0, "shipped 2\n")
    assert buried(folder) == [1, 3]


def test_a_letter_that_fails_again_stays_and_the_next_one_is_tried(folder: Path) -> None:
    run = letters(folder, "replay", "program:watcher", "--all", BROKEN="2")

    assert (run.returncode, run.stdout) == (17, "shipped 1\nshipped 3\n")
    assert "2 fails again: LookupError: no parcel \\x1b[31m for 2" in run.stderr.splitlines()[0]
    assert "replayed 2 of 3" in run.stderr
    assert buried(folder) == [2]


def test_a_letter_of_a_handler_that_is_no_longer_there_stays(folder: Path) -> None:
    store = SQLiteStore(folder / "letters.db")
    store.bury("shop", letter(4, "program:gone"))
    store.close()
    run = letters(folder, "replay", "program:watcher", "4")

    assert run.returncode == 17
    assert "there is no handler 'program:gone'" in run.stderr
    assert buried(folder) == [1, 2, 3, 4]


def test_discard_deletes_what_is_named_after_it_was_confirmed(folder: Path) -> None:
    unasked, one, rest = (letters(folder, "discard", *which) for which in (["1"], ["1", "-y"], ["--all", "--yes"]))

    assert (unasked.returncode, one.returncode, rest.returncode) == (2, 0, 0)
    assert ("discarded 1" in one.stderr, "discarded 2" in rest.stderr) == (True, True)
    assert buried(folder) == []


def test_an_id_needs_no_name_and_all_are_those_of_one_name(folder: Path) -> None:
    store = SQLiteStore(folder / "letters.db")
    store.bury("other", letter(4))
    store.close()
    shown = rigatoni_ends("dead-letters", "show", "4", "--json", cwd=folder, RIGATONI_STORE="letters.db")
    letters(folder, "discard", "--all", "--yes")
    left = [json.loads(line) for line in letters(folder, "list", "--json", RIGATONI_NAME="").stdout.splitlines()]

    assert json.loads(shown.stdout)["name"] == "other"
    assert [(each["id"], each["name"]) for each in left] == [(4, "other")]


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        (["show", "9"], "there is no dead letter 9"),
        (["show", "one"], "is not a valid integer"),
        (["discard"], "say which"),
        (["discard", "1", "--all"], "say which"),
        (["discard", "1", "9", "--yes"], "there is no dead letter 9"),
        (["replay", "program:watcher"], "say which"),
        (["replay", "program:nobody", "1"], "its watchers are watcher"),
        (["replay", "1"], "names no watcher"),
        (["list", "--nmae", "shop"], "No such option"),
        (["list", "--name", "other"], "its names are shop"),
        (["show", "1", "--name", "other"], "its names are shop"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_deleted(
    arguments: list[str], mistake: str, folder: Path
) -> None:
    run = letters(folder, *arguments)

    assert run.returncode == 2
    assert mistake in " ".join(run.stderr.split())
    assert buried(folder) == [1, 2, 3]


def test_a_replay_without_a_store_makes_none(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    run = letters(tmp_path, "replay", "program:watcher", "--all")

    assert run.returncode == 16
    assert not (tmp_path / "letters.db").exists()
