"""What the README says is so: its names, its defaults, its programs."""

from __future__ import annotations

import ast
import builtins
import inspect
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from conftest import wait_until
from docutils import nodes
from docutils.core import publish_doctree

import rigatoni
from rigatoni import (
    ChangeEvent,
    ChangeStreamConfig,
    DeadLetter,
    Hooks,
    RetryPolicy,
    SQLiteStore,
    StreamError,
    UpdateDescription,
    Watcher,
)
from rigatoni.cli import rigatoni as command_line
from rigatoni.cli.exits import CATEGORIES
from rigatoni.life import State
from rigatoni.testing import make_event

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.rst").read_text("utf-8")
URI = "mongodb://localhost:27017"
COMMANDS = (
    'python3 -m venv .venv && .venv/bin/pip install -q ".[embedded]" && .venv/bin/rigatoni demo',
    "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox",
)


def parsed(text: str) -> nodes.document:
    """Parse reStructuredText; anything that docutils complains of is an error."""
    # Without highlighting, because a block is then one piece of text.
    return publish_doctree(text, settings_overrides={"report_level": 1, "halt_level": 1, "syntax_highlight": "none"})


README = parsed(TEXT)
BLOCKS = [block.astext() for block in README.findall(nodes.literal_block) if "python" in block["classes"]]


def block(part: str) -> str:
    """Return the one Python block that holds this text."""
    (found,) = [each for each in BLOCKS if part in each]
    return found


PROGRAM = block("def ship(event):\n    print(")


def table(header: str) -> dict[str, list[str]]:
    """Return a table by the text over its first column: name → the other columns."""
    for each in README.findall(nodes.table):
        head, *rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in each.findall(nodes.row)]
        if head[0] == header:
            return {first: rest for first, *rest in rows}
    raise AssertionError(f"the README has no table of {header}")


def default(text: str) -> object:
    return getattr(builtins, text, None) or ast.literal_eval(text)


def defaults(header: str) -> dict[str, object]:
    return {name: default(row[0]) for name, row in table(header).items() if row[0]}


def overloads(method: str) -> set[str]:
    """Name the keyword options that the overloads of ``on`` or ``on_batch`` spell out."""
    tree = ast.parse(inspect.getsource(sys.modules["rigatoni.handlers"]))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == method]
    return {argument.arg for node in found for argument in node.args.kwonlyargs}


def test_the_changelog_is_valid_and_begins_with_this_version() -> None:
    changelog = parsed((ROOT / "CHANGELOG.rst").read_text("utf-8"))
    titles = [title.astext() for title in changelog.findall(nodes.Titular)]

    assert titles[:2] == ["Changes", rigatoni.__version__]


@pytest.mark.parametrize("name", rigatoni.__all__)
def test_every_public_name_is_in_the_readme(name: str) -> None:
    assert re.search(rf"\b{name}\b", TEXT)


def test_the_table_of_the_watcher_has_every_option_with_its_default() -> None:
    parameters = inspect.signature(Watcher).parameters

    assert defaults("Watcher(…)") == {name: parameter.default for name, parameter in parameters.items()}


@pytest.mark.parametrize("kind", [ChangeStreamConfig, RetryPolicy])
def test_the_table_of_a_configuration_has_every_field_with_its_default(kind: Any) -> None:
    assert defaults(f"{kind.__name__}(…)") == {field.name: field.default for field in fields(kind)}


def test_the_table_of_watch_has_every_option_with_its_default() -> None:
    parameters = inspect.signature(Watcher.watch).parameters.values()
    wanted = {("**" if each.kind is each.VAR_KEYWORD else "") + each.name: each.default for each in parameters}
    del wanted["self"]

    assert list(table("watch(…)")) == list(wanted)
    assert defaults("watch(…)") == {
        name: value for name, value in wanted.items() if value is not inspect.Parameter.empty
    }


def test_the_tables_of_on_and_on_batch_have_every_option() -> None:
    assert overloads("on") == set(table("on(…)"))
    assert overloads("on_batch") == set(table("on(…)")) | set(table("on_batch(…)"))


def test_the_defaults_of_on_batch_are_those_of_the_readme() -> None:
    parameters = inspect.signature(Watcher.on_batch).parameters

    assert {name: parameters[name].default for name in table("on_batch(…)")} == defaults("on_batch(…)")


@pytest.mark.parametrize(("option", "value"), defaults("on(…)").items())
def test_an_option_of_on_given_as_its_default_is_as_if_it_was_left_out(option: str, value: Any) -> None:
    given, left_out = Watcher(URI, "shop"), Watcher(URI, "shop")

    given.on("update", **{option: value})(print)
    left_out.on("update")(print)

    (one,), (other,) = given._handlers, left_out._handlers
    assert [getattr(one, field.name) for field in fields(one)] == [
        getattr(other, field.name) for field in fields(other)
    ]


def test_the_table_of_errors_has_every_class_with_its_category_and_exit_code() -> None:
    found = {name: (row[0], int(row[1])) for name, row in table("Class").items()}

    assert found == {kind.__name__: (kind.category, CATEGORIES[kind.category]) for kind in StreamError.__subclasses__()}


def test_every_attribute_of_an_event_is_in_its_table() -> None:
    named = set(", ".join(table("ChangeEvent")).split(", "))

    assert named == {"raw"} | {name for name, value in vars(ChangeEvent).items() if isinstance(value, property)}
    for field in (*fields(UpdateDescription), *fields(DeadLetter)):
        assert f"``{field.name}``" in TEXT


