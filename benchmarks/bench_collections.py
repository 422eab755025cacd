"""Replay inserts of 400 collections with a handler each, of one collection, and of 400 with one handler for all."""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402

from rivals import compared, filled, watched  # noqa: E402


def main(documents: int = 40_000, collections: int = 400, pairs: int = 5) -> None:
    """Print the ratios of the rates."""
    names = [f"collection_{number}" for number in range(collections)]
    with (
        filled(documents, names) as (uri, database, begun),
        filled(documents, ["orders"]) as (uri_of_one, _, begun_of_one),
    ):

        def each(watcher, handle):
            for name in names:
                # Handlers go by name, so that each needs one of its own.
                handler = eval("lambda event: handle(event)", {"handle": handle})
                handler.__qualname__ = name
                watcher.on("insert", collection=name)(handler)

        def measured() -> tuple[float, float, float]:
            many = watched(uri, begun, documents, each)
            all_in_one = watched(uri, begun, documents, lambda watcher, handle: watcher.on("insert")(handle))
            one = watched(
                uri_of_one, begun_of_one, documents, lambda watcher, h: watcher.on("insert", collection="orders")(h)
            )
            return many, all_in_one, one

        measured()
        rounds = [measured() for _ in range(pairs)]
    for many, all_in_one, one in rounds:
        print(f"{collections} handlers {many:8.0f}/s   one for all {all_in_one:8.0f}/s   one collection {one:8.0f}/s")
    compared(f"{collections} handlers : one collection", [many / one for many, _, one in rounds])
    compared(f"{collections} handlers : one handler for all", [many / all_in_one for many, all_in_one, _ in rounds])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
