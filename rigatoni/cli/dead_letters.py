"""``rigatoni dead-letters``: what handlers could not handle, listed, shown, handed over again and discarded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from .consumer import Consumer, ConsumerCommand, about_a_consumer, confirm, json_option, yes_option
from .exits import CATEGORIES, NotThereError, fatal_errors_end_it, say
from .moments import clock, span
from .run import watcher_of
from .table import printable, sentence, table, word

if TYPE_CHECKING:
    from rigatoni import DeadLetter, Watcher

_ids = click.argument("ids", nargs=-1, type=click.IntRange(min=1), metavar="[ID]...")
_all_option = click.option("--all", "everything", is_flag=True, help="All of them.")


@click.group(
    "dead-letters",
    epilog="""\b
Examples:
  rigatoni dead-letters list
  rigatoni dead-letters show 7
  rigatoni dead-letters replay shop.handlers:watcher 7 8
  rigatoni dead-letters discard --all --name search
""",
)
def dead_letters() -> None:
    """Show, replay or discard events that handlers gave up."""


@dead_letters.command(
    "list",
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni dead-letters list
  rigatoni dead-letters list --name search --json | jq -r .error
""",
)
@json_option
@about_a_consumer
def list_letters(consumer: Consumer, as_json: bool) -> None:
    """List the dead letters of all names, or of one, the oldest first."""
    found = _letters(consumer)
    if as_json:
        for name, letter in found:
            click.echo(json.dumps({"name": name, **_described(letter)}))
        return
    table(
        ("ID", "NAME", "HANDLER", "EVENT", "_ID", "AGE", "TRIES", "ERROR"),
        [[str(letter.id), word(name), *_row(letter)] for name, letter in found],
    )


