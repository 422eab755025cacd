"""``rigatoni doctor``: whether a watcher would work with this server, from this place, and what to mend."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict

import click

from ..consumer import store_option
from ..exits import PROBLEM, fatal_errors_end_it, warn_of_password
from .finding import Finding

_EPILOG = f"""\b
Examples:
  rigatoni doctor mongodb://localhost:27017 --database shop
  RIGATONI_URI=mongodb://… rigatoni doctor -d shop -c orders -c customers
  rigatoni doctor --store /var/lib/shop/rigatoni.db
  rigatoni doctor -d shop --json | jq 'select(.level == "problem")'

Exit code {PROBLEM}: there is a problem; others: see rigatoni --help.
"""


@click.command(epilog=_EPILOG)
@click.argument("uri", envvar="RIGATONI_URI", required=False)
@click.option("-d", "--database", help="What would be watched; default: the whole deployment.")
@click.option("-c", "--collection", multiple=True, help="Only this collection of it; may be repeated.")
@store_option
@click.option("--json", "as_json", is_flag=True, help="As JSON, one line for each finding.")
@click.pass_context
def doctor(
    context: click.Context,
    uri: str | None,
    database: str | None,
    collection: tuple[str, ...],
    store: str,
    as_json: bool,
) -> None:
    """Say what keeps a watcher from working, and how to mend it.

    A server is examined, and this place. Each line is one finding: ok, a note, a warning (it works, and a promise is
    weaker), or a problem (it does not work), with its mend behind "->". Nothing is changed, neither on the server nor
    in the store. What this user may not look at is unknown, and that is no problem.
    """
    if collection and database is None:
        raise click.UsageError("a collection needs its database: --database")
    warn_of_password(context, uri)
    # The findings say it themselves.
    logging.getLogger("rigatoni").addHandler(logging.NullHandler())
    levels = []
    with fatal_errors_end_it():
        for finding in _findings(uri, database, collection, store):
            levels.append(finding.level)
            if as_json:
                click.echo(json.dumps(asdict(finding)))
            else:
                finding.show()
    if not as_json:
        click.echo(f"{levels.count('problem')} problems, {levels.count('warning')} warnings", err=True)
    if "problem" in levels:
        context.exit(PROBLEM)


def _findings(uri: str | None, database: str | None, collections: tuple[str, ...], store: str) -> Iterator[Finding]:
    # Here, because they import pymongo when they look.
    from rigatoni import Watcher

    from .deployment import examine_deployment
    from .place import examine_place
    from .program import examine_program

    # Refuses what is no name of a database; nothing is opened.
    Watcher(database=database)
    yield from examine_deployment(uri, database, collections)
    yield from examine_place(store)
    yield from examine_program()
