"""``FakeClient``: a server in memory, for tests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import bson
from bson import Timestamp
from bson.codec_options import DEFAULT_CODEC_OPTIONS, CodecOptions
from pymongo.read_preferences import ReadPreference

from rigatoni import ChangeEvent, ConfigurationError, Watcher

from .changes import Changes
from .oplog import high_water_mark
from .server import PLAIN, Server, plain

Codec = CodecOptions[Any]

#: Seconds between two looks whether a watcher is done.
LOOK = 0.001


class FakeClient(Changes):
    """Stand in for a ``MongoClient`` in tests: what is played is what a :class:`~rigatoni.Watcher` sees.

    It answers the commands of a change stream, from memory and at once; all else of the watcher is real: reading ahead,
    lanes, retries, acknowledgements, dead letters, positions, reconnection. What it cannot do as a server would it
    refuses: stages other than ``$match``, ``$project`` of fields and ``$unset``, collations, every other command.

    From any greenlet or thread, in a process that is patched by gevent or not.

    :param database: where changes happen, when nothing else is said; default "shop".
    :param codec_options: of the client, as of a ``MongoClient``.
    """

    def __init__(self, database: str = "shop", *, codec_options: Codec = DEFAULT_CODEC_OPTIONS) -> None:
        super().__init__(database, codec_options)
        self._server = Server()
        self.codec_options = codec_options
        self.read_preference = ReadPreference.PRIMARY
        self.nodes: frozenset[tuple[str, int | None]] = frozenset()
        #: As those of a client that is made for watching.
        self.options = SimpleNamespace(
            load_balanced=False,
            server_selection_timeout=5.0,
            timeout=None,
            pool_options=SimpleNamespace(max_pool_size=None, socket_timeout=None),
        )

    # What a test says.

    def play(self, *events: ChangeEvent | Mapping[str, Any]) -> list[ChangeEvent]:
        """Let changes happen, in this order and at this moment.

        :param events: made by :func:`make_event`, or raw ones. Their ids and times are made anew.
        :returns: them, with the ids and times under which handlers see them.
        :raises ConfigurationError: for what the server would never send.
        """
        raw = [event.raw if isinstance(event, ChangeEvent) else event for event in events]
        written = self._server.write([plain(each, self.codec_options) for each in raw])
        return [
            ChangeEvent(bson.decode(bson.encode(each, codec_options=PLAIN), self.codec_options)) for each in written
        ]

    def drain(self, watcher: Watcher, timeout: float = 10.0) -> None:
        """Wait until a watcher has finished all that was played: handled, acknowledged, skipped or dead-lettered.

        That is when its saved positions are past it; one with its own ``save_interval`` takes up to that long.

        :param timeout: seconds; default 10.
        :raises TimeoutError: when it has not; the text says what is in flight.
        :raises StreamError: what ended the watcher.
        :raises ConfigurationError: when it does not run.
        """
        with self._server.changing():
            end = high_water_mark(self._server.oplog.live())
        deadline = time.monotonic() + timeout
        while not _is_past(watcher, end):
            if watcher.error is not None:
                raise watcher.error
            if watcher.state in ("created", "stopping", "stopped"):
                raise ConfigurationError(f"{watcher!r} finishes nothing: write 'with watcher:' around drain()")
            if time.monotonic() > deadline:
                stats = watcher.stats()
                told = {name: stats[name] for name in ("state", "received", "handled", "failed", "in_flight")}
                raise TimeoutError(f"{watcher!r} has not finished what was played within {timeout} s: {told}")
            time.sleep(LOOK)

    # What goes wrong on cue.

    def fail(self, error: int | Exception, times: int = 1, command: str = "getMore") -> None:
        """Let the next commands fail; a getMore that waits for events is the next one, too.

        :param error: a code of the server, such as 43 (CursorNotFound), 10107 (NotWritablePrimary), 13 (Unauthorized)
            or 286 (ChangeStreamHistoryLost), or an exception such as ``pymongo.errors.AutoReconnect()``.
        :param times: how many of them; default 1.
        :param command: "aggregate" (which opens a stream), "getMore" (default), "killCursors", "hello", "ping",
            "replSetGetConfig" or "find" (of the oldest change).
        :raises ConfigurationError: for a command that no watcher sends, and for what is no error.
        """
        with self._server.changing() as faults:
            faults.plan(error, times, command)

    def down(self) -> None:
        """Take the server away: until :meth:`up` every command fails at once with ``ServerSelectionTimeoutError``."""
        with self._server.changing() as faults:
            faults.is_down = True
            self._server.break_off()

    def up(self) -> None:
        """Bring the server back, with all that happened meanwhile."""
        with self._server.changing() as faults:
            faults.is_down = False

    def lose_history(self) -> None:
        """Let the oplog forget all that was played; who stopped, or is behind, cannot go on from there (286)."""
        with self._server.changing():
            self._server.oplog.forget()

    # What a watcher asks.

    @property
    def admin(self) -> FakeDatabase:
        """Return the database that commands about the server go to."""
        return self.get_database("admin")

    @property
    def local(self) -> FakeDatabase:
        """Return the database of the oplog."""
        return self.get_database("local")

    def get_database(self, name: str) -> FakeDatabase:
        """Return a database."""
        return FakeDatabase(self, self._server, name)

    def start_session(self, *, causal_consistency: bool | None = None) -> object:
        """Return a session, which the server here has no need of."""
        return object()

    def close(self) -> None:
        """End: whatever comes later fails as with a client that was closed."""
        with self._server.changing() as faults:
            faults.is_closed = True

    def _collections(self, database: str) -> list[str]:
        return self._server.oplog.collections(database)


class FakeDatabase:
    """A database of a :class:`FakeClient`: what commands are sent to."""

    def __init__(self, client: FakeClient, server: Server, name: str) -> None:
        self._server = server
        self.client = client
        self.name = name

    def command(
        self,
        command: str | Mapping[str, Any],
        *,
        codec_options: Codec = DEFAULT_CODEC_OPTIONS,
        read_preference: object = None,
        session: object = None,
    ) -> Any:
        """Send a command and decode the answer."""
        sent = plain({command: 1} if isinstance(command, str) else command, self.client.codec_options)
        return bson.decode(self._server.answer(self.name, sent), codec_options)

    def __getitem__(self, name: str) -> FakeOplog:
        if (self.name, name) != ("local", "oplog.rs"):
            raise ConfigurationError(
                f"a FakeClient has no collection {self.name}.{name}: it holds changes, no documents"
            )
        return FakeOplog(self._server)


class FakeOplog:
    """The collection ``local.oplog.rs``."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def find_one(self, **options: object) -> dict[str, Timestamp]:
        """Find the oldest entry."""
        return {"ts": self._server.oldest()}


def _is_past(watcher: Watcher, end: Mapping[str, Any]) -> bool:
    scopes = watcher.stats()["streams"]
    positions = watcher.store.load(watcher.name) if scopes else {}
    return bool(scopes) and all(scope in positions and positions[scope].covers(end) for scope in scopes)
