"""What the doctor finds, one line each."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass

import click

from ..table import coloured, sentence

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}
_INDENT = " " * 23
#: What is said of a check that this user may not make, or this server does not answer.
UNKNOWN = "unknown: not permitted"


@dataclass(frozen=True)
class Finding:
    """Say how one thing is.

    :param level: "ok", "note" (worth knowing), "warning" (works, and weakens a promise), or "problem" (does not work).
    :param subject: what was looked at, one or two words.
    :param text: what was found.
    :param mend: what to do, where there is something: an exact command, a role document, an option.
    """

    level: str
    subject: str
    text: str
    mend: str = ""

    def show(self) -> None:
        """Print it on one line; on a terminal text is wrapped beside the subject, with the mend below it."""
        text, mend = sentence(self.text), f"-> {sentence(self.mend)}" if self.mend else ""
        if sys.stdout.isatty():
            text = click.wrap_text(text, shutil.get_terminal_size().columns - 1, _INDENT, _INDENT).lstrip()
            # Not wrapped, so that a command can be copied.
            mend = mend and f"\n{_INDENT}{mend}"
        else:
            mend = mend and f" {mend}"
        level = coloured(f"{self.level:8}", fg=_COLOURS[self.level])
        click.echo(f"{level} {self.subject:13} {text}{mend}")


def ok(subject: str, text: str) -> Finding:
    """Make a finding that is as it should be."""
    return Finding("ok", subject, text)


def note(subject: str, text: str, mend: str = "") -> Finding:
    """Make a finding that is worth knowing."""
    return Finding("note", subject, text, mend)


def warning(subject: str, text: str, mend: str) -> Finding:
    """Make a finding that weakens a promise."""
    return Finding("warning", subject, text, mend)


def problem(subject: str, text: str, mend: str = "") -> Finding:
    """Make a finding that keeps a watcher from working; the text of an error holds its mend itself."""
    return Finding("problem", subject, text, mend)
