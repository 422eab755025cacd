"""``rigatoni status``, and what all commands have in common."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import time
from typing import Any

import click
import pytest
from bson import Timestamp
from click.testing import CliRunner
from commands import COMMAND, ENVIRONMENT, rigatoni_ends
from watchers import keeping, watchers

from rigatoni import MemoryStore, Position, SQLiteStore, Watcher
from rigatoni.cli import rigatoni
from rigatoni.cli.consumer import Consumer
from rigatoni.cli.dead_letters import dead_letters
from rigatoni.cli.moments import span
from rigatoni.cli.status import status
from rigatoni.cli.tokens import tokens

ROW = {"name": "shop", "host": "h\n", "pid": 7, "since": 0.0, "state": "running", "lag": 0.0, "streams": {}}


def commands(group: click.Group = rigatoni, *names: str) -> dict[str, click.Command]:
    """Give every command and group below a group, by how it is called."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        found[" ".join((*names, name))] = command
        if isinstance(command, click.Group):
            found |= commands(command, *names, name)
    return found


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example(name: str) -> None:
    run = CliRunner().invoke(rigatoni, [*name.split(), "--help"], prog_name="rigatoni", terminal_width=80)

    assert run.exit_code == 0
    assert run.output.startswith(f"Usage: rigatoni {name} ")
    assert f"rigatoni {name}" in run.output.split("Examples:")[1]
    assert commands()[name].help
    assert all(parameter.help for parameter in commands()[name].params if isinstance(parameter, click.Option))


@pytest.mark.parametrize("name", commands())
def test_an_unknown_option_is_a_wrong_command_line(name: str) -> None:
    run = CliRunner().invoke(rigatoni, [*name.split(), "--no-such-option"])

    assert run.exit_code == 2
    assert "No such option" in run.output


def test_the_status_of_a_running_watcher_is_well_and_of_a_stopped_one_not(
    database: Any, mongodb_replica_set: Any, store_path: str
) -> None:
    with watchers(mongodb_replica_set.uri, database.name) as make:
        watcher = make(store=store_path)
        keeping(watcher, repr)
        watcher.start()
        well = rigatoni_ends("status", "--store", store_path)
        watcher.stop()
        stopped = rigatoni_ends("status", "--store", store_path, "--json")

    assert (well.returncode, well.stderr) == (0, "")
    assert "default: well" in well.stdout and f"pid {os.getpid()}" in well.stdout
    assert any(line.startswith(database.name) for line in well.stdout.splitlines())
    assert stopped.returncode == 3
    assert json.loads(stopped.stdout)["state"] == "stopped" and json.loads(stopped.stdout)["problems"]


def test_a_row_that_nobody_renews_is_a_problem_on_one_line(store_path: str) -> None:
    store = SQLiteStore(store_path)
    store.save("shop", {}, ROW | {"state": "fa\niled", "streams": {"a\n\x1b": {"state": "active", "lag": None}}})
    store.close()
    run = rigatoni_ends("status", "--name", "shop", "--store", store_path)

    assert run.returncode == 3
    assert r"'a\n\x1b'" in run.stdout and run.stdout.isascii() and "\x1b" not in run.stdout
    assert run.stdout.splitlines()[-1].startswith("problem: ")


def test_a_name_of_which_nothing_is_kept_is_no_status(store_path: str) -> None:
    SQLiteStore(store_path).open()
    run = rigatoni_ends("status", "--store", store_path)

    assert (run.returncode, "keeps nothing for name default: it is empty" in run.stderr) == (2, True)


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal_a_table_fits_and_is_coloured_unless_that_is_unwanted(no_colour: str, store_path: str) -> None:
    store = SQLiteStore(store_path)
    scope = "shop." + "orders" * 30
    store.save("n" * 64, {scope: Position(None, Timestamp(1_700_000_000, 1))})
    store.close()
    ours, theirs = pty.openpty()
    command = [*COMMAND, "tokens", "list", "--store", store_path]
    environment = ENVIRONMENT | {"COLUMNS": "80", "NO_COLOR": no_colour}
    subprocess.run(command, stdout=theirs, env=environment, timeout=60, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)

    assert ("\x1b[1m" in shown) == (no_colour == "")
    assert [len(line) <= 80 for line in click.unstyle(shown).splitlines()] == [True, True]
    assert scope in rigatoni_ends("tokens", "list", "--store", store_path).stdout


# Attached to a program that knows its watcher.


@pytest.fixture
def attached() -> Any:
    """The commands within a program of another framework, whose own context object is not ours."""
    store = MemoryStore()
    watcher = Watcher("mongodb://127.0.0.1:1", store=store, name="shop")
    store.save("shop", {}, ROW)

    @click.group()
    @click.pass_context
    def program(context: click.Context) -> None:
        context.obj = Consumer(store, "shop", watcher=watcher)

    for command in (status, tokens, dead_letters):
        program.add_command(command)
    yield lambda *arguments: CliRunner().invoke(program, arguments)
    watcher.stop()


def test_attached_commands_ask_only_for_what_the_program_does_not_know(attached: Any) -> None:
    for command in (["status"], ["tokens", "list"], ["tokens", "seek"], ["dead-letters", "replay"]):
        shown = attached(*command, "--help").output.split("Examples:")[0]
        assert not [word for word in ("--store", "--name", "--uri", "MODULE:WATCHER") if word in shown]

    assert attached("status", "--json").exit_code == 0
    assert attached("tokens", "list").output.startswith("NAME")
    assert attached("tokens", "reset", "--yes").exit_code == 2
    assert attached("dead-letters", "replay", "--all").exit_code == 0
    assert attached("status", "--store", "x").exit_code == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0.0s"), (0.44, "0.4s"), (59, "59s"), (60, "1m 0s"), (7500, "2h 5m"), (86400 * 3 + 7200, "3d 2h")],
)
def test_a_duration_is_told_by_its_two_largest_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_times_are_measured_from_now(store_path: str) -> None:
    store = SQLiteStore(store_path)
    store.save("shop", {}, ROW | {"since": time.time() - 7200})
    store.close()

    assert "started 2h 0m ago" in rigatoni_ends("status", "--name", "shop", "--store", store_path).stdout
