"""The home-made way to go on after a crash: pymongo's loop, and the resume token into SQLite after each event."""

import json
import sqlite3
from pathlib import Path
from tempfile import TemporaryDirectory

from contestant import given, replayed
from pymongo import MongoClient

with TemporaryDirectory() as folder, MongoClient(given["uri"]) as client:
    tokens = sqlite3.connect(Path(folder) / "tokens.db")
    tokens.execute("pragma journal_mode=wal")
    tokens.execute("pragma synchronous=normal")
    tokens.execute("create table tokens (name text primary key, token text)")
    with replayed() as (numbers, begin):
        options = {"start_at_operation_time": given["begun"], "full_document": given["full_document"]}
        with client.shop.orders.watch(**options) as stream:
            for change in stream:
                if not numbers:
                    begin()
                numbers.append(change["fullDocument"]["number"])
                with tokens:
                    row = ("orders", json.dumps(change["_id"]))
                    tokens.execute("insert or replace into tokens (name, token) values (?, ?)", row)
                if len(numbers) == given["count"]:
                    break
