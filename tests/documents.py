"""The pages of the manual, read by tests that run what stands in them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^( *)\.\. code-block:: python\n((?:\1    .*\n|\n)+)", re.MULTILINE)


class Page:
    """A page and the blocks of Python in it.

    :param path: from the root of the repository.
    :ivar blocks: their text, in order.
    """

    def __init__(self, path: str) -> None:
        self.path = ROOT / path
        self.text = self.path.read_text("utf-8")
        self.blocks = [dedent(body).strip("\n") + "\n" for _, body in _BLOCK.findall(self.text)]
        self._taken: set[str] = set()

    def take(self, part: str) -> str:
        """Return the one block that holds this text; whoever takes a block has to run it."""
        (found,) = [block for block in self.blocks if part in block]
        self._taken.add(found)
        return found

    @property
    def left(self) -> list[str]:
        """The blocks that nobody has taken."""
        return [block for block in self.blocks if block not in self._taken]
