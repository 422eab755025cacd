"""Replay inserts of 400 collections with a handler each, of one collection, and of 400 with one handler for all."""

import sys
from collections.abc import Callable

from rivals import compared, filled, watched

from rigatoni import ChangeEvent, Watcher


def named(name: str, handle: Callable[[ChangeEvent], None]) -> Callable[[ChangeEvent], None]:
    """Make a handler of its own: handlers go by their names."""

    def handler(event: ChangeEvent) -> None:
        handle(event)

    handler.__qualname__ = name
    return handler


def main(documents: int = 200_000, collections: int = 400, pairs: int = 5) -> None:
    """Print the ratios of the rates."""
    names = [f"collection_{number}" for number in range(collections)]
    with (
        filled(documents, names) as (uri, database, begun),
        filled(documents, ["orders"]) as (uri_of_one, _, begun_of_one),
    ):

        def each(watcher: Watcher, handle: Callable[[ChangeEvent], None]) -> None:
            for name in names:
                watcher.on("insert", collection=name)(named(name, handle))

        def for_all(watcher: Watcher, handle: Callable[[ChangeEvent], None]) -> None:
            watcher.on("insert")(handle)

        def for_one(watcher: Watcher, handle: Callable[[ChangeEvent], None]) -> None:
            watcher.on("insert", collection="orders")(handle)

        def measured(check: bool = False) -> tuple[float, float, float]:
            many = watched(uri, begun, documents, each, check=check)
            all_in_one = watched(uri, begun, documents, for_all, check=check)
            one = watched(uri_of_one, begun_of_one, documents, for_one, check=check)
            return many, all_in_one, one

        measured(check=True)
        rounds = [measured() for _ in range(pairs)]
    for many, all_in_one, one in rounds:
        print(f"{collections} handlers {many:8.0f}/s   one for all {all_in_one:8.0f}/s   one collection {one:8.0f}/s")
    compared(f"{collections} handlers : one collection", [many / one for many, _, one in rounds])
    compared(f"{collections} handlers : one handler for all", [many / all_in_one for many, all_in_one, _ in rounds])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
