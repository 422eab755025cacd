"""Handlers that block their thread, as plain scripts write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from programs import Program

BLOCK = """
from rigatoni import Hooks, MemoryStore, Watcher

class Saved(Hooks):
    def saved(self, stream, token):
        say(saved=token["_data"])

watcher = Watcher(given["uri"], given["database"], store=MemoryStore(), hooks=[Saved()], save_interval=0.01)
handled = []

@watcher.on("insert")
def handle(event):
    # Much longer than the time between two saves.
    time.sleep(0.1)
    handled.append(event.id)
    if len(handled) == given["count"]:
        say(handled=handled)

watcher.run()
"""


def test_positions_are_saved_between_handlers_that_block(
    mongodb_replica_set: Any, database: Any, tmp_path: Path
) -> None:
    uri, count = mongodb_replica_set.uri, 20
    with Program(BLOCK, tmp_path, uri=uri, database=database.name, count=count) as program:
        program.wait_said("saved")
        database.orders.insert_many([{"item": number} for number in range(count)])
        handled = program.wait_said("handled")
        saved_amid = set(program.said("saved")) & set(handled[:-1])

    assert len(saved_amid) > count / 2
