"""What can be listened to while a watcher lives, in the order in which it happens. Logs and metrics are hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .events import ChangeEvent

logger = logging.getLogger(__name__)


class Hooks:
    """Observe a watcher: override what you need.

    Every method is called in the watcher's hub and should return quickly. One that raises is logged and harms nothing.
    Those called per event (:meth:`handled`) cost nothing unless they are overridden. `stream` is the scope of a stream:
    ``""`` for the deployment, ``"shop"`` for a database, ``"shop.orders"`` for a collection.
    """

    def opened(self, stream: str) -> None:
        """A stream has a cursor: the first one, or a new one after an error."""

    def received(self, stream: str, count: int, size: int) -> None:
        """A reply with `count` events and `size` bytes was read."""

    def handled(self, event: ChangeEvent, seconds: float) -> None:
        """A handler returned after `seconds`. Called per event and handler."""

    def failed(self, event: ChangeEvent, error: BaseException, attempt: int) -> None:
        """Attempt number `attempt` (from 1) of a handler ended with `error`."""

    def dead_lettered(self, event: ChangeEvent, error: BaseException) -> None:
        """The event is among the dead letters."""

    def saved(self, stream: str, token: Mapping[str, Any] | None) -> None:
        """The position of the stream is in the store; never log a whole token, it holds ``_id`` values."""

    def reconnecting(self, stream: str, error: BaseException, attempt: int, delay: float) -> None:
        """The cursor is lost; attempt number `attempt` to open it again follows in `delay` seconds."""

    def gap(self, stream: str, since: object, until: object) -> None:
        """The server no longer has the changes between two cluster times, and ``on_history_lost`` says to go on."""

    def closed(self, stream: str, error: BaseException | None) -> None:
        """The stream has ended; `error` is None after a stop."""

    def status(self) -> Mapping[str, Any]:
        """Return what is merged into the status row, as values that JSON can hold."""
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
