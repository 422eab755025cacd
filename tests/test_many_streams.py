"""Far more streams than a driver's pool has connections by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from programs import BOTH, Program

PROGRAM = """
from rigatoni import ChangeStreamConfig, MemoryStore, Watcher

# Long enough that all of them wait at the same time.
watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), config=ChangeStreamConfig(max_await_time=30.0))


@watcher.on("insert", collection=given["collections"])
def see(event):
    say(seen=event.collection)


for collection in given["collections"]:
    watcher.watch(collection)
ends = []
signal.signal(signal.SIGTERM, lambda *_: ends.append(True))
watcher.start()
say(started=True)
while not ends:
    time.sleep(0.01)
say(stopped=watcher.stop(), reconnects=watcher.stats()["reconnects"])
"""

COLLECTIONS = [f"orders{number}" for number in range(150)]


def waiting(database: Any) -> int:
    """Count the streams whose getMore waits at the server."""
    ours = {"command.getMore": {"$exists": True}, "command.$db": database.name}
    return len(list(database.client.admin.aggregate([{"$currentOp": {}}, {"$match": ours}])))


@BOTH
def test_150_collections_with_a_stream_each_do_not_wait_for_each_others_connections(
    database: Any, mongodb_replica_set: Any, tmp_path: Path, patched: bool
) -> None:
    given = {"uri": mongodb_replica_set.uri, "database": database.name, "collections": COLLECTIONS}
    with Program(PROGRAM, tmp_path, patched=patched, **given) as program:
        program.wait_said("started")
        program.wait_for(lambda: waiting(database) == len(COLLECTIONS))
        # One entry of the oplog: each by itself would wake 150 cursors 150 times.
        with database.client.start_session() as session, session.start_transaction():
            for collection in COLLECTIONS:
                database[collection].insert_one({}, session=session)
        program.wait_for(lambda: len(program.said("seen")) == len(COLLECTIONS))
        program.signal(15)
        program.end()
    assert sorted(program.said("seen")) == sorted(COLLECTIONS)
    assert (program.said("stopped"), program.said("reconnects")) == ([True], [0])
