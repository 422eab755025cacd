"""One cursor on the server, by plain commands through public API: aggregate, getMore, killCursors.

pymongo's own change stream and the server take turns, and it is pinned to a server that may be gone; these commands
come back undecoded, and go to whichever server is there. https://www.mongodb.com/docs/manual/reference/command/getMore/
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from bson import Int64, Timestamp
from bson.raw_bson import RawBSONDocument
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import PyMongoError

from .client import Cluster
from .config import ChangeStreamConfig
from .errors import InvalidResumeTokenError, StreamConnectionError, is_history_lost
from .hub import Call, Calls, Flag, GivenUp, wait_for_any
from .position import Position
from .reply import RAW, Codec, Reply
from .selection import STUB_OF_OVERSIZED, Selection

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: A command that says nothing for so long, beyond its await, is asked about by a ping over another connection.
PATIENCE = 5.0
#: The ping may take so long.
ANSWERING = 5.0
#: Seconds that a position may lie ahead of the cluster time before the server is asked for its clock.
AHEAD = 10
#: The server looks so long for an event after the position that a stream starts from.
LOOKING = 0.5


class Cursor:
    """A change stream cursor.

    No getMore has a time limit of its own: the server is silent as long as it scans oplog entries that do not concern
    the stream, and a limit would start that scan anew, for ever. While it is silent a ping tells a busy server from a
    dead one.

    :param calls: how blocking calls are made.
    :param stop: gives up the call that is waited for.
    :ivar guarded: whether an event that is too large to be sent comes without its images, from the next opening on.
    """

    def __init__(
        self,
        database: Database[Any],
        selection: Selection,
        config: ChangeStreamConfig,
        codec: Codec,
        read_preference: Any,
        calls: Calls,
        stop: Flag,
    ) -> None:
        self._database = database
        self._selection = selection
        self._config = config
        self._codec = codec
        self._read_preference = read_preference
        self._calls = calls
        self._stop = stop
        self._session: ClientSession | None = None
        self._id = 0
        self.catching_up = False
        self.guarded = False

    @property
    def is_open(self) -> bool:
        """Tell whether the server has the cursor, as far as its replies say, and nobody gave up waiting for one."""
        return self._id != 0 and self._session is not None

    @property
    def level(self) -> tuple[str | None, str | None]:
        """Name the database and the collection it is opened on; None for all."""
        return self._selection.database, self._selection.collection

    def pipeline(self, position: Position | None) -> list[Mapping[str, Any]]:
        """Say what the cursor asks for, from a position on."""
        config, stage = self._config, dict[str, Any]()
        if config.full_document is not None:
            stage["fullDocument"] = config.full_document
        if config.full_document_before_change is not None:
            stage["fullDocumentBeforeChange"] = config.full_document_before_change
        if config.show_expanded_events:
            stage["showExpandedEvents"] = True
        if self._selection.database is None:
            stage["allChangesForCluster"] = True
        if position is not None:
            # Never resumeAfter, which refuses the token of an invalidate event.
            started = (
                ("startAtOperationTime", position.cluster_time)
                if position.token is None
                else ("startAfter", position.token)
            )
            stage[started[0]] = started[1]
        match = [{"$match": self._selection.match}] if self._selection.match is not None else []
        guard = STUB_OF_OVERSIZED if self.guarded else ()
        return [{"$changeStream": stage}, *match, *config.pipeline, *guard]

    def open(self, position: Position | None) -> Reply:
        """Open the cursor; the reply holds no events, and its end is the position it starts from.

        :raises InvalidResumeTokenError: for a position in the server's future, until when it would be silent.
        """
        self.kill()
        command = self._aggregate(self.pipeline(position), 0)
        # A session without causal consistency; with it the server refuses the second getMore of a raw command (50738).
        self._session = self._database.client.start_session(causal_consistency=False)
        reply = self._reply(command, PATIENCE)
        self._id = reply.cursor_id
        if position and reply.cluster_time and position.cluster_time.time - reply.cluster_time.time > AHEAD:
            self._refuse_future(position.cluster_time)
        return reply

    def check(self, position: Position) -> None:
        """Have the server look whether its oplog holds what comes after a position.

        It does so only when it is asked for an event; :meth:`open` asks for none, and succeeds with any position.

        :raises PyMongoError: when it does not. Whatever else is wrong is left to be found by who opens and reads.
        """
        self.kill()
        pipeline = [*self.pipeline(position), {"$project": {"_id": 1}}]
        command = self._aggregate(pipeline, 1) | {"maxTimeMS": int(1000 * LOOKING)}
        self._session = self._database.client.start_session(causal_consistency=False)
        try:
            self._id = self._reply(command, PATIENCE).cursor_id
        except PyMongoError as error:
            # Out of time: it scans the oplog from there on, and has it therefore.
            if is_history_lost(error):
                raise
        self.kill()

    def get_more(self, count: int, floor: Position | None) -> Reply:
        """Wait for a reply of at most `count` events; it may be empty, and :attr:`is_open` may be False afterwards."""
        command = {
            "getMore": Int64(self._id),
            "collection": self._selection.collection or "$cmd.aggregate",
            "batchSize": count,
            "maxTimeMS": max(1, int(1000 * self._config.max_await_time)),
        }
        reply = self._reply(command, self._config.max_await_time + PATIENCE, floor)
        self._id = reply.cursor_id
        return reply

    def kill(self) -> Call[object] | None:
        """Begin to free the cursor and forget it; what comes of it is nobody's business."""
        cursor_id, self._id = self._id, 0
        return self._calls.start(partial(self._free, cursor_id)) if cursor_id else None

    def _free(self, cursor_id: int) -> object:
        command = {"killCursors": self._selection.collection or "$cmd.aggregate", "cursors": [Int64(cursor_id)]}
        return self._database.command(command, read_preference=self._read_preference)

    def _refuse_future(self, time: Timestamp) -> None:
        # The cluster time alone says nothing: that of a quiet set is the one of its last write.
        cluster = self._wait(partial(Cluster.ask, self._database.client), PATIENCE)
        if cluster.is_ahead(time):
            raise InvalidResumeTokenError(
                f"the position lies {time.time - cluster.now.time} s in the server's future: the server would stay "
                "silent until then"
            )

    def _aggregate(self, pipeline: list[Mapping[str, Any]], count: int) -> dict[str, Any]:
        command = {"aggregate": self._selection.collection or 1, "pipeline": pipeline, "cursor": {"batchSize": count}}
        return command if self._config.collation is None else {**command, "collation": self._config.collation}

    def _reply(self, command: dict[str, Any], quiet: float, floor: Position | None = None) -> Reply:
        if self._config.comment is not None:
            command["comment"] = self._config.comment
        session, self._session = self._session, None
        document = self._wait(partial(self._ask, command, session), quiet)
        # Only now, because the session of a call that was given up is never used again.
        self._session = session
        return Reply(document, self._codec, floor)

    def _ask(self, command: dict[str, Any], session: ClientSession | None) -> RawBSONDocument:
        document: RawBSONDocument = self._database.command(
            command, codec_options=RAW, session=session, read_preference=self._read_preference
        )
        if "aggregate" in command and self._stop.is_set() and (cursor_id := document["cursor"]["id"]):
            # Nobody waits for it any more, and the server would keep the cursor for ten minutes.
            self._free(cursor_id)
        return document

    def _wait(self, function: Callable[[], T], quiet: float) -> T:
        call = self._calls.start(function)
        try:
            while not wait_for_any((call.done, self._stop), quiet):
                self._ping(call)
                if not self.catching_up and not call.done.is_set():
                    logger.info("the server has been silent for %.0f s but answers pings: it is catching up", quiet)
                    self.catching_up = True
                quiet = PATIENCE
        finally:
            self.catching_up = False
        if not call.done.is_set():
            raise GivenUp("the call was given up")
        return call.result()

    def _ping(self, silent: Call[Any]) -> None:
        ping = self._calls.start(
            lambda: self._database.client.admin.command("ping", read_preference=self._read_preference)
        )
        # The silent call too, because it may be about to say why it was.
        if not wait_for_any((ping.done, silent.done, self._stop), ANSWERING):
            raise StreamConnectionError(f"the server was silent and did not answer a ping within {ANSWERING:.0f} s")
        if ping.done.is_set() and not silent.done.is_set():
            ping.result()
