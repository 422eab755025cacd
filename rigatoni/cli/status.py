"""``rigatoni status``: what a watcher last wrote of itself, for people, scripts and probes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from .consumer import Consumer, ConsumerCommand, about_a_consumer
from .exits import PROBLEM
from .moments import span
from .table import coloured, sentence, table, word

_COUNTS = ("received", "handled", "failed", "retried", "dead_lettered", "reconnects", "in_flight")
_HEADS = ("STREAM", "STATE", "LAG", "HEADROOM", "HANDLED", "FAILED", "LETTERS", "IN FLIGHT")


@click.command(
    cls=ConsumerCommand,
    epilog=f"""\b
Examples:
  rigatoni status
  rigatoni status --name search --store /var/lib/shop/rigatoni.db
  rigatoni status --json | jq .lag
  rigatoni status > /dev/null || echo "not well"

Exit code {PROBLEM}: the watcher is not well; others: see rigatoni --help.
""",
)
@click.option("--json", "as_json", is_flag=True, help="The row as JSON, with what is wrong under problems.")
@about_a_consumer
def status(consumer: Consumer, as_json: bool) -> None:
    """Show how a watcher is: what it last wrote of itself.

    It writes its status row once a second. Whichever process runs it, on this machine or in another container with the
    same volume, the row says the same.
    """
    from rigatoni.contrib.health import problems

    row = consumer.store.status(consumer.known())
    found = problems(row)
    if as_json:
        click.echo(json.dumps({**(row or {}), "problems": found}))
    else:
        _print(consumer.one, row, found)
    if found:
        click.get_current_context().exit(PROBLEM)


def _print(name: str, row: Mapping[str, Any] | None, found: list[str]) -> None:
    state = coloured("not well", fg="red") if found else coloured("well", fg="green")
    click.echo(f"{word(name)}: {state}")
    if row is not None:
        now = time.time()
        click.echo(
            f"{word(row.get('state'))}: pid {row.get('pid')} on {word(row.get('host'))}, started "
            f"{span(now - row.get('since', now))} ago, row written {span(now - row['saved_at'])} ago"
        )
        click.echo(", ".join(f"{count.replace('_', ' ')} {row.get(count, 0)}" for count in _COUNTS))
        table(_HEADS, [_row(scope, stream) for scope, stream in sorted(row.get("streams", {}).items())])
    for problem in found:
        click.echo(f"{coloured('problem', fg='red')}: {sentence(problem)}")


def _row(scope: str, stream: Mapping[str, Any]) -> list[str]:
    state = "catching up" if stream.get("catching_up") else word(stream.get("state"))
    times = [_span(stream.get("lag")), _span(stream.get("headroom"))]
    counts = [str(stream.get(count, 0)) for count in ("handled", "failed", "dead_lettered", "in_flight")]
    return [word(scope), state, *times, *counts]


def _span(seconds: float | None) -> str:
    return "unknown" if seconds is None else span(seconds)
