"""What can be listened to while a watcher lives, in the order in which it happens. Logs and metrics are hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bson import Timestamp

from .events import ChangeEvent

logger = logging.getLogger(__name__)


class Hooks:
    """Observe a watcher: subclass it, override what you need, and give an object to ``Watcher(hooks=[…])``::

        class Alarm(Hooks):
            def dead_lettered(self, event, error):
                page_somebody(f"{event.collection} has a dead letter: {error!r}")

    Several hooks are called in their order. One that raises (an ``Exception`` or a ``gevent.Timeout``) is logged at
    ERROR with its traceback, and harms nothing: neither the watcher nor the other hooks. What is not overridden is not
    called and costs nothing.

    All methods are called in the watcher's hub: in a patched process that is the caller's, else that of the watcher's
    own thread. They should return quickly: one that blocks holds handlers and reading, one that waits cooperatively
    holds only the greenlet that calls it, which each method names. `stream` is the scope of a stream: ``""`` for the
    deployment, ``"shop"`` for a database, ``"shop.orders"`` for a collection. Times are in seconds.
    """

    def opened(self, stream: str) -> None:
        """A stream has a cursor: the first one, or a new one after an error.

        Called by the reader: once before ``start()`` returns "running", then each time the cursor is opened again. That
        does not prove that the stream works, for its first reply may still fail; then it is opened once more.
        """

    def received(self, stream: str, count: int, size: int) -> None:
        """A reply was read, and its events are about to be handed to their handlers.

        Called by the feeder, once for each reply that is not empty.

        :param count: events, from 1; those that were finished before a restart, and are left out now, count too.
        :param size: bytes of BSON.
        """

    def handled(self, event: ChangeEvent, seconds: float) -> None:
        """A handler returned.

        Called by the lane right after that, before the event counts as done: once for each event and handler, for a
        batch handler once for each event of the list. A return without ``ack()`` of a manual handler counts too.

        :param seconds: what the call took, without earlier attempts; for a batch the call with the whole list.
        """

    def failed(self, event: ChangeEvent, error: BaseException, attempt: int) -> None:
        """An attempt of a handler failed.

        Called by the lane, before the wait for another attempt or before `on_error` takes effect: once for each
        attempt, and for each event of a batch.

        :param error: what the handler raised; a ``gevent.Timeout`` when it was over its time.
        :param attempt: its number, from 1.
        """

    def dead_lettered(self, event: ChangeEvent, error: BaseException) -> None:
        """The event is among the dead letters.

        Called by the lane once the letter is committed, before the event counts as done. Not for "skip" and "stop".

        :param error: what the last attempt failed with.
        """

    def saved(self, stream: str, token: Mapping[str, Any] | None) -> None:
        """The position of the stream is in the store.

        Called by the saver once it is committed, at most every `save_interval`, and only when the position has moved;
        on a quiet stream too. The first time is before ``start()`` returns "running".

        :param token: the resume token; never log the whole of it, for it holds ``_id`` values. None when the position
            is a time.
        """

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        """The cursor is lost, or cannot be opened, and it will be tried again.

        Called by the reader before each wait; with ``""`` for the stream by a ``start()`` that waits for the server.
        :meth:`opened` follows when it has succeeded, :meth:`closed` when the attempts of an open stream are spent.

        :param error: why, a :class:`~rigatoni.StreamError`.
        :param attempt: its number, from 1; it begins anew once the server has replied.
        :param delay: the wait before it.
        """

    def gap(self, stream: str, since: Timestamp, until: Timestamp) -> None:
        """The oplog no longer has the position, and ``on_history_lost`` says to go on: what lies between is lost.

        Called by the reader before :meth:`opened`, once for each loss, which is logged at ERROR too.

        :param since: the cluster time of the position that is lost.
        :param until: the cluster time that the stream goes on from.
        """

    def closed(self, stream: str, error: BaseException | None) -> None:
        """The stream has ended.

        Called once for each stream that was opened, after the last position was saved.

        :param error: what ended the watcher; None after a stop.
        """

    def status(self) -> Mapping[str, Any]:
        """Return what is added to the status row, with which it comes to every process that sees the store.

        Called by the saver once a second while the watcher has the name (also while it starts and stops), and at the
        end, after all events. Where two hooks return the same key, the later one counts; a key of the row itself
        (``"state"``, ``"streams"`` …) cannot be replaced.

        :returns: values that JSON can hold; others are written as their text.
        """
        return {}


class HookChain(Hooks):
    """Call many hooks as one; one that raises is logged and does not keep the others from being called.

    :param harmless: what a hook may raise.
    """

    def __init__(self, hooks: Sequence[Hooks], harmless: tuple[type[BaseException], ...] = (Exception,)) -> None:
        self._harmless = harmless
        self._hooks = tuple(hooks)
        for name in (
            "opened",
            "received",
            "handled",
            "failed",
            "dead_lettered",
            "saved",
            "reconnecting",
            "gap",
            "closed",
        ):
            setattr(self, name, self._chain(name))

    def overrides(self, name: str) -> bool:
        """Tell whether any hook listens to `name`, so that nothing is measured for nobody."""
        return any(getattr(type(hook), name) is not getattr(Hooks, name) for hook in self._hooks)

    def status(self) -> dict[str, Any]:
        """Merge the status of all hooks; later ones win."""
        merged: dict[str, Any] = {}
        for hook in self._hooks:
            merged.update(self._safely(_status_of, hook) or {})
        return merged

    def _chain(self, name: str) -> Callable[..., None]:
        listeners = [
            getattr(hook, name) for hook in self._hooks if getattr(type(hook), name) is not getattr(Hooks, name)
        ]

        def call(*arguments: object) -> None:
            for listener in listeners:
                self._safely(listener, *arguments)

        return call

    def _safely(self, listener: Callable[..., Any], *arguments: object) -> Any:
        try:
            return listener(*arguments)
        except self._harmless:
            logger.exception("the hook %r failed", listener)
            return None


def _status_of(hook: Hooks) -> dict[str, Any]:
    # As a new dict here, so that a hook that returns something else fails where it is logged.
    return dict(hook.status())
