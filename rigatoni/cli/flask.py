"""``flask rigatoni``: the commands about a consumer, for the watcher of a Flask application."""

from __future__ import annotations

import logging

import click
from flask.cli import ScriptInfo

from .consumer import Consumer
from .dead_letters import dead_letters
from .exits import fatal_errors_end_it
from .status import status
from .tokens import tokens


@click.group(
    "rigatoni",
    epilog="""\b
Examples:
  flask --app shop rigatoni run
  flask --app shop rigatoni status
  flask --app shop rigatoni tokens list
  flask --app shop rigatoni dead-letters replay --all
""",
)
@click.pass_context
def group(context: click.Context) -> None:
    """Run the watcher of the application, or look at it."""
    from gevent import monkey

    # Before the application is imported.
    monkey.patch_all()
    with fatal_errors_end_it():
        app = context.ensure_object(ScriptInfo).load_app()
        if "rigatoni" not in app.extensions:
            raise click.UsageError(
                f"the application {app.name!r} has no watcher: write Rigatoni(app), from rigatoni.contrib.flask"
            )
        context.with_resource(app.app_context())
        watcher = app.extensions["rigatoni"].watcher
    context.obj = Consumer(watcher.store, watcher.name, watcher._settings.client, watcher)


@group.command(epilog="Example: flask --app shop rigatoni run")
@click.pass_obj
def run(consumer: Consumer) -> None:
    """Run the watcher until SIGINT or SIGTERM, without serving requests.

    The process is patched by gevent before the application is imported, so that handlers may block. Where another
    process watches under the same name it stands by, and takes over when that one ends.

    Signals, messages and exit codes are those of `rigatoni run`.
    """
    assert consumer.watcher is not None
    with fatal_errors_end_it():
        # What the application has configured is left alone.
        if not logging.getLogger("rigatoni").hasHandlers():
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        consumer.watcher.run()


for command in (status, tokens, dead_letters):
    group.add_command(command)
