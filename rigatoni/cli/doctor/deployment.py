"""The server: who answers, what it allows, and what the connection string says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import time
from typing import TYPE_CHECKING, Any

from .finding import Finding, note, ok, problem, warning

if TYPE_CHECKING:
    from rigatoni import StreamError
    from rigatoni.client import Client
    from rigatoni.config import URI

#: What came with which version of the server.
_FEATURES = (
    ((6, 0), "pre- and post-images"),
    ((6, 0), "show_expanded_events"),
    ((6, 0, 9), "$changeStreamSplitLargeEvent"),
)
#: What a watcher cannot do without (startAfter), and the stub of an event over 16 MB ($bsonSize).
_NEEDED, _STUBS = (4, 2), (4, 4)
#: The states of members that hold data and follow, or vote: primary, secondary, arbiter.
_SOUND = {1, 2, 7}
#: Seconds that two clocks may be apart before what is read of them misleads.
_SKEW = 2.0


def examine_deployment(uri: str | None, database: str | None, collections: tuple[str, ...]) -> Iterator[Finding]:
    """Look at the connection string, the server, its privileges, images and oplog.

    Ends early where nobody answers, or where no change stream can be.
    """
    from rigatoni import ConfigurationError, StreamError
    from rigatoni.config import URI

    if uri is None:
        yield note("server", "not looked at: no URI was given", "rigatoni doctor URI, or RIGATONI_URI")
        return
    try:
        where = URI(uri)
    except ConfigurationError as error:
        yield problem("uri", str(error), "mongodb://user:password@host:27017/?replicaSet=name")
        return
    try:
        yield from _connected(where, database, collections)
    except StreamError as error:
        yield _refused(error, where)


def _connected(uri: URI, database: str | None, collections: tuple[str, ...]) -> Iterator[Finding]:
    from ..server import connected
    from .history import examine_history
    from .images import examine_images
    from .privileges import examine_privileges

    with connected(uri) as client:
        yield from _examine_options(client)
        asked = time()
        hello = client.admin.command("hello")
        clock = _examine_clock(hello, asked, time())
        yield from _examine_topology(hello, uri)
        yield from _examine_members(client)
        yield from _examine_version(client)
        yield clock
        if "setName" in hello or hello.get("msg") == "isdbgrid":
            yield from examine_privileges(client, database, collections)
            yield from examine_history(client)
            yield from examine_images(client, database, collections)


def _refused(error: StreamError, uri: URI) -> Finding:
    if error.code == 18:
        mend = "check user, password and authSource in the URI (a user is kept in one database, mostly admin)"
        return problem("server", "it refuses this user and password (authentication failed)", mend)
    if error.category == "configuration":
        return problem("server", str(error))
    mend = "start it, or correct hosts, replicaSet= and tls= of the URI"
    return problem("server", f"nobody at {uri} can be used: {error}", mend)


def _examine_options(client: Client) -> Iterator[Finding]:
    from rigatoni.client import weaknesses

    weak = weaknesses(client)
    if client.options.direct_connection:
        weak.append("directConnection=true (when this one member goes, nobody else is asked)")
    for each in weak:
        yield warning("uri", f"it sets {each}", "leave that out of the URI")
    if not weak:
        yield ok("uri", "no option of it weakens a promise")


def _examine_topology(hello: Mapping[str, Any], uri: URI) -> Iterator[Finding]:
    if hello.get("msg") == "isdbgrid":
        idle = "an idle shard delays the events of all by up to 10 s (server parameter periodicNoopIntervalSecs)"
        yield ok("server", f"{uri} is a mongos of a sharded cluster")
        yield note("server", idle)
        return
    if "setName" not in hello:
        mend = "start mongod with --replSet rs0, then in mongosh: rs.initiate()"
        yield problem("server", f"{uri} is a standalone server: change streams need a replica set", mend)
        return
    members = len(hello.get("hosts", ()))
    yield ok("server", f"replica set {hello['setName']!r}, members with data: {members}")
    if not hello.get("isWritablePrimary"):
        yield warning("server", "this member is not the primary", "name all members and replicaSet= in the URI")
    elif members == 1:
        yield note("server", "a set of one member is away while that one restarts; the watcher waits for it")


def _examine_members(client: Client) -> Iterator[Finding]:
    from pymongo.errors import OperationFailure

    try:
        members = client.admin.command("replSetGetStatus")["members"]
    except OperationFailure:
        # Not permitted, or no replica set; the set's own monitoring tells it too.
        return
    for member in members:
        if member["state"] not in _SOUND:
            yield warning(
                "server",
                f"member {member['name']} is {member['stateStr']}",
                "bring it back: without a majority of its members a set has no primary, and streams stand still",
            )


def _examine_version(client: Client) -> Iterator[Finding]:
    build = client.server_info()
    version, text = tuple(build["versionArray"][:3]), build["version"]
    if version < _NEEDED:
        yield problem("version", f"MongoDB {text} is too old: startAfter came with 4.2", "upgrade the server")
        return
    yield ok("version", f"MongoDB {text}")
    for since, feature in _FEATURES:
        if version < since or (len(since) == 2 and _compatibility(client, version) < since):
            yield note("version", f"no {feature}: it came with {'.'.join(map(str, since))}", "upgrade the server")
    if version < _STUBS:
        mend = 'on_oversize="stop", or upgrade the server'
        yield warning("version", "an event over 16 MB cannot be made a stub before 4.4", mend)


def _compatibility(client: Client, version: tuple[int, ...]) -> tuple[int, ...]:
    """Read the version whose features are switched on; where that is not permitted, take the server's own."""
    from pymongo.errors import OperationFailure

    try:
        answer = client.admin.command("getParameter", featureCompatibilityVersion=1)
    except OperationFailure:
        return version
    return tuple(map(int, answer["featureCompatibilityVersion"]["version"].split(".")))


def _examine_clock(hello: Mapping[str, Any], asked: float, answered: float) -> Finding:
    from datetime import timezone

    told = hello["localTime"].replace(tzinfo=timezone.utc).timestamp()
    # It looked at some moment in between: a long way to it is no difference of clocks.
    skew = told - min(max(told, asked), answered)
    if abs(skew) <= _SKEW:
        return ok("clock", f"the server's is {abs(skew):.1f} s apart")
    where = "ahead of" if skew > 0 else "behind"
    mend = "let NTP set both; lag is measured by the server's clock alone, ages shown here are not"
    return warning("clock", f"the server's is {abs(skew):.0f} s {where} this machine's", mend)
