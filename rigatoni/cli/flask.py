"""``flask rigatoni``: commands about the watcher of a Flask application."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click
from flask.cli import AppGroup, ScriptInfo

from .exits import fatal_errors_end_it

if TYPE_CHECKING:
    from rigatoni import Watcher

group = AppGroup("rigatoni", help="Run the watcher of this application, or look at it.")


@group.command(with_appcontext=False, epilog="Example: flask --app shop rigatoni run")
@click.pass_context
def run(context: click.Context) -> None:
    """Run the watcher until SIGINT or SIGTERM, without serving requests.

    The process is patched by gevent before the application is imported, so that handlers may block. Where a worker of
    a web server watches under the same name it stands by, and takes over when that one ends.

    Signals, messages and exit codes are those of `rigatoni run`.
    """
    from gevent import monkey

    monkey.patch_all()
    with fatal_errors_end_it():
        watcher = watcher_of(context)
        # What the application has configured is left alone.
        if not logging.getLogger("rigatoni").hasHandlers():
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        watcher.run()


def watcher_of(context: click.Context) -> Watcher:
    """Load the application of the command line and give its watcher.

    :raises click.UsageError: when it has none.
    """
    app = context.ensure_object(ScriptInfo).load_app()
    extension = app.extensions.get("rigatoni")
    if extension is None:
        raise click.UsageError(
            f"the application {app.name!r} has no watcher: write Rigatoni(app), from rigatoni.contrib.flask"
        )
    with app.app_context():
        watcher: Watcher = extension.watcher
    return watcher
