"""Faults are done as planned: each track is a thread of its own."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from rigatoni.mongod import ReplicaSet

from .plan import AFTER_CHECKOUT, Fault
from .processes import Watching, wait_until

#: What the watchers call themselves; failpoints hit nobody else.
APPLICATION = "soak"


class Faults:
    """Do what a plan says.

    :ivar done: kinds of faults, counted.
    :ivar told: what was done, and when.
    """

    def __init__(self, replica_set: ReplicaSet, members: int, watchers: Sequence[Watching]) -> None:
        self._replica_set, self._members = replica_set, range(members)
        self._tracks = {"servers": self._server, "failpoints": self._failpoint}
        self._tracks |= {f"watcher {slot}": partial(self._watcher, watcher) for slot, watcher in enumerate(watchers)}
        self.done: Counter[str] = Counter()
        self.told: list[str] = []
        self._began = monotonic()

    def follow(self, name: str, track: Sequence[Fault], stop: threading.Event) -> None:
        """Do the faults of one track, each mended before the next.

        :param stop: set when another track has failed.
        """
        for fault in track:
            if stop.wait(max(0.0, self._began + fault.at - monotonic())):
                return
            self.told.append(f"{monotonic() - self._began:8.2f} {name}: {fault}")
            self._tracks[name](fault, partial(stop.wait, fault.duration))
            self.done[fault.kind] += 1
            self.told.append(f"{monotonic() - self._began:8.2f} {name}: mended")

    def mend(self) -> None:
        """Let nothing fail any more."""
        for point in ("failCommand", AFTER_CHECKOUT):
            for member in self._members:
                self._tell(member, {"configureFailPoint": point, "mode": "off"}, 30_000)

    def _watcher(self, watcher: Watching, fault: Fault, mended: Callable[[], object]) -> None:
        if fault.kind == "watcher_killed":
            watcher.kill()
        else:
            watcher.terminate()
        mended()
        watcher.start(patched=fault.how["patched"])

    def _server(self, fault: Fault, mended: Callable[[], object]) -> None:
        primary = self._replica_set.primary()
        if fault.kind == "step_down":
            wait_until(lambda: self._stepped_down(fault.duration), "the primary steps down")
            mended()
        elif fault.kind in ("primary_killed", "primary_stopped"):
            end = self._replica_set.kill if fault.kind == "primary_killed" else self._replica_set.stop
            end(primary)
            mended()
            self._replica_set.restart(primary)
        else:
            majority_lost = fault.kind == "majority_lost"
            self._freeze([member for member in self._members if (member == primary) != majority_lost], mended)
        wait_until(self._is_whole, "the replica set is whole again")

    def _freeze(self, members: Sequence[int], mended: Callable[[], object]) -> None:
        for member in members:
            self._replica_set.freeze(member)
        try:
            mended()
        finally:
            for member in members:
                self._replica_set.thaw(member)

    def _stepped_down(self, duration: float) -> bool:
        try:
            self._replica_set.step_down(max(1.0, duration))
        except OperationFailure:
            # No secondary had caught up, or it was deposed just now.
            return False
        return True

    def _is_whole(self) -> bool:
        try:
            hellos = [self._tell(member, {"hello": 1}) for member in self._members]
        except PyMongoError:
            return False
        return sum(hello["isWritablePrimary"] for hello in hellos) == 1 and all(
            hello["isWritablePrimary"] or hello["secondary"] for hello in hellos
        )

    def _failpoint(self, fault: Fault, mended: Callable[[], object]) -> None:
        for member in self._members:
            # One that is down or frozen does not fail commands, it fails.
            with suppress(PyMongoError):
                data = {**fault.how["data"], "appName": APPLICATION}
                command = {"configureFailPoint": fault.how["point"], "mode": {"times": fault.how["times"]}}
                self._tell(member, {**command, "data": data})

    def _tell(self, member: int, command: dict[str, Any], patience: int = 1000) -> dict[str, Any]:
        uri = self._replica_set.uri_of(member)
        with MongoClient[dict[str, Any]](uri, timeoutMS=patience) as client:
            return client.admin.command(command)
