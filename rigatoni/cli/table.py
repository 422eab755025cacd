"""Lines of text whose columns stand below each other, whatever the names in them contain."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence

import click

#: What needs no quotes to be told from the text around it.
_PLAIN = re.compile(r"[!#-&(-\[\]-~]+")
_GAP = "  "
#: A column is never cut below this.
_LEAST = 8


def word(value: object) -> str:
    """Write a name on one line, in ASCII: plain where that is clear, else quoted and escaped."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else ascii(text)


def sentence(value: object) -> str:
    """Write a text on one line, in ASCII; what is so already stays as it is."""
    return printable(" ".join(str(value).split()))


def printable(line: str) -> str:
    """Escape what is not ASCII, or would drive a terminal."""
    return "".join(each if " " <= each <= "~" else ascii(each)[1:-1] for each in line)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below their heads; on a terminal what is too wide is cut, the widest columns first.

    :param heads: of the columns.
    :param rows: of cells in ASCII, each one on one line.
    """
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    if sys.stdout.isatty():
        _narrow(widths, shutil.get_terminal_size().columns)
    for number, line in enumerate(lines):
        cells = [_cut(cell, width).ljust(width) for cell, width in zip(line, widths, strict=True)]
        text = _GAP.join(cells).rstrip()
        click.echo(coloured(text, bold=True) if number == 0 else text)


def coloured(text: str, *, fg: str | None = None, bold: bool | None = None) -> str:
    """Style a text where that is wanted."""
    return click.style(text, fg=fg, bold=bold) if has_colour() else text


def has_colour() -> bool:
    """Tell whether the output is seen by somebody who has not asked for none (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _narrow(widths: list[int], room: int) -> None:
    while sum(widths) + len(_GAP) * (len(widths) - 1) > room and max(widths) > _LEAST:
        widths[widths.index(max(widths))] -= 1


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 2] + ".."
