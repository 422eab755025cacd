"""``Rigatoni``: watchers of Flask applications."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload
from weakref import WeakSet

import click
from flask import Blueprint, Flask, Request, current_app
from flask.cli import run_command
from flask.helpers import get_debug_flag
from werkzeug.serving import is_running_from_reloader

from rigatoni import AckableEvent, ChangeEvent, ConfigurationError, RetryPolicy, Watcher

from .binding import Binding

if TYPE_CHECKING:
    from typing_extensions import Unpack

F = TypeVar("F", bound=Callable[[ChangeEvent], object])
M = TypeVar("M", bound=Callable[[AckableEvent], object])
B = TypeVar("B", bound=Callable[[list[ChangeEvent]], object])
N = TypeVar("N", bound=Callable[[list[AckableEvent]], object])
Authorize = Callable[[Request], object] | Literal["public"]

#: Where an application keeps its :class:`Binding`: in itself, so that both are forgotten together.
_BINDING = "rigatoni.binding"


class _On(TypedDict, total=False):
    collection: str | Iterable[str] | None
    database: str | None
    fields: Iterable[str] | None
    concurrency: int | None
    retry: RetryPolicy | None
    on_error: Literal["dead_letter", "stop", "skip"] | None
    timeout: float | None


class _OnBatch(_On, total=False):
    max_size: int
    max_wait: float


class Rigatoni:
    """Give Flask applications their watchers.

    ::

        rigatoni = Rigatoni()

        @rigatoni.on("insert", collection="orders")
        def ship(event):
            current_app.logger.info("shipping %s", event.full_document["item"])

        def create_app():
            app = Flask(__name__)
            app.config.from_prefixed_env()
            rigatoni.init_app(app)
            return app

    Each application gets a watcher of its own, with every handler that was or will be registered, made from its
    ``RIGATONI_*`` configuration: every option of :class:`~rigatoni.Watcher` (``RIGATONI_URI`` is `client`),
    :class:`~rigatoni.ChangeStreamConfig` and, with ``RIGATONI_RETRY_``, :class:`~rigatoni.RetryPolicy`. It reconnects
    for ever unless ``RIGATONI_MAX_RECONNECT_ATTEMPTS`` says otherwise.

    Handlers run inside ``app.app_context()``.

    The watcher starts once per process: under gunicorn by :mod:`rigatoni.contrib.gunicorn`, on the development server
    with the first request, by ``flask rigatoni run``, and by :meth:`start`; never at import, in a shell, in other
    commands, in tests, or in the process that only reloads.

    :param app: as for :meth:`init_app`, which is then called.
    :param watcher: of the one application; default: the extension makes one from the configuration.
    :param page: where the live page is, such as "/rigatoni"; default: nowhere.
    :param authorize: who may see the page: a callable of the request that returns whether, or "public".
    """

    def __init__(
        self,
        app: Flask | None = None,
        watcher: Watcher | None = None,
        *,
        page: str | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        self._watcher = watcher
        self._page = page
        self._authorize = authorize
        self._apps: WeakSet[Flask] = WeakSet()
        self._registrations: list[Callable[[Binding], object]] = []
        # Never started: what is wrong with a registration shows here at once.
        self._rehearsal = Watcher()
        if app is not None:
            self.init_app(app)

    def init_app(
        self,
        app: Flask,
        watcher: Watcher | None = None,
        *,
        page: str | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        """Give an application its watcher, and the page where one is asked for; ``app.extensions["rigatoni"]`` is this.

        :param app: the application.
        :param watcher: see the class; default: what the constructor was told, as for the others.
        :raises ConfigurationError: for a configuration that can never work (it names the key, never the value), a page
            that says not who may see it, an application or a watcher that is served already.
        """
        page, authorize = page or self._page, authorize or self._authorize
        if page is None and authorize is not None:
            raise ConfigurationError("authorize= says who may see the page: write page= too, such as page='/rigatoni'")
        if "rigatoni" in app.extensions:
            raise ConfigurationError(f"the application {app.name!r} has a watcher already")
        watcher = watcher or self._watcher or Watcher.from_mapping(_settings(app, page is not None))
        if any(binding.watcher is watcher for binding in self._bindings()):
            raise ConfigurationError(
                f"the watcher {watcher.name!r} serves another application: leave it to the extension to make one for "
                "each from RIGATONI_…, or give init_app() another"
            )
        blueprint = None if page is None else _page(watcher, authorize)
        binding = Binding(app, watcher)
        for register in self._registrations:
            register(binding)
        app.extensions["rigatoni"], app.extensions[_BINDING] = self, binding
        self._apps.add(app)
        app.before_request(binding.start_with_first_request)
        if blueprint is not None:
            app.register_blueprint(blueprint, url_prefix=page)

    @property
    def watcher(self) -> Watcher:
        """Return the watcher of the current application; outside of one, that of the only application.

        :raises ConfigurationError: when there is none, or several.
        """
        served = [app for app in self._apps if current_app and current_app == app] or list(self._apps)
        if len(served) != 1:
            raise ConfigurationError(
                f"this extension serves {len(served) or 'no'} applications: "
                + ("say which by `with app.app_context():`" if served else "call init_app(app) first")
            )
        watcher: Watcher = served[0].extensions[_BINDING].watcher
        return watcher

    @overload
    def on(self, *operations: str, ack: Literal["auto"] = ..., **options: Unpack[_On]) -> Callable[[F], F]: ...

    @overload
    def on(self, *operations: str, ack: Literal["manual"], **options: Unpack[_On]) -> Callable[[M], M]: ...

    def on(self, *operations: str, **options: Any) -> Callable[[Any], Any]:
        """Register a function for changes, as :meth:`rigatoni.Watcher.on` does; returns the function unchanged."""
        return self._decorator("on", operations, options)

    @overload
    def on_batch(
        self, *operations: str, ack: Literal["auto"] = ..., **options: Unpack[_OnBatch]
    ) -> Callable[[B], B]: ...

    @overload
    def on_batch(self, *operations: str, ack: Literal["manual"], **options: Unpack[_OnBatch]) -> Callable[[N], N]: ...

    def on_batch(self, *operations: str, **options: Any) -> Callable[[Any], Any]:
        """Register a function for lists of events, as :meth:`rigatoni.Watcher.on_batch` does."""
        return self._decorator("on_batch", operations, options)

    def watch(self, collection: str, database: str | None = None, **options: Any) -> None:
        """Give one collection a stream of its own, as :meth:`rigatoni.Watcher.watch` does."""
        # Of a database, for which one is only known to the watchers.
        self._rehearsal.watch(collection, database or "any", **options)
        self._add(lambda binding: binding.watcher.watch(collection, database, **options))

    def start(self, timeout: float | None = None) -> str:
        """Start the watcher of this process, unless it runs already; see :meth:`rigatoni.Watcher.start`.

        Does nothing in a ``flask run`` that only reloads.

        :param timeout: seconds to wait; None waits until it runs or fails. It goes on starting after that.
        :returns: its state.
        """
        watcher = self.watcher
        if watcher.state in ("created", "stopped", "failed") and not _only_reloads():
            return watcher.start(timeout)
        return watcher.state

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop the watcher of this process; see :meth:`rigatoni.Watcher.stop`."""
        return self.watcher.stop(timeout)

    def _bindings(self) -> list[Binding]:
        return [app.extensions[_BINDING] for app in self._apps]

    def _decorator(self, on: str, operations: tuple[str, ...], options: dict[str, Any]) -> Callable[[Any], Any]:
        rehearse = getattr(self._rehearsal, on)(*operations, **options)

        def register(function: Any) -> Any:
            rehearse(function)
            self._add(lambda binding: getattr(binding.watcher, on)(*operations, **options)(binding.inside(function)))
            return function

        return register

    def _add(self, register: Callable[[Binding], object]) -> None:
        for binding in self._bindings():
            register(binding)
        self._registrations.append(register)


def _settings(app: Flask, with_metrics: bool) -> dict[str, Any]:
    given = {key: value for key, value in app.config.items() if value != ""}
    if with_metrics:
        # Here, because it needs prometheus_client.
        from rigatoni.contrib.prometheus import PrometheusHooks

        hooks = given.get("RIGATONI_HOOKS", ())
        # What is no list is refused with the other options.
        if isinstance(hooks, Iterable) and not any(isinstance(hook, PrometheusHooks) for hook in hooks):
            given["RIGATONI_HOOKS"] = [*hooks, PrometheusHooks()]
    return {"RIGATONI_MAX_RECONNECT_ATTEMPTS": 0, **given}


def _page(watcher: Watcher, authorize: Authorize | None) -> Blueprint:
    # Here, because it imports what only the page needs.
    from .page import blueprint

    return blueprint(lambda: watcher, authorize)


def _only_reloads() -> bool:
    """Tell whether this is a ``flask run`` whose child process serves."""
    context = click.get_current_context(silent=True)
    if context is None or context.command is not run_command or is_running_from_reloader():
        return False
    reload = context.params.get("reload")
    return get_debug_flag() if reload is None else bool(reload)
