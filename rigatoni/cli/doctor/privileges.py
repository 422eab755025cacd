"""What this user may do: what a watcher needs is really tried, the rest is looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..server import try_stream
from ..table import word
from .finding import UNKNOWN, Finding, note, ok, problem

if TYPE_CHECKING:
    from rigatoni.client import Client

_NOT_PERMITTED = "not permitted"


def examine_privileges(client: Client, database: str | None, collections: tuple[str, ...]) -> Iterator[Finding]:
    """Open the stream that a watcher of this would open, and look at what is optional."""
    scope = database or ""
    if len(collections) == 1:
        scope = f"{database}.{collections[0]}"
    refusal = _refusal(client, scope)
    if refusal is None:
        yield ok("privileges", f"a change stream on {_named(scope)} can be opened")
    elif refusal != _NOT_PERMITTED:
        yield problem("stream", f"a change stream on {_named(scope)} cannot be opened: {refusal}")
    else:
        yield from _not_permitted(client, scope, collections)
    yield _examine_identity(client)


def _not_permitted(client: Client, scope: str, collections: tuple[str, ...]) -> Iterator[Finding]:
    mend = _grant(client, scope) if _users(client) else "put user and password into the URI, in RIGATONI_URI"
    who = "" if _users(client) else " without a user"
    yield problem("privileges", f"a change stream on {_named(scope)} is {_NOT_PERMITTED}{who}", mend)
    if len(collections) > 1 and all(_refusal(client, f"{scope}.{name}") is None for name in collections):
        yield note(
            "privileges",
            "each of the collections may be watched by itself",
            "give each a stream of its own by watcher.watch(collection), and register no other handler",
        )


def _refusal(client: Client, scope: str) -> str | None:
    from pymongo.errors import OperationFailure

    from rigatoni import StreamError

    try:
        try_stream(client, scope)
    except OperationFailure as error:
        # The server's own text would hold the whole command.
        return _NOT_PERMITTED if error.code == 13 else str(StreamError.from_pymongo(error))
    return None


def _grant(client: Client, scope: str) -> str:
    """Write the commands for mongosh that give this user what a watcher needs."""
    name, _, collection = scope.partition(".")
    resource = {"db": name, "collection": collection}
    privilege = {"resource": resource, "actions": ["find", "changeStream"]}
    role = json.dumps({"role": "rigatoni", "privileges": [privilege], "roles": []})
    return f"use admin; db.createRole({role}); {_to_user(client, 'rigatoni')}"


def _to_user(client: Client, role: str) -> str:
    granted = json.dumps([{"role": role, "db": "admin"}])
    users = _users(client)
    if not users:
        return f"db.grantRolesToUser(USER, {granted})"
    return f"use {users[0]['db']}; db.grantRolesToUser({json.dumps(users[0]['user'])}, {granted})"


def _users(client: Client) -> list[dict[str, str]]:
    found: list[dict[str, str]] = client.admin.command("connectionStatus")["authInfo"]["authenticatedUsers"]
    return found


def _examine_identity(client: Client) -> Finding:
    from pymongo.errors import OperationFailure

    try:
        client.admin.command("replSetGetConfig")
    except OperationFailure as error:
        if error.code != 13:
            return note("identity", "a mongos has no identity: a position of another cluster may not be recognised")
        text = f"{UNKNOWN} (replSetGetConfig); another cluster is told by the name of its set alone"
        return note("identity", text, _to_user(client, "clusterMonitor"))
    return ok("identity", "positions are tied to this cluster by its id")


def _named(scope: str) -> str:
    return word(scope) if scope else "the whole deployment"
