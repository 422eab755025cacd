"""The manual is built without a warning, and names everything that there is; what there is, is asked of the code."""

from __future__ import annotations

import ast
import builtins
import inspect
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, get_args

import click
import pytest
from documents import ROOT, Page
from docutils import nodes
from docutils.core import publish_doctree

import rigatoni
from rigatoni import (
    ChangeEvent,
    ChangeStreamConfig,
    ConfigurationError,
    DeadLetter,
    Hooks,
    MemoryStore,
    RetryPolicy,
    StreamError,
    UpdateDescription,
    Watcher,
)
from rigatoni.cli import rigatoni as command_line
from rigatoni.cli.exits import CATEGORIES
from rigatoni.contrib.prometheus import PrometheusHooks, exposition
from rigatoni.life import State
from rigatoni.testing import make_event

URI = "mongodb://localhost:27017"
OPTIONS = Page("docs/options.rst")


@pytest.fixture(scope="module")
def manual(tmp_path_factory: Any) -> str:
    """The whole manual as text, built as readers get it."""
    folder = tmp_path_factory.mktemp("manual")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "text", "docs", str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return "\n".join(path.read_text("utf-8") for path in sorted(folder.glob("*.txt")))


def names(word: str, text: str) -> bool:
    """Tell whether the text holds a name as a whole."""
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


# -- names


def public_modules() -> Iterator[ModuleType]:
    """Give every module that programs import from."""
    yield from map(import_module, ("rigatoni", "rigatoni.testing", "rigatoni.mongod"))
    for module in iter_modules([str(ROOT / "rigatoni" / "contrib")], "rigatoni.contrib."):
        yield import_module(module.name)