@dead_letters.command(
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni dead-letters show 7
  rigatoni dead-letters show 7 --json | jq .event.fullDocument
""",
)
@click.argument("id", type=click.IntRange(min=1))
@json_option
@about_a_consumer
def show(consumer: Consumer, id: int, as_json: bool) -> None:
    """Show one dead letter with its event and traceback.

    The event is relaxed Extended JSON, the traceback that of the last error.
    """
    [(name, letter)] = _chosen(consumer, (id,), False)
    if as_json:
        click.echo(
            json.dumps(
                {"name": name, **_described(letter), "traceback": letter.traceback, "event": _plain(letter.event)}
            )
        )
        return
    click.echo(f"dead letter {letter.id} of {word(name)}")
    click.echo(f"handler:   {word(letter.handler)}, called {letter.attempts} times")
    click.echo(f"buried:    {clock(letter.buried_at)}, {_age(letter)} ago")
    click.echo(f"error:     {sentence(letter.error)}")
    click.echo(f"event:\n{json.dumps(_plain(letter.event), indent=2)}")
    for line in letter.traceback.splitlines():
        # Its text may hold what would drive a terminal.
        click.echo(printable(line))


def _about_a_watcher(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the function the consumer of a watcher: of the program that the command is attached to, or imported."""

    @click.pass_context
    @wraps(function)
    def called(context: click.Context, /, **options: Any) -> None:
        known, target = context.find_object(Consumer), options.pop("target", "")
        if known is None:
            from gevent import monkey

            monkey.patch_all()
        with fatal_errors_end_it():
            consumer = known or _consumer_of(watcher_of(target))
            with consumer.opened():
                failed = function(consumer, **options)
        if failed:
            context.exit(CATEGORIES["handler"])

    return called


@dead_letters.command(
    cls=ConsumerCommand,
    epilog=f"""\b
Examples:
  rigatoni dead-letters replay shop.handlers:watcher 7
  rigatoni dead-letters replay shop.handlers:watcher --all

Exit code {CATEGORIES["handler"]}: a handler failed again; others: see rigatoni --help.
""",
)
@click.argument("target", metavar="MODULE:WATCHER")
@_ids
@_all_option
@_about_a_watcher
def replay(consumer: Consumer, ids: tuple[int, ...], everything: bool) -> int:
    """Hand dead letters to their handlers once more.

    Those that are handled now are discarded. The module is imported as `rigatoni run` does it; the store and the name
    are the watcher's. Each letter goes only to the handler that failed, once, the oldest first. One that fails again is
    kept as it was, and the next one is tried. A watcher may run meanwhile.
    """
    watcher = consumer.watcher
    if watcher is None:
        raise click.UsageError("there is no watcher to hand the letters to")
    letters = _chosen(consumer, ids, everything)
    failed = sum(not _is_handled(watcher, letter) for _, letter in letters)
    say(f"replayed {len(letters) - failed} of {len(letters)}")
    return failed


@dead_letters.command(
    cls=ConsumerCommand,
    epilog="""\b
Examples:
  rigatoni dead-letters discard 7 8
  rigatoni dead-letters discard --all --yes --name search
""",
)
@_ids
@_all_option
@yes_option
@about_a_consumer
def discard(consumer: Consumer, ids: tuple[int, ...], everything: bool, yes: bool) -> None:
    """Delete dead letters for ever, without handling them.

    --all are those of one name; an id needs no name.
    """
    letters = _chosen(consumer, ids, everything)
    if letters:
        names = ", ".join(sorted({word(name) for name, _ in letters}))
        confirm(f"Delete {len(letters)} dead letters of {names}?", yes)
    gone = sum(consumer.store.discard(name, letter.id) for name, letter in letters if letter.id is not None)
    say(f"discarded {gone}")


def _consumer_of(watcher: Watcher) -> Consumer:
    return Consumer(watcher.store, watcher.name, watcher=watcher)


def _chosen(consumer: Consumer, ids: Sequence[int], everything: bool) -> list[tuple[str, DeadLetter]]:
    """Find the letters that were asked for with their names, in the order of their ids.

    An id says which letter it is without a name. All are those of one name, so that nothing of another goes by mistake.
    """
    if bool(ids) == everything:
        raise click.UsageError("say which: the ids as listed, or --all")
    if everything:
        return [(consumer.one, letter) for letter in consumer.store.letters(consumer.one)]
    found = {letter.id: (name, letter) for name, letter in _letters(consumer)}
    missing = [str(id) for id in ids if id not in found]
    if missing:
        raise NotThereError(f"there is no dead letter {', '.join(missing)} in {consumer.store.location}")
    return [each for id, each in sorted(found.items()) if id in ids]


def _letters(consumer: Consumer) -> list[tuple[str, DeadLetter]]:
    return [(name, letter) for name in consumer.names() for letter in consumer.store.letters(name)]


def _is_handled(watcher: Watcher, letter: DeadLetter) -> bool:
    """Hand over a letter and discard it; tell whether its handler returned."""
    import gevent

    try:
        watcher.dispatch(letter.event, handler=letter.handler)
    # To gevent a timeout is no Exception.
    except (Exception, gevent.Timeout) as error:
        say(f"{letter.id} fails again: {type(error).__name__}: {sentence(error)}")
        return False
    if letter.id is not None:
        watcher.store.discard(watcher.name, letter.id)
    return True


def _described(letter: DeadLetter) -> dict[str, Any]:
    from bson import json_util

    place = letter.event.get("ns")
    key = letter.event.get("documentKey")
    return {
        "id": letter.id,
        "handler": letter.handler,
        "operation": letter.event.get("operationType"),
        "database": place.get("db") if isinstance(place, Mapping) else None,
        "collection": place.get("coll") if isinstance(place, Mapping) else None,
        "document_id": json.loads(json_util.dumps(key.get("_id"))) if isinstance(key, Mapping) else None,
        "error": letter.error,
        "attempts": letter.attempts,
        "buried_at": letter.buried_at,
    }


def _row(letter: DeadLetter) -> list[str]:
    found = _described(letter)
    place = ".".join(found[part] for part in ("database", "collection") if isinstance(found[part], str))
    event = f"{word(found['operation'])} {word(place)}"
    key = found["document_id"]
    text = word(key["$oid"] if isinstance(key, dict) and [*key] == ["$oid"] else json.dumps(key))
    return [word(letter.handler), event, text, _age(letter), str(letter.attempts), sentence(letter.error)]


def _age(letter: DeadLetter) -> str:
    return span(time.time() - letter.buried_at)


def _plain(event: Mapping[str, Any]) -> Any:
    """Give an event as relaxed Extended JSON, which every other tool can read."""
    from bson import json_util

    return json.loads(json_util.dumps(event, json_options=json_util.RELAXED_JSON_OPTIONS))
