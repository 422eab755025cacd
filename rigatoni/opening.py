"""How streams are opened: the cluster is asked, stored positions are checked, the stages are put together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pymongo
from bson import Timestamp
from pymongo.errors import PyMongoError

from .client import Client, Cluster, connect, oldest, starting_point, warn_of
from .config import URI
from .cursor import Cursor
from .delivery import Delivery
from .errors import ConfigurationError, InvalidResumeTokenError, StreamError, is_history_lost
from .hub import Calls, Flag
from .lane import Shared
from .lanes import Lanes
from .pipe import Pipe
from .plan import Plan
from .position import Position, resume
from .retry import reconnecting
from .settings import Settings
from .stream import EARLIEST_ATTEMPTS, Stream

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds that a server may take to answer the last words of a client.
FAREWELL = 0.1


class Opening:
    """Open the streams of one life.

    :param plans: which streams.
    :param calls: how blocking calls are made.
    :param fail: called when a lane ends as it should not.
    :param stop: gives everything up.
    :param left: set once nobody waits for handlers any more.
    :ivar opened: what is open, and to be closed; also when another stream cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        plans: Sequence[Plan],
        calls: Calls,
        fail: Callable[[BaseException], None],
        stop: Flag,
        left: Flag,
    ) -> None:
        self._settings = settings
        self._plans = plans
        self._calls = calls
        self._fail = fail
        self._stop = stop
        self._left = left
        self.opened: list[Pipe] = []
        self._is_own = isinstance(settings.client, URI)
        self._client = self._patiently(self._connect)

    def pipes(self) -> list[Pipe]:
        """Open every stream at its position.

        :raises StreamError: when one cannot be opened, after the configured attempts.
        """
        settings = self._settings
        stored = settings.store.load(settings.name)
        cluster = self._patiently(lambda: Cluster.ask(self._client))
        check_positions(stored, cluster, settings.store.location)
        made = [(plan, self._pipe(plan, stored, cluster)) for plan in self._plans]
        self._tell_of_starts(made)
        if settings.on_history_lost == "earliest":
            self._try_earliest()
        for plan, pipe in made:
            begin = partial(starting_point, plan.start_at, self._client, cluster)
            self._open(pipe, begin, EARLIEST_ATTEMPTS if plan.start_at == "earliest" else 1)
            self.opened.append(pipe)
        return self.opened

    def find_oldest(self) -> Timestamp:
        """Read the cluster time of the oldest change that the oplog still holds; blocks."""
        return oldest(self._client)

    def close(self, timeout: float) -> None:
        """Close the client, when it is our own."""

        def close() -> None:
            with pymongo.timeout(FAREWELL):
                self._client.close()

        if self._is_own:
            closing = self._calls.start(close)
            # One that knows no server looks for one first, in steps of half a second, to end its sessions there.
            if self._client.nodes:
                closing.done.wait(timeout)

    def _connect(self) -> Client:
        settings = self._settings
        if not isinstance(settings.client, URI):
            warn_of(settings.client, settings.made_by)
            return settings.client
        # For mongodb+srv:// this asks the DNS, which may be away like any server.
        client = connect(settings.client, settings.name)
        if self._stop.is_set():
            client.close()
        return client

    def _patiently(self, function: Callable[[], T]) -> T:
        """Call what may find nobody there, as often as the configuration allows."""

        def call() -> T:
            try:
                return self._calls.run(function, self._stop)
            except PyMongoError as error:
                raise StreamError.from_pymongo(error) from error

        def tell(error: StreamError, attempt: int, delay: float) -> None:
            if attempt == 1:
                logger.warning("watcher %r: waiting for the server: %s", self._settings.name, error)
            self._settings.hooks.reconnecting("", error, attempt, delay)

        return reconnecting(call, self._settings.config, self._stop, tell, is_first=True)()

    def _tell_of_starts(self, made: Sequence[tuple[Plan, Pipe]]) -> None:
        new = [plan for plan, pipe in made if pipe.resumption.start is None and plan.start_at is None]
        for plan, pipe in made:
            if pipe.resumption.start is not None and plan.start_at is not None:
                logger.info("stream %r goes on where it was: start_at is not used", plan.scope)
        if new:
            logger.warning(
                "watcher %r starts from now: %s holds nothing for it (streams: %s)",
                self._settings.name,
                self._settings.store.location,
                ", ".join(repr(plan.scope) for plan in new),
            )

    def _try_earliest(self) -> None:
        try:
            self._patiently(self.find_oldest)
        except ConfigurationError as error:
            # Now, and not only on the day on which it is needed.
            logger.warning("watcher %r: on_history_lost='earliest' cannot work: %s", self._settings.name, error)

    def _open(self, pipe: Pipe, begin: Callable[[], Position | None], attempts: int) -> None:
        start = pipe.resumption.start
        try:
            pipe.open(self._patiently(begin) if start is None else start)
        except InvalidResumeTokenError as error:
            if start is None and attempts > 1 and is_history_lost(error):
                # The oplog lost its oldest entry between the question for it and the start from it.
                return self._open(pipe, begin, attempts - 1)
            if start is None:
                raise
            row = f"the position of stream {pipe.scope!r} in {self._settings.store.location}"
            raise InvalidResumeTokenError(f"{row}: {error}", code=error.code) from error

    def _pipe(self, plan: Plan, stored: Mapping[str, Position], cluster: Cluster) -> Pipe:
        settings, room = self._settings, Flag()
        delivery = Delivery(
            retry=settings.retry,
            on_error=settings.on_error,
            bury=partial(settings.store.bury, settings.name),
            progress=room.set,
            hooks=settings.hooks,
            stop=self._stop,
            left=self._left,
        )
        return Pipe(
            self._stream(plan, cluster),
            Lanes(plan.lookup, plan.width, Shared(delivery, room.set, self._fail)),
            room=room,
            resumption=resume(stored, plan.scope, [other.scope for other in self._plans]),
            counts=delivery.counts,
            hooks=settings.hooks,
            max_in_flight=settings.max_in_flight,
            ends_when_invalidated=plan.is_declared_level and settings.on_invalidate == "stop",
            stop=self._stop,
        )

    def _stream(self, plan: Plan, cluster: Cluster) -> Stream:
        settings, client, config = self._settings, self._client, plan.config
        if config.comment is None and self._is_own:
            config = replace(config, comment={"rigatoni": settings.name})
        database = client.get_database(plan.selection.database or "admin")
        return Stream(
            Cursor(
                database,
                plan.selection,
                config,
                client.codec_options,
                client.read_preference,
                self._calls,
                self._stop,
            ),
            config,
            scope=plan.scope,
            calls=self._calls,
            stop=self._stop,
            hooks=settings.hooks,
            find_oldest=self.find_oldest,
            cluster=cluster.identity,
            now=cluster.now,
            on_history_lost=settings.on_history_lost,
            on_oversize=settings.on_oversize,
            most=settings.max_in_flight,
        )


def check_positions(stored: Mapping[str, Position], cluster: Cluster, location: str) -> None:
    """Refuse positions that the server would take in silence and then be silent, or give other events.

    :raises InvalidResumeTokenError: for a position of another cluster, or of the future.
    """
    for scope, position in stored.items():
        if cluster.is_other(position.cluster):
            raise InvalidResumeTokenError(
                f"the position of stream {scope!r} in {location} is of another cluster ({position.cluster!r}, "
                f"this is {cluster.identity!r}): use another store or name for each cluster"
            )
        if cluster.is_ahead(position.cluster_time):
            raise InvalidResumeTokenError(
                f"the position of stream {scope!r} in {location} lies "
                f"{position.cluster_time.time - cluster.now.time} s in the server's future: the server would stay "
                "silent until then; was it restored from a backup?"
            )
