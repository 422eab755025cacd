"""Changes to watch, and how many the server has acknowledged."""

from __future__ import annotations

import threading
from typing import Any

from pymongo.collection import Collection

from .program import Change


class Writer(threading.Thread):
    """Changes, one after the other, as fast as the server acknowledges them.

    :ivar written: the acknowledged ones.
    :param operations: how many.
    """

    def __init__(self, orders: Collection[dict[str, Any]], operations: int) -> None:
        super().__init__(name="rigatoni demo writer", daemon=True)
        self._orders = orders
        self._told = threading.Event()
        self._error: BaseException | None = None
        self.operations = operations
        self.written: list[Change] = []

    def run(self) -> None:
        try:
            for number in range(self.operations):
                if self._told.is_set():
                    return
                self.written.append(self._write(*divmod(number, 4)))
        except BaseException as error:
            self._error = error

    def stop(self) -> None:
        """Write no more, and return when the last write is done."""
        self._told.set()
        if self.ident is not None:
            self.join()

    def check(self) -> None:
        """Raise what ended it early, if anything did."""
        if self._error is not None:
            raise self._error

    def _write(self, document: int, step: int) -> Change:
        """Insert a document, update it twice, delete it; each raises its version."""
        version = step + 1
        if step == 0:
            self._orders.insert_one({"_id": document, "version": version})
            return "insert", str(document), str(version)
        if step == 3:
            self._orders.delete_one({"_id": document})
            # A deleted document has no version any more.
            return "delete", str(document), "None"
        self._orders.update_one({"_id": document}, {"$set": {"version": version}})
        return "update", str(document), str(version)