def public_names(module: ModuleType) -> list[str]:
    """List what a module exports: what it says, else its own functions and classes without an underscore."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__
    ]
    return list(getattr(module, "__all__", own))


@pytest.mark.parametrize("module", [*public_modules()], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_manual(module: ModuleType, manual: str) -> None:
    assert public_names(module)
    assert [name for name in public_names(module) if not names(name, manual)] == []


def test_every_public_method_is_in_the_manual(manual: str) -> None:
    for kind in (getattr(rigatoni, name) for name in rigatoni.__all__ if name != "__version__"):
        methods = [name for name in dir(kind) if not name.startswith("_") and name in vars(kind)]
        own = [name for name in methods if callable(getattr(kind, name)) or isinstance(vars(kind)[name], property)]
        # Only the hooks at a fork and at the program's end call them.
        assert [name for name in own if name not in ("exiting", "forked") and not names(name, manual)] == []


# -- tables of options and of what else has a default


def table(page: str, header: str) -> dict[str, list[str]]:
    """Return a table by the text over its first column: name → the other columns."""
    # Roles are Sphinx's; here only the tables count.
    text = re.sub(r":(?:doc|ref):`([^`<]+?)(?: <[^>]+>)?`", r"\1", Page(page).text)
    document = publish_doctree(text, settings_overrides={"report_level": 5, "halt_level": 5})
    for each in document.findall(nodes.table):
        head, *rows = [[entry.astext() for entry in row.findall(nodes.entry)] for row in each.findall(nodes.row)]
        if head[0] == header:
            return {first: rest for first, *rest in rows}
    raise AssertionError(f"{page} has no table of {header}")


def default(text: str) -> object:
    return getattr(builtins, text, None) or ast.literal_eval(text)


def defaults(header: str) -> dict[str, object]:
    return {name: default(row[0]) for name, row in table("docs/options.rst", header).items() if row[0]}


def overloads(method: str) -> set[str]:
    """Name the keyword options that the overloads of ``on`` or ``on_batch`` spell out."""
    tree = ast.parse(inspect.getsource(sys.modules["rigatoni.handlers"]))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == method]
    return {argument.arg for node in found for argument in node.args.kwonlyargs}


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

    assert list(table("docs/options.rst", "watch(…)")) == list(wanted)
    assert defaults("watch(…)") == {
        name: value for name, value in wanted.items() if value is not inspect.Parameter.empty
    }


def test_the_tables_of_on_and_on_batch_have_every_option() -> None:
    on, on_batch = set(table("docs/options.rst", "on(…)")), set(table("docs/options.rst", "on_batch(…)"))

    assert overloads("on") == on
    assert overloads("on_batch") == on | on_batch


def test_the_defaults_of_on_batch_are_those_of_the_manual() -> None:
    parameters = inspect.signature(Watcher.on_batch).parameters

    assert {name: parameters[name].default for name in defaults("on_batch(…)")} == defaults("on_batch(…)")


@pytest.mark.parametrize(("option", "value"), defaults("on(…)").items())
def test_an_option_of_on_given_as_its_default_is_as_if_it_was_left_out(option: str, value: Any) -> None:
    given, left_out = Watcher(URI, "shop"), Watcher(URI, "shop")

    given.on("update", **{option: value})(print)
    left_out.on("update")(print)

    (one,), (other,) = given._handlers, left_out._handlers
    assert [getattr(one, field.name) for field in fields(one)] == [
        getattr(other, field.name) for field in fields(other)
    ]


def keys() -> Iterator[str]:
    """Give the key of every option, as the manual says it is made."""
    for name in (*table("docs/options.rst", "Watcher(…)"), *table("docs/options.rst", "ChangeStreamConfig(…)")):
        # Three are no options of text: the client is RIGATONI_URI, and these two have options of their own.
        if name not in ("client", "config", "retry"):
            yield f"RIGATONI_{name.upper()}"
    for name in table("docs/options.rst", "RetryPolicy(…)"):
        yield f"RIGATONI_RETRY_{name.upper()}"
    yield "RIGATONI_URI"


@pytest.mark.parametrize("key", [*keys()])
def test_every_option_can_be_set_by_its_key(key: str, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        try:
            Watcher.from_mapping({"RIGATONI_STORE": MemoryStore(), key: object()})
        except ConfigurationError as error:
            assert key in str(error) or key.removeprefix("RIGATONI_").removeprefix("RETRY_").lower() in str(error)

    assert "misspelt" not in caplog.text


def test_a_watcher_is_made_of_the_environment(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("RIGATONI_DATABASE", "shop")
    monkeypatch.setenv("RIGATONI_RETRY_MAX_ATTEMPTS", "7")
    found: dict[str, Any] = {}

    exec(OPTIONS.take("from_mapping"), found)

    assert found["watcher"].database == "shop"
    assert OPTIONS.left == []


# -- events, errors, hooks, counts


def test_every_attribute_of_an_event_is_in_its_table(manual: str) -> None:
    named = set(", ".join(table("docs/events.rst", "ChangeEvent")).split(", "))

    assert named == {"raw"} | {name for name, value in vars(ChangeEvent).items() if isinstance(value, property)}
    assert all(names(field.name, manual) for field in (*fields(UpdateDescription), *fields(DeadLetter)))


def test_the_table_of_errors_has_every_class_with_its_category_and_exit_code() -> None:
    found = {name: (row[0], int(row[1])) for name, row in table("docs/errors.rst", "Class").items()}

    assert found == {kind.__name__: (kind.category, CATEGORIES[kind.category]) for kind in StreamError.__subclasses__()}
    assert all(f"``{kind.__name__}``" in Page("docs/errors.rst").text for kind in StreamError.__subclasses__())


def test_every_hook_is_in_its_table() -> None:
    hooks = [name for name in vars(Hooks) if not name.startswith("_")]

    assert [hook.partition("(")[0] for hook in table("docs/metrics.rst", "Hook")] == hooks


def test_every_count_and_every_state_is_in_the_manual() -> None:
    counts = [name for name in Watcher(URI).stats() if name not in ("state", "streams")]

    assert list(table("docs/running.rst", "Key")) == counts
    assert all(f'"{state}"' in Page("docs/running.rst").text for state in get_args(State))


def test_every_metric_is_in_its_table() -> None:
    hooks, event = PrometheusHooks(), make_event()
    hooks.received("shop", 1, 100)
    hooks.handled(event, 0.1)
    hooks.failed(event, ValueError(), 1)
    hooks.saved("shop", event.resume_token)
    stream = {**Watcher(URI).stats(), "state": "active", "catching_up": False, "lag": 0.0, "headroom": 60.0}
    row = {**stream, "state": "running", "streams": {"shop": stream}, "host": "here", "pid": 1, "since": 0.0}
    text = exposition("default", {**row, **hooks.status(), "saved_at": 1.0}, now=1.0)[0].decode()
    found = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    named = set(table("docs/metrics.rst", "Metric"))

    assert len(found) > 15
    assert [name for name in found if name not in named and f"{name}_total" not in named] == []


# -- commands


def commands(command: Any, path: str) -> Iterator[tuple[str, click.Command]]:
    """Give a command and all below it, each with what one types."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), [*commands(command_line, "rigatoni")], ids=str)
def test_every_command_with_its_options_is_in_the_manual(path: str, command: click.Command, manual: str) -> None:
    options = [option.opts[-1] for option in command.params if isinstance(option, click.Option)]

    assert names(path, manual)
    assert [option for option in options if not names(option, manual)] == []


def test_every_exit_code_is_in_the_manual() -> None:
    from rigatoni.cli import exits

    codes = [value for name, value in vars(exits).items() if name.isupper() and isinstance(value, int)]
    named = set(table("docs/command-line.rst", "Code"))

    assert {str(code) for code in codes} <= named
    assert f"{min(CATEGORIES.values())}–{max(CATEGORIES.values())}" in named
