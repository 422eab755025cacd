"""``rigatoni watch``: the events of a server as lines."""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .exits import fatal_errors_end_it, say, warn_of_password
from .moments import moment
from .table import has_colour

if TYPE_CHECKING:
    from rigatoni import ChangeEvent, ChangeStreamConfig, Hooks, Watcher

_JAVASCRIPT = {"$function", "$accumulator", "$where"}
#: What the server sends without being asked for more.
_PLAIN = {"insert", "update", "replace", "delete", "drop", "rename", "dropDatabase", "invalidate"}

_EPILOG = """\b
Examples:
  rigatoni watch mongodb://localhost:27017 --database shop --pretty
  rigatoni watch -d shop -c orders -o insert -o update | jq -c .documentKey
  rigatoni watch -d shop --start-at 2h --full-document updateLookup > events.jsonl
  rigatoni watch --pipeline '[{"$match": {"fullDocument.total": {"$gt": 100}}}]'

Further options come from the environment, such as RIGATONI_MAX_RECONNECT_ATTEMPTS (5; 0 is for ever) or
RIGATONI_FULL_DOCUMENT_BEFORE_CHANGE: every option of ChangeStreamConfig.
"""


@click.command(short_help="Write the changes of a server as lines of JSON.", epilog=_EPILOG)
@click.argument("uri", envvar="RIGATONI_URI")
@click.option("-d", "--database", help="Only this database; default: the whole deployment.")
@click.option("-c", "--collection", multiple=True, help="Only this collection, or glob; may be repeated.")
@click.option("-o", "--operation", multiple=True, help="Only this operation, such as insert; may be repeated.")
@click.option(
    "--full-document",
    type=click.Choice(["default", "updateLookup", "whenAvailable", "required"]),
    help="Which document comes with an update.",
)
@click.option("--pipeline", metavar="JSON", help="Stages behind $changeStream, as (Extended) JSON.")
@click.option(
    "--start-at",
    metavar="WHEN",
    help='How far back (45s, 30m, 2h, 7d), "earliest", or a time with its zone (2030-01-31T12:00Z); default: now.',
)
@click.option("--pretty", is_flag=True, help="For eyes: over several lines, and coloured on a terminal.")
@click.pass_context
def watch(context: click.Context, /, uri: str, pretty: bool, **options: Any) -> None:
    """Write the changes of a server as lines of JSON, until SIGINT, SIGTERM, or the end of the pipe.

    The URI may stand in the environment variable RIGATONI_URI; a password should, because other users see the arguments
    of a process. Each line is one event in relaxed Extended JSON, written at once, in the server's order within a
    collection. After an error of the connection it goes on where it was. Messages go to the standard error stream.
    """
    from gevent import monkey

    monkey.patch_all()
    warn_of_password(context, uri)
    logging.basicConfig(format="rigatoni: %(levelname)s: %(message)s")
    # A fatal error gets its one line below.
    logging.getLogger("rigatoni.life").addFilter(lambda record: record.levelno < logging.ERROR)
    with fatal_errors_end_it():
        watcher = _watcher(uri, pretty, **options)
        _stop_with_reader(watcher)
        watcher.run()


def _watcher(
    uri: str,
    pretty: bool,
    *,
    database: str | None,
    collection: tuple[str, ...],
    operation: tuple[str, ...],
    full_document: str | None,
    pipeline: str | None,
    start_at: str | None,
) -> Watcher:
    from gevent.lock import RLock

    from rigatoni import MemoryStore, Watcher

    watcher = Watcher(
        uri,
        database,
        store=MemoryStore(),
        config=_config(full_document, pipeline, operation),
        start_at=moment(start_at, "--start-at"),
        # A line that cannot be written is never skipped.
        on_error="stop",
        hooks=[_ready(database)],
    )

    writing = RLock()

    @watcher.on(*operation, collection=collection or None)
    def show(event: ChangeEvent) -> None:
        try:
            # Whole lines, because collections have lanes of their own.
            with writing:
                _write(_line(event.raw, pretty))
        except ConnectionError:
            # A broken pipe, or a socket that was reset: whoever reads has gone.
            watcher.stop()

    return watcher


def _ready(database: str | None) -> Hooks:
    from rigatoni import Hooks

    class Ready(Hooks):
        """Say once that from now on a change is seen."""

        said = False

        def opened(self, stream: str) -> None:
            if not self.said:
                self.said = True
                what = "the whole deployment" if database is None else f"database {database!r}"
                say(f"watching {what}; Ctrl-C ends it")

    return Ready()


def _config(full_document: str | None, pipeline: str | None, operations: tuple[str, ...]) -> ChangeStreamConfig:
    from rigatoni import ChangeStreamConfig

    config = ChangeStreamConfig.from_mapping(os.environ)
    if full_document is not None:
        config = replace(config, full_document=full_document)
    if pipeline is not None:
        config = replace(config, pipeline=_stages(pipeline))
    return replace(config, show_expanded_events=config.show_expanded_events or not _PLAIN.issuperset(operations))


def _stages(text: str) -> list[dict[str, Any]]:
    from bson import json_util

    try:
        stages = json_util.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise click.BadParameter(f"this is no JSON: {error}", param_hint="--pipeline") from None
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise click.BadParameter('it is a list of stages, such as [{"$match": {…}}]', param_hint="--pipeline")
    found = _JAVASCRIPT & _keys(stages)
    if found:
        raise click.BadParameter(
            f"{', '.join(sorted(found))} would run JavaScript on the server", param_hint="--pipeline"
        )
    return stages


def _keys(value: object) -> set[str]:
    if isinstance(value, Mapping):
        return set(value).union(*map(_keys, value.values()))
    return set().union(*map(_keys, value)) if isinstance(value, list) else set()


def _line(raw: Mapping[str, Any], pretty: bool) -> str:
    from bson import json_util

    text: str = json_util.dumps(raw, indent=2 if pretty else None)
    if pretty and has_colour():
        text = re.sub(
            r'^( *)(".*?(?<!\\)")(?=: )', lambda key: key[1] + click.style(key[2], fg="cyan"), text, flags=re.M
        )
    return text + "\n"


def _write(text: str) -> None:
    """Write to the standard output; while whoever reads it takes his time, other greenlets go on."""
    from gevent.socket import wait_write

    rest, output = text.encode(), sys.stdout.fileno()
    while rest:
        wait_write(output)
        # A pipe that can be written to takes that much without blocking.
        rest = rest[os.write(output, rest[: select.PIPE_BUF]) :]


def _stop_with_reader(watcher: Watcher) -> None:
    """Stop when the reader of the pipe has gone, also where no event comes whose line would tell."""
    import gevent
    from gevent.socket import wait_read

    output = sys.stdout.fileno()

    def wait() -> None:
        # The writing end of a pipe is never readable but by the error that its reader has gone.
        wait_read(output)
        watcher.stop()

    if stat.S_ISFIFO(os.fstat(output).st_mode):
        gevent.spawn(wait)
