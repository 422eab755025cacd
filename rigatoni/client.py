"""The client made for watching, and what a watcher must know of its cluster."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol
from urllib.parse import parse_qsl

from bson import CodecOptions, Timestamp
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.read_preferences import ReadPreference
from pymongo.server_description import ServerDescription

from .config import URI
from .errors import ConfigurationError, StreamConnectionError, StreamError, is_history_lost
from .position import Position

logger = logging.getLogger(__name__)

Client = MongoClient[Any]


class ClientLike(Protocol):
    """What can be watched: a ``MongoClient``, or what a test puts in its place."""

    @property
    def nodes(self) -> frozenset[tuple[str, int | None]]:
        """Name the servers; a database has none, whose every attribute is a collection."""

    def get_database(self, name: str) -> Any:
        """Return what commands are sent to."""

    def close(self) -> None:
        """End."""


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

#: So that the driver's monitor notices a frozen or restarting server in seconds; what the URI says wins.
OWN_OPTIONS: dict[str, Any] = {
    "maxPoolSize": None,
    "serverSelectionTimeoutMS": 5000,
    "heartbeatFrequencyMS": 5000,
    "connectTimeoutMS": 5000,
}

LOAD_BALANCED = "loadBalanced=true is not supported: getMore commands would reach servers that do not have the cursor"
IMPATIENT = "a server without news, or one that searches its oplog, may be silent for longer"

#: How often an oplog is read that loses its beginning meanwhile.
_ATTEMPTS = 10


class StickyServer:
    """Choose the server of last time as long as it is eligible.

    Plain getMore commands are not pinned: with several eligible servers (a read preference other than primary, several
    mongos) each could go to a server that does not have the cursor.
    https://pymongo.readthedocs.io/en/stable/api/pymongo/mongo_client.html (server_selector)
    """

    def __init__(self) -> None:
        self._address: tuple[str, int | None] | None = None

    def __call__(self, servers: Sequence[ServerDescription]) -> Sequence[ServerDescription]:
        if not servers:
            return servers
        chosen = next((server for server in servers if server.address == self._address), None) or random.choice(servers)
        self._address = chosen.address
        return [chosen]


class _Client(MongoClient[Any]):
    """A client whose repr holds no option: that of pymongo 4.8 shows a session token, to tools that show variables."""

    def __repr__(self) -> str:
        return f"<MongoClient of {sorted(self.nodes)}>"


def connect(uri: URI, name: str) -> Client:
    """Make the client for a watcher from a URI; nothing is sent yet.

    :param name: the consumer's name, shown to the server's operator as part of ``appName``.
    :raises ConfigurationError: for a URI that pymongo refuses; the text never holds the URI.
    :raises StreamConnectionError: when the DNS does not answer for a ``mongodb+srv://`` URI.
    """
    said = _said(uri)
    if "loadbalanced=true" in said:
        raise ConfigurationError(LOAD_BALANCED)
    for limit in said & {"sockettimeoutms", "timeoutms"}:
        logger.warning("the URI sets %s, which can end the stream again and again: %s; leave it out", limit, IMPATIENT)
    if "maxpoolsize" in said:
        logger.warning("the URI sets maxPoolSize: each stream holds a connection while it waits; leave it out")
    options = {key: value for key, value in OWN_OPTIONS.items() if key.lower() not in said}
    if "appname" not in said:
        options["appName"] = f"rigatoni {name}"
    try:
        return _Client(uri.reveal(), server_selector=StickyServer(), **options)
    except Exception as error:
        # Raised outside, because pymongo's text can hold the tail of a password that was not escaped, and its frames
        # hold all of it.
        kind, cause = type(error).__name__, type(error.__cause__ or error.__context__)
        if isinstance(error, OSError) and error.filename:
            kind = f"{kind}: {error.filename!r}"
    # Of dnspython, which is a requirement of pymongo's and not ours.
    if cause.__module__.partition(".")[0] == "dns":
        raise StreamConnectionError(f"the DNS does not tell the servers of {uri} ({cause.__name__})")
    raise ConfigurationError(
        f"pymongo refuses the URI for {uri} ({kind}): correct its options, and escape user name and password by "
        "urllib.parse.quote_plus"
    )


def _said(uri: URI) -> set[str]:
    """List the names of the options, and whether it is loadBalanced=true; other values can be secrets."""
    query = [(key.lower(), value) for key, value in parse_qsl(uri.reveal().partition("?")[2])]
    return {key for key, _ in query} | {"loadbalanced=true" for option in query if option == ("loadbalanced", "true")}


def warn_of(client: Client, made_by: int) -> None:
    """Log one WARNING that names the settings of a client passed in that weaken a promise.

    :param made_by: the process that handed the client over.
    :raises ConfigurationError: for loadBalanced=true.
    """
    if client.options.load_balanced:
        raise ConfigurationError(LOAD_BALANCED)
    weak = weaknesses(client)
    if made_by != os.getpid():
        weak.append("it was made before a fork (pymongo's clients are not fork-safe)")
    if weak:
        logger.warning(
            "the client that was passed in is used as it is, but: %s. A URI gets a client made for watching",
            "; ".join(weak),
        )


def weaknesses(client: Client) -> list[str]:
    """Name the settings of a client that weaken a promise, each with what it does."""
    options, weak = client.options, []
    if options.pool_options.max_pool_size is not None:
        weak.append(f"maxPoolSize={options.pool_options.max_pool_size} (each stream holds a connection while it waits)")
    if options.server_selection_timeout > 5:
        weak.append(
            f"serverSelectionTimeoutMS={options.server_selection_timeout * 1000:.0f} (a planned restart costs as long)"
        )
    if options.pool_options.socket_timeout is not None or options.timeout is not None:
        weak.append(f"socketTimeoutMS or timeoutMS ({IMPATIENT})")
    if client.read_preference != ReadPreference.PRIMARY:
        weak.append(
            f"read preference {client.read_preference.name} (a getMore may reach a server that has not the cursor)"
        )
    return weak


@dataclass(frozen=True, slots=True)
class Cluster:
    """Who the servers are, and what time it is there.

    :param identity: the set's name and, where ``replSetGetConfig`` is permitted, its id; "" on mongos.
    :param now: the cluster time, or the server's clock, whichever is later.
    """

    identity: str
    now: Timestamp

    @classmethod
    def ask(cls, client: Client) -> Cluster:
        """Ask the server."""
        hello: dict[str, Any] = client.admin.command("hello", codec_options=CodecOptions(tz_aware=True))
        cluster_time = hello.get("$clusterTime", {}).get("clusterTime", Timestamp(0, 1))
        # The cluster time of an idle set is that of its last write, by default up to twenty seconds ago.
        now = max(cluster_time, Timestamp(int(hello["localTime"].timestamp()), 1))
        set_name = hello.get("setName", "")
        try:
            config = client.admin.command("replSetGetConfig") if set_name else {}
        except OperationFailure:
            # Not permitted to every user, and its answer only makes the identity sharper.
            config = {}
        set_id = config.get("config", {}).get("settings", {}).get("replicaSetId", "")
        return cls(f"{set_name}/{set_id}", now)

    def is_ahead(self, time: Timestamp) -> bool:
        """Tell whether a cluster time lies in the server's future."""
        # A stream that begins "now" begins one tick after the server's time; and no two clocks agree in everything.
        return time.time > self.now.time + 1

    def is_other(self, identity: str) -> bool:
        """Tell whether a stored identity is surely another cluster's; what is unknown on either side does not count."""
        pairs = zip(self.identity.split("/"), identity.split("/"), strict=False)
        return any(mine and theirs and mine != theirs for mine, theirs in pairs)


