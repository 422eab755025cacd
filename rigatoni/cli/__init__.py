"""The command line.

Nothing of rigatoni, pymongo or gevent is imported at the top of any of these files, so that a command can patch the
process before the first of them comes in.
"""

from __future__ import annotations

import io

import click

from .dead_letters import dead_letters
from .demo import demo
from .doctor import doctor
from .exits import CLEAN_STOP, INTERRUPTED, MEANINGS, masked
from .run import run
from .status import status
from .tokens import tokens
from .watch import watch

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in MEANINGS.items())
_EPILOG = f"""\b
Examples:
  rigatoni demo
  rigatoni doctor mongodb://localhost:27017 --database shop
  rigatoni run shop.handlers:watcher
  rigatoni status --name search
  rigatoni tokens list
  rigatoni watch mongodb://localhost:27017 --database shop | jq .operationType
  RIGATONI_URI=mongodb://… rigatoni watch -d shop -c orders -o insert --pretty

\b
Exit codes:
{_CODES}
"""


def _show_version(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from rigatoni import __version__

        click.echo(f"rigatoni {__version__}")
        context.exit()


@click.group(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
def rigatoni() -> None:
    """MongoDB change streams: at least once, resumable."""


for command in (dead_letters, demo, doctor, run, status, tokens, watch):
    rigatoni.add_command(command)


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        code = rigatoni.main(prog_name="rigatoni", standalone_mode=False)
    except click.ClickException as error:
        # A URI in the wrong place comes back in click's message.
        shown = io.StringIO()
        error.show(shown)
        click.echo(masked(shown.getvalue()), err=True, nl=False)
        return error.exit_code
    except click.Abort:
        return INTERRUPTED
    return code if isinstance(code, int) else CLEAN_STOP
