"""What commands ask a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bson import Timestamp

    from rigatoni.client import Client
    from rigatoni.config import URI

#: Milliseconds after which a server that searches its oplog has proved that it holds the beginning of it.
LOOKING = 2000


@contextmanager
def connected(where: str | URI | Client | None) -> Iterator[Client]:
    """Give a client, and close it when it is our own; what the driver raises becomes a StreamError.

    :param where: a URI, or a client.
    :raises click.UsageError: when nobody said where.
    """
    from pymongo.errors import PyMongoError

    from rigatoni import StreamError
    from rigatoni.client import connect
    from rigatoni.config import URI

    if where is None:
        raise click.UsageError("say which server: --uri or RIGATONI_URI")
    uri = URI(where) if isinstance(where, str) else where
    client = connect(uri, "command line") if isinstance(uri, URI) else uri
    try:
        yield client
    except PyMongoError as error:
        raise StreamError.from_pymongo(error) from error
    finally:
        if client is not where:
            client.close()


def now_tick(client: Client) -> Timestamp:
    """Return the cluster time just after the last change, where "now" begins."""
    from bson import Timestamp

    from rigatoni import ConfigurationError

    time = client.admin.command("ping").get("operationTime")
    if time is None:
        raise ConfigurationError("the server has no cluster time: change streams need a replica set")
    return Timestamp(time.time, time.inc + 1)


def try_stream(client: Client, scope: str, **start: Any) -> None:
    """Open a change stream and ask it for an event, so that the server finds out whether it can.

    :param scope: "", a database, or ``database.collection``.
    :param start: of the stage ``$changeStream``.
    :raises PyMongoError: when it cannot.
    """
    from bson import Int64
    from pymongo.errors import ExecutionTimeout

    name, _, collection = scope.partition(".")
    database = client.get_database(name or "admin")
    stage: dict[str, Any] = {**start} if name else {**start, "allChangesForCluster": True}
    command: dict[str, Any] = {
        "aggregate": collection or 1,
        "pipeline": [{"$changeStream": stage}, {"$project": {"_id": 1}}],
        "cursor": {"batchSize": 1},
        "maxTimeMS": LOOKING,
    }
    try:
        cursor = database.command(command)["cursor"]["id"]
    except ExecutionTimeout:
        # It searches from there on, and has it therefore.
        return
    if cursor:
        database.command({"killCursors": collection or "$cmd.aggregate", "cursors": [Int64(cursor)]})
