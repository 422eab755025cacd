"""``rigatoni demo``: see :mod:`rigatoni.demo`."""

from __future__ import annotations

import click

from .exits import CLEAN_STOP, FAILED, INTERRUPTED, fatal_errors_end_it


@click.command(
    short_help="Kill a program half-way, and count what was lost.",
    epilog="""\b
Examples:
  rigatoni demo
  rigatoni demo --operations 60000
""",
)
@click.option(
    "--operations",
    type=click.IntRange(min=100),
    default=6000,
    show_default=True,
    help="How many inserts, updates and deletes.",
)
@click.pass_context
def demo(context: click.Context, operations: int) -> None:
    """Kill a watching program half-way, start it again, and count what was lost.

    On a real mongod (from PATH, RIGATONI_MONGOD, or the extra embedded) that ends with the demo, as everything
    else that it starts or writes. Exit code 0 only if nothing was lost.
    """
    with fatal_errors_end_it():
        # Here, because it imports pymongo; this process needs no patch: the program that it kills is another one.
        from rigatoni.demo import Interrupted, ProgramFailed, show

        try:
            tally = show(operations)
        except Interrupted:
            context.exit(INTERRUPTED)
        except ProgramFailed as error:
            raise click.ClickException(str(error)) from None
    context.exit(FAILED if tally.lost else CLEAN_STOP)
