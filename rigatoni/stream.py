"""A change stream that lives longer than its cursors: pull a reply at a time, reopen, rescue.

https://www.mongodb.com/docs/manual/changeStreams/#resume-a-change-stream
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from bson import Timestamp, json_util
from bson.errors import BSONError
from pymongo.errors import ConnectionFailure, NetworkTimeout, PyMongoError

from .clock import ServerClock
from .config import ChangeStreamConfig
from .cursor import Cursor
from .errors import StreamConnectionError, StreamError, is_history_lost, is_oversize, is_token_not_found
from .events import TRUNCATED, ChangeEvent
from .hooks import Hooks
from .hub import Calls, Flag, GivenUp
from .position import Position
from .reply import Reply
from .retry import reconnecting

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: A reply is asked for in as many events as probably fit into this. The fewer replies the less they cost, and larger
#: ones gain little; the hub is not held by them, for they are decoded in slices.
REPLY_SIZE = 512 * 1024
#: A reply may come so many seconds after the server's await is over.
PROMPT = 1.0
#: Closing waits so long for the server to free the cursor.
CLOSING = 0.1
#: The oplog may lose its oldest entry between the question for it and the start from it.
EARLIEST_ATTEMPTS = 5
#: Replies that are read again at most to find the event that was too large.
SEARCHED = 10


class Stream:
    """Read a change stream.

    After a retryable error it goes on after the last reply that was read; nothing is repeated, nothing left out. A
    token that its own filter no longer lets through (280) is rescued by its cluster time, leaving out what was read.

    :param scope: the name of the stream in logs, hooks and the store.
    :param cluster: the identity of the cluster, for positions.
    :param now: the server's time, where it is known.
    :param on_history_lost: "stop", "now" or "earliest".
    :param on_oversize: "stub" or "stop".
    :param most: events asked for at most, whatever the configuration says.
    """

    def __init__(
        self,
        cursor: Cursor,
        config: ChangeStreamConfig,
        *,
        scope: str,
        calls: Calls,
        stop: Flag,
        hooks: Hooks,
        find_oldest: Callable[[], Timestamp],
        cluster: str = "",
        now: Timestamp | None = None,
        on_history_lost: str = "stop",
        on_oversize: str = "stop",
        most: int = 2**31 - 1,
    ) -> None:
        self._cursor = cursor
        self._config = config
        self._calls = calls
        self._stop = stop
        self._hooks = hooks
        self._find_oldest = find_oldest
        self._cluster = cluster
        self._on_history_lost = on_history_lost
        self._on_oversize = on_oversize
        self._most = min(config.batch_size, most)
        self._event_size = 1024.0
        self.at: Position | None = None
        self._floor: Position | None = None
        self._lost: Position | None = None
        self._earliest_attempts = self._hang_ups = 0
        self._is_unheard = False
        opening, pulling = partial(self._rescuing, self._open_checked), partial(self._rescuing, self._pull)
        self._open_again = reconnecting(opening, config, stop, self._reconnecting, is_first=True)
        self._pull_again = reconnecting(pulling, config, stop, self._reconnecting)
        self.fingerprint = _fingerprint(cursor, config)
        self.scope = scope
        self.state = "reconnecting"
        self.reconnects = 0
        self.clock = ServerClock(now, config.max_await_time + PROMPT)

    @property
    def catching_up(self) -> bool:
        """Tell whether the server is silent because it scans its oplog."""
        return self._cursor.catching_up

    def open(self, position: Position | None, *, check: bool = False) -> Position:
        """Open the cursor at a position, None for now, and return the position it starts from.

        :param check: whether a position that the oplog no longer has is to be found here, not by the first pull.
        :raises StreamError: when it cannot be opened, after the configured attempts.
        """
        self.at = position
        self._checks = check
        opened = self._open_again()
        self._connected()
        return opened

    def pull(self) -> Reply:
        """Wait for one reply, empty or not; reconnect as often as the configuration allows.

        :raises StreamError: when the stream is at its end.
        :raises GivenUp: when it is told to stop.
        """
        try:
            return self._pull_again()
        except BaseException as error:
            if not isinstance(error, (StreamError, GivenUp)):
                # Interrupted, so that nobody knows whether this cursor has given a reply that was not taken note of.
                self._cursor.kill()
            raise

    def sized(self, count: int, size: int) -> None:
        """Learn the size of events, for the length of the next reply."""
        if count:
            self._event_size = 0.7 * self._event_size + 0.3 * size / count

    def position(self, token: Mapping[str, Any]) -> Position:
        """Make the position of a resume token of this stream."""
        return Position.of(token, self.fingerprint, self._cluster)

    def close(self, error: BaseException | None = None) -> None:
        """Free the server's cursor, without waiting long for it."""
        self.state = "closed"
        killing = self._cursor.kill()
        if killing is not None:
            killing.done.wait(CLOSING)
        self._hooks.closed(self.scope, error)

    def _rescuing(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except (PyMongoError, BSONError, StreamError) as error:
                self._cursor.kill()
                if not self._rescued(error):
                    raise self._told(error) from error

    def _open_checked(self) -> Position:
        if self._checks and self.at is not None:
            self._cursor.check(self.at)
        return self._open()

    def _open(self) -> Position:
        self._is_unheard = False
        reply = self._cursor.open(self.at)
        self._is_unheard = True
        self.clock.hear(reply.operation_time)
        # A server without postBatchResumeToken still says what time it is.
        self.at = (
            self.position(reply.end)
            if reply.end
            else Position(None, reply.operation_time or Timestamp(0, 1), self.fingerprint, self._cluster)
        )
        if self._lost is not None:
            self._tell_of_gap(self._lost, self.at)
        self._hooks.opened(self.scope)
        return self.at

    def _pull(self) -> Reply:
        if not self._cursor.is_open:
            self._open()
        before = self.at
        reply = self._cursor.get_more(self._count(), self._floor)
        self._is_unheard = False
        if reply.end is not None:
            self.at = self.position(reply.end)
            if self._floor is not None and not self._floor.covers(reply.end):
                self._floor = None
        if not self._cursor.is_open and reply.is_empty and self.at == before:
            raise StreamConnectionError("the server closed the cursor and does not say why")
        self.clock.hear(reply.operation_time)
        self._connected()
        if self._cursor.guarded:
            for event in _cut(reply):
                logger.warning("stream %r: %r was over 16 MB: it comes without %s", self.scope, event, event.truncated)
        return reply

    def _count(self) -> int:
        return max(1, min(self._most, int(REPLY_SIZE / self._event_size)))

    def _rescued(self, error: Exception) -> bool:
        if self._guards(error):
            return True
        at = self.at
        if is_token_not_found(error) and at is not None and at.token is not None:
            # Without an id of the set nobody knows; see Cluster.identity.
            is_doubtful = at.fingerprint == self.fingerprint and not self._cluster.partition("/")[2]
            level = logging.WARNING if is_doubtful else logging.INFO
            why = "this is another cluster, or its" if is_doubtful else "its"
            told = "stream %r: %s filter no longer lets its token through; going on by cluster time"
            logger.log(level, told, self.scope, why)
            # What was read before an earlier rescue stays read, also when this one comes before it has passed that.
            self._floor = at if self._floor is None else self._floor.later(at)
            self.at = Position(None, at.cluster_time, at.fingerprint, at.cluster)
            return True
        is_over = self._on_history_lost == "stop" or self._earliest_attempts == EARLIEST_ATTEMPTS
        if is_over or not is_history_lost(error):
            return False
        if self._earliest_attempts and self._stop.wait(self._config.backoff(self._earliest_attempts)):
            raise GivenUp("stopped while looking for the oldest change")
        self._earliest_attempts += 1
        self._lost = self._lost or at
        earliest = self._on_history_lost == "earliest"
        self.at = Position(None, self._calls.run(self._find_oldest, self._stop)) if earliest else None
        return True

    def _guards(self, error: Exception) -> bool:
        """Let the server cut what it cannot send, where that may help; tell whether it surely does."""
        # A reply that only its resume token makes too large gets no error: the server hangs up, at every reopening.
        is_cut_off = isinstance(error, ConnectionFailure) and not isinstance(error, NetworkTimeout)
        hangs_up = self._is_unheard and is_cut_off and StreamError.from_pymongo(error).code is None
        self._hang_ups = self._hang_ups + 1 if hangs_up else 0
        was_guarded, is_too_large = self._cursor.guarded, is_oversize(error)
        self._cursor.guarded = self._on_oversize == "stub" and (is_too_large or hangs_up)
        return is_too_large and self._cursor.guarded and not was_guarded

    def _told(self, error: Exception) -> StreamError:
        told = StreamError.from_pymongo(error, resuming=self.at is not None)
        if self._hang_ups > 1:
            hint = "it hangs up on each new cursor: is an _id over 2 MB next? It may pass once anything else is written"
            return StreamConnectionError(f"{told}; {hint}")
        if not is_oversize(told):
            return told
        if self._cursor.guarded:
            text = (
                "an event is over 16 MB even without its images: its _id is too large, or what the pipeline adds; "
                'leave such documents out by a stage such as {"$match": {"$expr": {"$lt": '
                '[{"$bsonSize": "$documentKey"}, 3000000]}}}'
            )
        else:
            text = f"{told}: {self._find_oversized()}"
        return StreamConnectionError(text, code=told.code, labels=told.labels, is_retryable=False)

    def _find_oversized(self) -> str:
        """Read again, with what is too large cut, to say which event it is."""
        self._cursor.guarded = True
        try:
            self._cursor.open(self.at)
            for _ in range(SEARCHED):
                for event in _cut(self._cursor.get_more(self._count(), self._floor)):
                    return repr(event)
        except (PyMongoError, BSONError, StreamError):
            # The error that is told is the one that was there before.
            pass
        finally:
            self._cursor.kill()
            self._cursor.guarded = False
        return "its _id is too large to be told"

    def _tell_of_gap(self, lost: Position, found: Position) -> None:
        times = lost.cluster_time, found.cluster_time
        logger.error("stream %r: the server no longer has the changes from %s to %s", self.scope, *times)
        self._hooks.gap(self.scope, *times)
        self._lost = None

    def _reconnecting(self, error: StreamError, attempt: int, delay: float) -> None:
        if attempt == 1:
            logger.warning("stream %r: reconnecting after: %s", self.scope, error)
        self.state = "reconnecting"
        self.reconnects += 1
        self._hooks.reconnecting(self.scope, error, attempt, delay)

    def _connected(self) -> None:
        if self.state == "reconnecting" and self.reconnects:
            logger.info("stream %r: connected again", self.scope)
        self.state = "active"
        self._earliest_attempts = 0


def _cut(reply: Reply) -> Iterator[ChangeEvent]:
    """Find the events that the server has cut, without decoding replies that hold none."""
    if TRUNCATED.encode() in reply.cursor:
        for events, _, _ in reply.slices():
            yield from (ChangeEvent(event) for event in events if TRUNCATED in event)


def _fingerprint(cursor: Cursor, config: ChangeStreamConfig) -> str:
    asked = [cursor.pipeline(None), cursor.level, config.collation]
    return hashlib.sha256(json_util.dumps(asked, default=repr).encode()).hexdigest()[:16]
