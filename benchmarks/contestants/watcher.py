"""A Watcher with a handler that does nothing but note the number, and its tokens on disk."""

import threading
from pathlib import Path
from tempfile import TemporaryDirectory

from contestant import given, replayed

from rigatoni import ChangeStreamConfig, Watcher

with TemporaryDirectory() as folder:
    done = threading.Event()
    config = ChangeStreamConfig(full_document=given["full_document"])
    watcher = Watcher(given["uri"], "shop", store=Path(folder) / "tokens.db", config=config, start_at=given["begun"])
    with replayed() as (numbers, begin):
        count = given["count"]

        @watcher.on("insert", "update", collection="orders")
        def note(event):
            if not numbers:
                begin()
            numbers.append(event.full_document["number"])
            if len(numbers) == count:
                done.set()

        watcher.start()
        done.wait()
    watcher.stop()