def oplog_entry(client: Client, direction: int = 1) -> dict[str, Any] | None:
    """Read the oldest entry of the oplog, or with -1 the latest: when it was written, and what a note among them says.

    :raises PyMongoError: what the driver raises.
    """
    attempt = 1
    while True:
        try:
            found: dict[str, Any] | None = client.local["oplog.rs"].find_one(
                sort=[("$natural", direction)], projection={"ts": 1, "o.msg": 1}
            )
            return found
        except OperationFailure as error:
            # The oplog lost its beginning in the midst of the question (136): the next answer is as good.
            if attempt == _ATTEMPTS or not is_history_lost(error):
                raise
            attempt += 1


def oldest(client: Client) -> Timestamp:
    """Read the cluster time of the oldest change that the oplog still holds."""
    try:
        entry = oplog_entry(client)
    except PyMongoError as error:
        found = StreamError.from_pymongo(error)
        if isinstance(found, ConfigurationError) and found.code == 13:
            text = 'the user may not read the oplog: "earliest" and headroom need the action find on local.oplog.rs'
            found = ConfigurationError(text, code=found.code)
        raise found from error
    if entry is None:
        raise ConfigurationError("the server has no oplog: 'earliest' needs a replica set")
    timestamp: Timestamp = entry["ts"]
    return timestamp


def moment(text: str) -> timedelta | datetime | str:
    """Read a ``start_at`` that was written down: a way back (45s, 30m, 2h, 7d), "earliest", or an ISO time.

    :raises ValueError: for anything else, and for a time without its zone; the message does not hold the text.
    """
    if text == "earliest":
        return text
    back = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if back:
        return timedelta(**{_UNITS[back[2]]: int(back[1])})
    try:
        found = datetime.fromisoformat(re.sub("[Zz]$", "+00:00", text))
    except ValueError:
        raise ValueError('it is neither a way back (2h), nor "earliest", nor an ISO time') from None
    if found.tzinfo is None:
        raise ValueError("it has no time zone: with a Z at its end it is UTC")
    return found


def starting_point(start_at: object, client: Client, cluster: Cluster) -> Position | None:
    """Translate ``start_at`` into a position; None is now.

    :raises ConfigurationError: for a naive datetime, a future time, or something that is no time.
    """
    if start_at is None:
        return None
    try:
        if isinstance(start_at, Mapping):
            found = Position.of(start_at)
        else:
            found = Position(None, _time(start_at, client, cluster.now))
    except ValueError as error:
        # What is no token, or lies before 1970.
        raise ConfigurationError(f"start_at: {error}") from error
    if cluster.is_ahead(found.cluster_time):
        raise ConfigurationError(
            f"start_at is {found.cluster_time.time - cluster.now.time} s ahead of the server's time: the server would "
            "stay silent until then"
        )
    return found


def _time(start_at: object, client: Client, now: Timestamp) -> Timestamp:
    if start_at == "earliest":
        return oldest(client)
    if isinstance(start_at, Timestamp):
        return start_at
    if isinstance(start_at, timedelta):
        if start_at < timedelta(0):
            raise ConfigurationError(
                f"start_at={start_at!r} is in the future: a timedelta counts back from now, so make it positive"
            )
        return Timestamp(max(now.time - int(start_at.total_seconds()), 0), 1)
    if isinstance(start_at, datetime):
        if start_at.tzinfo is None:
            raise ConfigurationError(
                "start_at is a naive datetime: give it a time zone, such as datetime.now(timezone.utc)"
            )
        return Timestamp(int(start_at.timestamp()), 1)
    raise ConfigurationError(
        f"start_at cannot be {start_at!r:.60}: None, 'earliest', a Timestamp, an aware datetime, a timedelta back from "
        "now, or a resume token"
    )
