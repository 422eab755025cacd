"""``rigatoni tokens``: the positions of consumers, listed, shown, moved and deleted."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from .consumer import (
    Consumer,
    ConsumerCommand,
    about_a_consumer,
    confirm,
    json_option,
    uri_option,
    yes_option,
)
from .exits import HELD, NotThereError, say
from .headroom import headrooms, oplog_begin
from .moments import clock, moment, span
from .server import connected, now_tick, try_stream
from .table import table, word

if TYPE_CHECKING:
    from rigatoni import Position
    from rigatoni.client import Client, Cluster

#: Digits of a token that are shown: what it begins with, its time, and some of what tells it from others.
_SHOWN = 18

_scope_option = click.option("--scope", multiple=True, help="Only this one, as listed; may be repeated.")


@click.group(
    epilog=f"""\b
Examples:
  rigatoni tokens list
  rigatoni tokens show shop.orders --store /var/lib/shop/rigatoni.db
  rigatoni tokens seek --to 2h --uri mongodb://localhost:27017
  rigatoni tokens reset --name search --yes

Exit code {HELD}: a watcher holds the name; others: see rigatoni --help.
"""
)
def tokens() -> None:
    """Show, move or delete the positions that watchers go on from."""


@tokens.command(
    "list",
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni tokens list
  rigatoni tokens list --name search --json | jq .scope
  RIGATONI_URI=mongodb://… rigatoni tokens list
""",
)
@uri_option
@json_option
@about_a_consumer
def list_tokens(consumer: Consumer, as_json: bool) -> None:
    """List the positions of all names, or of one.

    AGE is how long ago the last change was made that is done. HEADROOM is how long the oplog will still have it, at the
    pace at which it forgets now; it is known while a watcher runs, or when the URI is given.
    """
    found, begin = [], oplog_begin(consumer.client)
    for name in consumer.names():
        positions = consumer.store.load(name)
        room = headrooms(positions, begin, consumer.store.status(name))
        found += [_described(name, scope, position, room.get(scope)) for scope, position in sorted(positions.items())]
    if as_json:
        for each in found:
            click.echo(json.dumps(each))
        return
    table(("NAME", "SCOPE", "AGE", "SAVED", "HEADROOM", "TOKEN"), [_row(each) for each in found])


@tokens.command(
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni tokens show
  rigatoni tokens show shop.orders --name search --token
  rigatoni tokens show --json --token | jq .token
""",
)
@click.argument("scope", nargs=-1)
@click.option("--token", is_flag=True, help="The whole resume token, which holds the _id of a document.")
@json_option
@about_a_consumer
def show(consumer: Consumer, scope: tuple[str, ...], token: bool, as_json: bool) -> None:
    """Show the positions of one name, or some of them."""
    for each, position in _chosen(consumer, scope).items():
        found = _described(consumer.one, each, position, None)
        found |= {"cluster": position.cluster, "fingerprint": position.fingerprint}
        del found["headroom"]
        if token:
            found["token"] = _whole(position)
        if as_json:
            click.echo(json.dumps(found))
            continue
        for key, value in found.items():
            click.echo(f"{key + ':':14}{_shown(key, value)}")
        click.echo()


@tokens.command(
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni tokens seek --to 2h --uri mongodb://localhost:27017
  rigatoni tokens seek --to earliest --scope shop.orders
  rigatoni tokens seek --to 2030-01-31T12:00Z --name search
  rigatoni tokens seek --to now --yes
""",
)
@click.option(
    "--to",
    required=True,
    metavar="WHEN",
    help='How far back (45s, 30m, 2h, 7d), "earliest", a time with its zone (2030-01-31T12:00Z), or "now".',
)
@_scope_option
@yes_option
@uri_option
@about_a_consumer
def seek(consumer: Consumer, to: str, scope: tuple[str, ...], yes: bool) -> None:
    """Move positions to a time: the next start begins there.

    Forwards, the changes in between are never handled; that is asked about. Backwards, they are handled again. A
    position governs what no narrower scope has a position for. The server is asked whether its oplog still has that
    time, and a time in its future is refused. While a watcher holds the name nothing is changed.
    """
    when = None if to == "now" else moment(to, "--to")
    with consumer.held() as name:
        before = _chosen(consumer, scope)
        with connected(consumer.client) as client:
            target = _target(client, when, before)
        skips = [each for each, position in before.items() if position.cluster_time < target.cluster_time]
        if skips:
            confirm(f"Changes of {_listed(skips)} will be skipped. Go on?", yes)
        consumer.store.save(name, dict.fromkeys(before, target))
    for each, position in before.items():
        say(f"{word(name)} {word(each)}: from {_time(position)} to {_time(target)}")


