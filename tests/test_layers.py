"""The house: who may import whom, what is pure, how large things are, and what ``import rigatoni`` brings along."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import PYTHON

import rigatoni

ROOT = Path(rigatoni.__file__).parent

#: The floors of the house. A module imports from any floor below its own; of its own floor only what stands beside it.
#: A package is one module here; what happens inside it is its own business, as long as there is no cycle.
HOUSE: list[dict[str, str]] = [
    {
        "clock": "",
        "codes": "",
        "credentials": "",
        "errors": "codes",
        "events": "",
        "position": "",
        "summary": "",
        "watermark": "",
        "hooks": "events",
    },
    {
        "knob": "",
        "config": "knob",
        "forks": "",
        "hub": "forks",
        "runners": "forks",
        "signals": "",
        "reply": "",
        "stores": "hub",
        "registration": "config",
        "handlers": "config registration",
        "selection": "registration",
        "plan": "config registration selection",
        "client": "config",
        "settings": "client config knob registration stores",
        "retry": "config hub",
        "cursor": "client config hub reply selection",
        "barrier": "hub selection",
        "delivery": "config hub registration",
        "lane": "barrier delivery hub registration runners selection",
        "lanes": "barrier hub lane registration selection",
    },
    {
        "stream": "",
        "lease": "",
        "saver": "",
        "gauge": "",
    },
    {
        "listener": "",
        "pipe": "",
        "declaration": "",
        "opening": "pipe",
        "life": "opening pipe",
    },
    {
        "watcher": "",
    },
    {
        "__init__": "",
    },
    {
        "testing": "",
        "mongod": "",
        "contrib": "mongod testing",
        "demo": "mongod",
    },
    {
        "cli": "",
        "__main__": "cli",
    },
]
FLOOR = {module: number for number, floor in enumerate(HOUSE) for module in floor}
BESIDE = {module: set(names.split()) for floor in HOUSE for module, names in floor.items()}
FILES = sorted(ROOT.rglob("*.py"))
PURE = "config events handlers hooks knob plan position registration selection watermark".split()


def name_of(file: Path) -> str:
    """Name a file as a module within the package, such as ``stores.sqlite``; ``__init__`` is the package itself."""
    parts = [*file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(file): file for file in FILES}


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Give every import of a file, in functions and under TYPE_CHECKING too: its dots, and what is imported."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from ((node.level, prefix + alias.name) for alias in node.names)


def own_imports(module: str) -> Iterator[str]:
    """Give the modules of this package that a module imports."""
    file = MODULES[module]
    for dots, name in imports(file):
        if dots:
            folder = file.parents[dots - 1].relative_to(ROOT)
            name = ".".join(["rigatoni", *folder.parts, name])
        if name.split(".")[0] == "rigatoni":
            yield home_of(name.removeprefix("rigatoni").removeprefix("."))


def home_of(name: str) -> str:
    """Find the module that a dotted name comes from: the longest beginning that is one, else the package itself."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or "__init__"


def unit_of(module: str) -> str:
    return module.split(".")[0]


def outsiders(file: Path) -> set[str]:
    return {name.split(".")[0] for dots, name in imports(file) if not dots}


