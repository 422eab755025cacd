"""Which consumer in which store a command is about: told by its options, or by the program that it is attached to.

A program that knows them (``flask rigatoni …``) sets a :class:`Consumer` as the ``obj`` of a click context around the
commands; then they have no options for what it knows.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from .exits import NameHeldError, NotThereError, fatal_errors_end_it, warn_of_password
from .table import sentence, word

if TYPE_CHECKING:
    from rigatoni import TokenStore, Watcher
    from rigatoni.client import Client
    from rigatoni.config import URI

_FROM_CONSUMER = {"store", "name", "uri", "target"}


@dataclass(frozen=True)
class Consumer:
    """Say what a command is about.

    :param store: where it is kept.
    :param name: of the consumer; None where nobody said one: all of them, or "default".
    :param client: the server, a URI or a client; None where nobody said one.
    :param watcher: to hand dead letters to; None where the command has to find it.
    """

    store: TokenStore
    name: str | None = None
    client: str | URI | Client | None = None
    watcher: Watcher | None = None

    @property
    def one(self) -> str:
        """The name where there can only be one."""
        return "default" if self.name is None else self.name

    def names(self) -> list[str]:
        """List the name that was said, else all that the store knows."""
        return self.store.names() if self.name is None else [self.known()]

    def known(self) -> str:
        """Return the one name.

        :raises NotThereError: when the store keeps nothing for it.
        """
        names = self.store.names()
        if self.one not in names:
            known = f"its names are {', '.join(map(word, names))}" if names else "it is empty"
            raise NotThereError(f"{self.store.location} keeps nothing for name {word(self.one)}: {known}")
        return self.one

    @contextmanager
    def held(self) -> Iterator[str]:
        """Hold the name, so that no watcher runs meanwhile.

        :raises NameHeldError: when one runs, in another process.
        """
        name = self.known()
        if not self.store.lock(name):
            holder = self.store.holder(name) or "another process"
            raise NameHeldError(f"{word(name)} is held by {sentence(holder)}: stop that watcher first")
        try:
            yield name
        finally:
            self.store.unlock(name)

    @contextmanager
    def opened(self) -> Iterator[Consumer]:
        """Open the store, which must be there, and close it.

        :raises ResumeTokenPersistenceError: when it cannot be used, or is not there: an empty one is never made.
        """
        from rigatoni import ResumeTokenPersistenceError, SQLiteStore

        if isinstance(self.store, SQLiteStore) and not is_there(self.store.location):
            raise ResumeTokenPersistenceError(
                f"there is no store {self.store.location}: say where it is (--store or RIGATONI_STORE); "
                "a watcher makes it when it starts"
            )
        self.store.open()
        try:
            yield self
        finally:
            self.store.close()


def is_there(path: str) -> bool:
    """Tell whether there is anything in a store; one with nothing in it is made by opening it."""
    return os.path.exists(path) and (not os.path.isfile(path) or os.path.getsize(path) > 0)


class ConsumerCommand(click.Command):
    """Ask on the command line only for what the context does not know."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        known = _FROM_CONSUMER if ctx.find_object(Consumer) else set()
        return [parameter for parameter in super().get_params(ctx) if parameter.name not in known]


def about_a_consumer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the function an opened :class:`Consumer` first; whatever it raises ends the command as it should."""
    click.option(
        "--name", envvar="RIGATONI_NAME", show_envvar=True, help='The consumer; default "default", all in lists.'
    )(function)
    store_option(function)

    @click.pass_context
    @wraps(function)
    def called(context: click.Context, /, *arguments: Any, **options: Any) -> None:
        with fatal_errors_end_it(), _consumer(context, options).opened() as consumer:
            function(consumer, *arguments, **options)

    return called


def confirm(question: str, yes: bool) -> None:
    """Ask whether to go on; where nobody can answer, ask for ``--yes``."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody can be asked here: confirm it by --yes")
    click.confirm(question, abort=True, err=True)


store_option = click.option(
    "--store",
    envvar="RIGATONI_STORE",
    show_envvar=True,
    default="rigatoni.db",
    show_default=True,
    metavar="PATH",
    help="The SQLite file that the watcher was given.",
)
#: The function gets it as the consumer's client.
uri_option = click.option("--uri", envvar="RIGATONI_URI", show_envvar=True, help="The server that is watched.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
json_option = click.option("--json", "as_json", is_flag=True, help="As JSON, one line for each.")


def _consumer(context: click.Context, options: dict[str, Any]) -> Consumer:
    from rigatoni import SQLiteStore

    known = context.find_object(Consumer)
    if known is not None:
        return known
    warn_of_password(context, options.get("uri"))
    return Consumer(SQLiteStore(options.pop("store")), options.pop("name"), options.pop("uri", None))
