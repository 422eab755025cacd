"""A server that asks for user and password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from rigatoni.mongod import ReplicaSet


class Guarded:
    """A client that may do all, and the URIs of others."""

    def __init__(self, uri: str, password: str) -> None:
        self.uri = uri
        with MongoClient[Any](uri) as client:
            # The first user may be made by anyone on the same host.
            client.admin.command("createUser", "root", pwd=password, roles=["root"])
        self.root = MongoClient[Any](self.uri_as(f"root:{password}"))

    def uri_as(self, user: str) -> str:
        return self.uri.replace("://", f"://{user}@")


@contextmanager
def guarded_server(folder: Path, password: str = "root", **parameters: Any) -> Iterator[Guarded]:
    """Run one, with its key in a folder, and give it away."""
    key = folder / "file"
    key.write_text("key" * 20)
    key.chmod(0o600)
    with ReplicaSet(arguments=["--keyFile", str(key)], parameters=parameters) as replica_set:
        guarded = Guarded(replica_set.uri, password)
        with guarded.root:
            yield guarded
