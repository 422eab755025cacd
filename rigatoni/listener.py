"""``ChangeStreamListener``: the low-level iterator of one change stream, on the same ``stream.py`` as ``Watcher``."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Literal

from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.database import Database

from .client import oldest
from .config import ChangeStreamConfig
from .cursor import Cursor
from .errors import ConfigurationError, ResumeTokenPersistenceError, StreamError, StreamInvalidatedError
from .events import AckableEvent
from .forks import inert_after_fork
from .hooks import Hooks
from .hub import Calls, Flag, GivenUp
from .position import Position
from .registration import ENDING_OPERATIONS
from .reply import Event
from .selection import Selection
from .stream import Stream
from .watermark import Batch, Watermark

Source = Collection[Any] | Database[Any] | MongoClient[Any]


class ChangeStreamListener(Iterator[AckableEvent]):
    """Iterate over the change events of a collection, a database or a client; each is acknowledged by its ``ack()``, in
    any order.

    Reconnects by itself and goes on after the last event that was read: nothing is repeated, nothing left out. Adds no
    stage of its own to the pipeline. The cursor is opened by ``with``, or by the first ``next()`` or :meth:`try_next`.
    It always starts with ``startAfter``, never with ``resumeAfter``, so that a token of an invalidate event works too.
    One greenlet or thread iterates; :meth:`close` and ``ack()`` may come from any. In a child of the process that
    opened it, it is closed.

    :param source: what to watch.
    :param config: a :class:`ChangeStreamConfig`; its ``resume_token`` says where to start, None is now.
    :param on_token: called with a resume token once everything up to it is acknowledged, never before: while iterating,
        at the latest after one await, and by :meth:`close`. If it raises, ``next()`` raises
        :class:`ResumeTokenPersistenceError`.

    https://www.mongodb.com/docs/manual/changeStreams/
    """

    def __init__(
        self,
        source: Source,
        config: ChangeStreamConfig | None = None,
        on_token: Callable[[Mapping[str, Any]], object] | None = None,
    ) -> None:
        if not isinstance(source, (Collection, Database, MongoClient)):
            raise ConfigurationError(
                f"a listener watches a Collection, a Database or a MongoClient of pymongo, not {type(source).__name__}"
            )
        self._source = source
        self._config = config or ChangeStreamConfig()
        self._on_token = on_token
        self._stop = Flag()
        self._stream: Stream | None = None
        # Two threads that took the same finished batch off would pass the one behind it.
        self._bookkeeping = threading.RLock()
        self._watermark = Watermark()
        self._events: deque[AckableEvent] = deque()
        self._token = self._reported = self._config.resume_token
        self._is_dead = False
        self._is_closed = False
        self._reason = ""
        inert_after_fork(self)

    @property
    def state(self) -> Literal["active", "reconnecting", "closed"]:
        """Say "active", "reconnecting" or "closed"."""
        if self._stop.is_set():
            return "closed"
        return "active" if self._stream is not None and self._stream.state == "active" else "reconnecting"

    @property
    def resume_token(self) -> Mapping[str, Any] | None:
        """Return the resume token up to which everything is acknowledged; at first the one it started from."""
        with self._bookkeeping:
            if not self._is_closed:
                self._token = self._watermark.advance() or self._token
            return self._token

    def __iter__(self) -> ChangeStreamListener:
        return self

    def __next__(self) -> AckableEvent:
        while not self._stop.is_set():
            event = self.try_next()
            if event is not None:
                return event
        raise StopIteration

    def try_next(self) -> AckableEvent | None:
        """Return the next event, or None after at most one getMore without one.

        :raises StreamInvalidatedError: after the last event of a stream that was dropped or renamed.
        :raises ResumeTokenPersistenceError: when `on_token` raised.
        :raises StreamError: when the stream is at its end.
        """
        if self._stop.is_set():
            return None
        self._report()
        try:
            if not self._events:
                self._read()
        except GivenUp:
            return None
        except StreamError as error:
            self._shut(error)
            raise
        return self._events.popleft() if self._events else None

    def close(self) -> None:
        """Tell `on_token` the last time, and free the server's cursor; a ``next()`` that waits elsewhere ends.

        An ``ack()`` that comes later does nothing.

        :raises ResumeTokenPersistenceError: when `on_token` raises.
        """
        if self._is_closed:
            return
        self._shut(None)
        try:
            self._report()
        finally:
            self._is_closed = True

    def forked(self) -> None:
        """Become inert: called in a forked child, where the parent's cursor and its tokens are none of its business."""
        if self._stream is not None:
            # Another thread may have held it, which is not there in the child.
            self._bookkeeping = threading.RLock()
            self._is_closed = True
            self._stop.set()

    def __enter__(self) -> ChangeStreamListener:
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        if self._is_dead:
            raise StreamInvalidatedError(
                f"the stream is invalidated ({self._reason or 'the server closed its cursor'}): a new listener with "
                "this resume_token goes on after it",
                reason=self._reason or "invalidated",
            )
        stream = self._opened()
        before = stream.at
        try:
            reply = stream.pull()
        except BaseException as error:
            # Interrupted behind a reply, it would go on after events that were never seen; while it waited for one, it
            # may go on.
            if stream.at != before:
                self._shut(error)
            raise
        try:
            for events, end, size in reply.slices():
                stream.sized(len(events), size)
                self._track(events, end or events[-1]["_id"], size)
        except BaseException as error:
            # As above, with Ctrl-C for instance.
            self._shut(error)
            raise
        self._is_dead = not reply.cursor_id
        self._report()

    def _track(self, events: list[Event], end: Mapping[str, Any], size: int) -> None:
        batch = Batch(events, end, size)
        with self._bookkeeping:
            if events:
                self._watermark.track(batch)
            else:
                self._watermark.extend(end)
        for index, event in enumerate(events):
            # One assignment, so that it may come from any thread.
            self._events.append(AckableEvent(event, partial(batch.done.__setitem__, index, 1)))
            if event.get("operationType") in ENDING_OPERATIONS and event["operationType"] != "invalidate":
                self._reason = event["operationType"]

    def _opened(self) -> Stream:
        if self._stream is None:
            self._stream = self._made()
            token = self._config.resume_token
            try:
                position = self._stream.open(None if token is None else Position.of(token))
            except BaseException as error:
                self._shut(error)
                raise
            self._token, self._reported = token or position.token, token
        return self._stream

    def _made(self) -> Stream:
        source, calls = self._source, Calls()
        if isinstance(source, Collection):
            database, selection = source.database, Selection(source.database.name, source.name)
        elif isinstance(source, Database):
            database, selection = source, Selection(source.name, None)
        else:
            database, selection = source.get_database("admin"), Selection(None, None)
        client = database.client
        return Stream(
            Cursor(database, selection, self._config, source.codec_options, source.read_preference, calls, self._stop),
            self._config,
            scope=".".join(name for name in (selection.database, selection.collection) if name),
            calls=calls,
            stop=self._stop,
            hooks=Hooks(),
            find_oldest=lambda: oldest(client),
        )

    def _report(self) -> None:
        # Held during the call too, so that tokens arrive one after the other, in order.
        with self._bookkeeping:
            token = self.resume_token
            if token is None or token == self._reported or self._on_token is None:
                return
            self._reported = token
            try:
                self._on_token(dict(token))
            except Exception as error:
                self._on_token = None
                self._shut(error)
                raise ResumeTokenPersistenceError(
                    f"on_token failed with {type(error).__name__}: a new listener goes on from the last token it kept"
                ) from error

    def _shut(self, error: BaseException | None) -> None:
        self._stop.set()
        if self._stream is not None:
            self._stream.close(error)
