"""The changes of everyday life, in a word each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from bson.codec_options import CodecOptions

from rigatoni import ChangeEvent

from .events import make_event

Document = Mapping[str, Any]


class Changes(ABC):
    """Make changes and play them; `said` is what :func:`make_event` takes beside.

    :param database: where they happen, when nothing else is said.
    """

    def __init__(self, database: str, codec_options: CodecOptions[Any]) -> None:
        self._database = database
        self._codec_options = codec_options

    @abstractmethod
    def play(self, *events: ChangeEvent | Document) -> list[ChangeEvent]:
        """Let changes happen."""

    @abstractmethod
    def _collections(self, database: str) -> list[str]: ...

    def insert(self, collection: str, document: Document | None = None, **said: Any) -> ChangeEvent:
        """Insert a document."""
        return self._change("insert", collection, document=document, **said)

    def update(
        self, collection: str, document_key: Document | None = None, updated_fields: Document | None = None, **said: Any
    ) -> ChangeEvent:
        """Update a document: dotted path → new value.

        Handlers see the whole one (``document=``), and the one before (``before=``), when their stream asks for it.
        """
        return self._change("update", collection, document_key=document_key, updated_fields=updated_fields, **said)

    def replace(self, collection: str, document: Document, **said: Any) -> ChangeEvent:
        """Replace a document by one with the same ``_id``."""
        return self._change("replace", collection, document=document, **said)

    def delete(self, collection: str, document_key: Document | None = None, **said: Any) -> ChangeEvent:
        """Delete a document."""
        return self._change("delete", collection, document_key=document_key, **said)

    def drop(self, collection: str, **said: Any) -> ChangeEvent:
        """Drop a collection, which ends cursors on it."""
        return self._change("drop", collection, **said)

    def rename(self, collection: str, to: str, **said: Any) -> ChangeEvent:
        """Rename a collection, which ends cursors on either name."""
        return self._change("rename", collection, to=to, **said)

    def drop_database(self, database: str | None = None) -> ChangeEvent:
        """Drop a database, and before it each of its collections that was written to."""
        for collection in self._collections(database or self._database):
            self.drop(collection, database=database or self._database)
        return self._change("dropDatabase", None, database=database or self._database)

    def _change(self, operation: str, collection: str | None, **said: Any) -> ChangeEvent:
        event = make_event(
            operation, collection, said.pop("database", self._database), codec_options=self._codec_options, **said
        )
        (played,) = self.play(event)
        return played