def test_every_module_has_its_place_in_the_house() -> None:
    assert {unit_of(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_or_to_a_neighbour_that_is_named(module: str) -> None:
    unit = unit_of(module)
    for other in {unit_of(found) for found in own_imports(module)} - {unit}:
        is_below = FLOOR[other] < FLOOR[unit]
        is_beside = FLOOR[other] == FLOOR[unit] and other in BESIDE[unit]
        assert is_below or is_beside, f"{module} may not import {other}"


@pytest.mark.parametrize("unit", [unit for unit, names in BESIDE.items() if names])
def test_no_neighbour_is_named_in_vain(unit: str) -> None:
    found = {unit_of(other) for module in MODULES if unit_of(module) == unit for other in own_imports(module)}

    assert BESIDE[unit] <= found


def test_there_is_no_cycle() -> None:
    graph = {module: set(own_imports(module)) for module in MODULES}

    # Raises CycleError, which names the modules.
    assert len([*TopologicalSorter(graph).static_order()]) == len(MODULES)


def test_only_the_reconnection_imports_backoff() -> None:
    assert [module for module, file in MODULES.items() if "backoff" in outsiders(file)] == ["retry"]


@pytest.mark.parametrize("module", PURE)
def test_what_is_pure_imports_neither_gevent_nor_pymongo(module: str) -> None:
    assert outsiders(MODULES[module]).isdisjoint({"gevent", "pymongo", "greenlet"})


@pytest.mark.parametrize("module", [name for name in MODULES if unit_of(name) in ("contrib", "testing")])
def test_bridges_import_only_what_the_package_exports(module: str) -> None:
    exported = {*rigatoni.__all__, "mongod", "testing"}
    for node in ast.walk(parsed(MODULES[module])):
        if isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "rigatoni" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not is_of_its_own(module, node):
            assert (node.level, node.module) == (0, "rigatoni")
            assert {alias.name for alias in node.names} <= exported


def is_of_its_own(module: str, node: ast.ImportFrom) -> bool:
    """Tell whether a bridge imports from outside, from a bridge beside it, or from its own package."""
    names = str(node.module).split(".")
    if not node.level:
        return names[0] != "rigatoni" or names[:2] == ["rigatoni", "contrib"]
    folder = MODULES[module].parents[node.level - 1]
    return ROOT / unit_of(module) in (folder, *folder.parents)


@pytest.mark.parametrize(
    "module", ["rigatoni", "rigatoni.cli", "rigatoni.cli.flask", "rigatoni.contrib.gunicorn", "rigatoni.contrib.pytest"]
)
def test_importing_it_leaves_time_to_patch(module: str) -> None:
    program = f"import sys, {module}; print(*sorted({{'gevent', 'pymongo', 'bson'}} & sys.modules.keys()))"

    found = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert found.stdout.split() == []


# -- sizes


@pytest.mark.parametrize("module", MODULES)
def test_no_file_has_more_than_300_lines(module: str) -> None:
    assert len(MODULES[module].read_text("utf-8").splitlines()) <= 300


def functions() -> Iterator[tuple[str, int]]:
    """Give every function with its lines, which a docstring does not add to."""
    for module, file in MODULES.items():
        for node in ast.walk(parsed(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[0]
                is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                text = (first.end_lineno or 0) - first.lineno + 1 if is_text else 0
                yield f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1 - text


def test_no_function_has_more_than_40_lines() -> None:
    assert {name: lines for name, lines in functions() if lines > 40} == {}


def test_nine_functions_in_ten_have_at_most_20_lines() -> None:
    lines = [lines for _, lines in functions()]

    assert sum(count <= 20 for count in lines) >= 0.9 * len(lines)


# -- the public names


@pytest.mark.parametrize("name", rigatoni.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    found = getattr(rigatoni, name)

    if name != "__version__":
        assert found.__name__ == name and found.__doc__
        assert found.__module__.split(".")[0] == "rigatoni"


@pytest.mark.parametrize("name", [name for name in rigatoni.__all__ if name != "__version__"])
def test_every_public_method_says_what_it_does(name: str) -> None:
    public = {
        attribute: value
        for attribute, value in vars(getattr(rigatoni, name)).items()
        if not attribute.startswith("_")
        and (callable(value) or isinstance(value, (property, classmethod, staticmethod)))
    }

    overridden = {attribute for base in getattr(rigatoni, name).__mro__[1:] for attribute in vars(base)}
    assert [attribute for attribute, value in public.items() if attribute not in overridden and not value.__doc__] == []


def test_the_list_of_names_is_the_same_for_programs_and_for_type_checkers() -> None:
    checked = [
        (alias.name, alias.asname)
        for node in ast.walk(parsed(ROOT / "__init__.py"))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    ]

    assert {name for name, _ in checked} | {"__version__"} == set(rigatoni.__all__)
    assert all(name == exported for name, exported in checked)
    assert set(rigatoni.__all__) <= set(dir(rigatoni))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Watchr'"):
        print(rigatoni.Watchr)