@tokens.command(
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni tokens reset
  rigatoni tokens reset --name search --scope shop.orders --yes
""",
)
@_scope_option
@yes_option
@about_a_consumer
def reset(consumer: Consumer, scope: tuple[str, ...], yes: bool) -> None:
    """Delete positions: the next start is like the first.

    It begins at the program's start_at, which is now where it has none; what changed before is never handled. To go to
    another time, seek. While a watcher holds the name nothing is changed.
    """
    with consumer.held() as name:
        found = _chosen(consumer, scope)
        confirm(f"Delete the positions of {word(name)}: {_listed(found)}?", yes)
        consumer.store.save(name, dict.fromkeys(found))
    say(f"{word(name)}: deleted {_listed(found)}")


def _chosen(consumer: Consumer, scopes: Sequence[str]) -> dict[str, Position]:
    """Find the positions that were asked for; none asked for is all."""
    name = consumer.known()
    found = consumer.store.load(name)
    if not found:
        raise NotThereError(f"{consumer.store.location} keeps no position for name {word(name)}")
    for scope in scopes:
        if scope not in found:
            raise NotThereError(f"name {word(name)} has no scope {word(scope)}: it has {_listed(found)}")
    return {scope: position for scope, position in sorted(found.items()) if not scopes or scope in scopes}


def _target(client: Client, when: object, before: Mapping[str, Position]) -> Position:
    """Make the position of a time, and have the server find out whether its oplog has it.

    :param before: the positions that are to be moved, by scope.
    :raises StreamError: when the time is not there, or the positions are of another cluster.
    """
    from rigatoni import ConfigurationError, Position
    from rigatoni.client import Cluster, starting_point

    cluster = Cluster.ask(client)
    _refuse_other_cluster(cluster, before)
    tick = now_tick(client)
    try:
        found = starting_point(when, client, cluster) or Position(None, tick)
    except ConfigurationError as error:
        raise ConfigurationError(str(error).replace("start_at", "--to")) from None
    for scope in before:
        _find(client, scope, found)
    return Position(None, found.cluster_time, cluster=cluster.identity)


def _refuse_other_cluster(cluster: Cluster, before: Mapping[str, Position]) -> None:
    from rigatoni import InvalidResumeTokenError

    for scope, position in before.items():
        if cluster.is_other(position.cluster):
            raise InvalidResumeTokenError(
                f"the position of {word(scope)} is of another cluster ({position.cluster!r}) than this server "
                f"({cluster.identity!r}): give the URI of that one"
            )


def _find(client: Client, scope: str, position: Position) -> None:
    from pymongo.errors import PyMongoError

    from rigatoni import InvalidResumeTokenError
    from rigatoni.errors import is_history_lost

    try:
        try_stream(client, scope, startAtOperationTime=position.cluster_time)
    except PyMongoError as error:
        if not is_history_lost(error):
            raise
        raise InvalidResumeTokenError(
            f"the oplog no longer has {_time(position)}: --to earliest is as far back as it goes"
        ) from error


def _described(name: str, scope: str, position: Position, headroom: float | None) -> dict[str, Any]:
    from bson.timestamp import Timestamp

    at: Timestamp = position.cluster_time
    return {
        "name": name,
        "scope": scope,
        "time": clock(at.time),
        "cluster_time": [at.time, at.inc],
        "age": round(max(0.0, time.time() - at.time), 3),
        "saved_at": round(position.saved_at, 3),
        "headroom": headroom,
        "token": _short(position),
    }


def _row(found: Mapping[str, Any]) -> list[str]:
    room = "unknown" if found["headroom"] is None else span(found["headroom"])
    saved = span(time.time() - found["saved_at"]) + " ago"
    return [word(found["name"]), word(found["scope"]), span(found["age"]), saved, room, found["token"] or "a time"]


def _shown(key: str, value: Any) -> str:
    if key == "age":
        return span(value)
    if key == "saved_at":
        return clock(value)
    if key == "cluster_time":
        return f"Timestamp({value[0]}, {value[1]})"
    if key == "token":
        return "none, it is a time" if value is None else json.dumps(value) if isinstance(value, dict) else value
    return word(value)


def _short(position: Position) -> str | None:
    if position.token is None:
        return None
    data: str = position.token["_data"]
    return data[:_SHOWN] + ".."


def _whole(position: Position) -> Any:
    from bson import json_util

    return None if position.token is None else json.loads(json_util.dumps(position.token))


def _time(position: Position) -> str:
    return clock(position.cluster_time.time)


def _listed(scopes: Sequence[str] | Mapping[str, Position]) -> str:
    return ", ".join(word(scope) for scope in scopes)
