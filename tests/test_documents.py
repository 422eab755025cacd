"""What the documents name is there: tests by their names, and every row of the fault matrix."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from docutils.core import publish_doctree

ROOT = Path(__file__).parent.parent
#: Read where nothing builds them; the pages of docs/ are built by tests/test_docs.py.
PLAIN = [ROOT / "README.rst", ROOT / "CHANGELOG.rst", *sorted(ROOT.glob("*/README.rst"))]
DOCUMENTS = [path for path in [*PLAIN, *sorted(ROOT.glob("docs/*.rst"))] if "tests/test_" in path.read_text("utf-8")]


def functions(path: Path) -> set[str]:
    """Name the functions of a module."""
    return {node.name for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_test_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text("utf-8")
    named = re.findall(r"(tests/[\w/]+(?:\.py)?)(?:::(\w+))?", text)

    assert named
    for file, function in named:
        assert (ROOT / file).exists(), file
        assert not function or function in functions(ROOT / file), f"{file}::{function}"


@pytest.mark.parametrize("document", PLAIN, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_document_is_sound(document: Path) -> None:
    publish_doctree(document.read_text("utf-8"), settings_overrides={"report_level": 1, "halt_level": 1})


def test_every_row_of_the_fault_matrix_is_told_of() -> None:
    rows = re.findall(r"^   \* - (\d+)$", (ROOT / "tests" / "README.rst").read_text("utf-8"), re.MULTILINE)

    assert list(map(int, rows)) == list(range(1, 68))