def test_every_hook_every_count_and_every_state_is_in_the_readme() -> None:
    hooks = [name for name in vars(Hooks) if not name.startswith("_")]
    counts = [name for name in Watcher(URI).stats() if name != "state"]
    states = [f'"{state}"' for state in get_args(State)]

    for name in (*hooks, *counts):
        assert f"``{name}``" in TEXT
    assert all(state in TEXT for state in states)


def test_every_command_with_its_options_is_in_the_readme() -> None:
    for name, command in command_line.commands.items():
        assert f"rigatoni {name}" in TEXT
        for option in command.params if name == "watch" else ():
            assert not isinstance(option, click.Option) or f"``{option.opts[-1]}``" in TEXT


def test_both_commands_stand_there_as_promised_and_ci_runs_the_second() -> None:
    literal = [each.astext() for each in README.findall(nodes.literal_block)]

    assert all(command in literal for command in COMMANDS)
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


@pytest.mark.parametrize("text", BLOCKS)
def test_every_block_of_python_compiles(text: str) -> None:
    compile(text, "README.rst", "exec")


def test_the_first_program_has_ten_lines_and_is_the_example() -> None:
    example = (ROOT / "examples" / "orders.py").read_text("utf-8")

    assert len(PROGRAM.splitlines()) == 10
    assert PROGRAM.split() == example.split()


@contextmanager
def running(text: str, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run a program in a folder, give its process and the file that it prints into, and kill it at the end."""
    (folder / "orders.py").write_text(text)
    printed = folder / "printed"
    with printed.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "orders.py"], cwd=folder, stdout=output, env={**os.environ, "PYTHONUNBUFFERED": "1"}
        )
    try:
        yield process, printed
    finally:
        process.kill()
        process.wait()


def pointed_at(uri: str, database: Any, text: str) -> str:
    """Put a real server and a fresh database in place of those of the README."""
    assert URI in text and "shop" in text
    return text.replace(URI, uri).replace('"shop"', repr(database.name)).replace(".shop.", f".{database.name}.")


def test_the_first_program_handles_an_insert_and_stops_at_sigint(
    tmp_path: Path, mongodb_replica_set: Any, database: Any
) -> None:
    store = SQLiteStore(tmp_path / "rigatoni.db")
    with running(pointed_at(mongodb_replica_set.uri, database, PROGRAM), tmp_path) as (process, printed):
        wait_until(lambda: (store.status("default") or {}).get("state") == "running")
        database.orders.insert_one({"item": "pasta"})
        wait_until(lambda: printed.read_text() == "shipping pasta\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    store.close()


def test_the_listener_prints_what_it_reads(tmp_path: Path, mongodb_replica_set: Any, database: Any) -> None:
    text = pointed_at(mongodb_replica_set.uri, database, block("ChangeStreamListener("))
    with running(text, tmp_path) as (_, printed):

        def is_finished() -> bool:
            database.orders.insert_one({"item": "pasta"})
            return "insert {'_id'" in printed.read_text() and "finished up to" in printed.read_text()

        wait_until(is_finished)


def test_the_tests_in_the_readme_pass(tmp_path: Path, mongodb_replica_set: Any) -> None:
    (tmp_path / "orders.py").write_text(PROGRAM)
    (tmp_path / "test_orders.py").write_text(block("make_event(") + "\n\n" + block("arrived.wait("))

    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py"]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert "2 passed" in ended.stdout, ended.stdout


def test_a_dead_letter_is_replayed_and_discarded(tmp_path: Path) -> None:
    event = make_event("insert", "orders", "shop", {"item": "pasta"})
    store = SQLiteStore(tmp_path / "rigatoni.db")
    store.bury("default", DeadLetter(None, "orders:ship", event.raw, "ValueError: no pasta", "", 3, 0.0))
    (tmp_path / "orders.py").write_text(PROGRAM)
    (tmp_path / "replay.py").write_text(block("watcher.store.discard("))

    ended = subprocess.run([sys.executable, "replay.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert ended.stdout == "shipping pasta\n", ended.stderr
    assert store.letters("default") == []
    store.close()


def test_the_handler_that_may_be_called_twice_bills_once(mongodb_replica_set: Any, database: Any) -> None:
    text = block("def bill(event)").replace("MongoClient().accounts", f"MongoClient({mongodb_replica_set.uri!r})[name]")
    namespace: dict[str, Any] = {"__name__": "readme", "name": database.name}
    exec(text, namespace)
    event = make_event("insert", "orders", "shop", {"_id": 7})

    with namespace["bills"].database.client:
        namespace["watcher"].dispatch(event)
        namespace["watcher"].dispatch(event)

    assert list(database.bills.find()) == [{"_id": event.id, "order": 7}]


def test_the_manual_handler_and_the_batch_handler_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, Any] = {"__name__": "readme", "watcher": Watcher(URI, "shop")}
    exec(block('ack="manual"'), namespace)
    exec(block("@watcher.on_batch("), namespace)
    upload = make_event("insert", "uploads")

    namespace["watcher"].dispatch(upload)
    namespace["watcher"].dispatch(make_event("insert", "clicks"))

    assert namespace["jobs"].get_nowait().id == upload.id
    assert capsys.readouterr().out == "1 clicks\n"
