"""One change stream cursor of the fake server: its level, its pipeline, and how far it has read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from bson import Timestamp

from rigatoni import Position

from .events import EXPANDED
from .faults import failure
from .match import refusal
from .oplog import Event, Oplog, high_water_mark
from .pipeline import stages

Level = tuple[str | None, str | None]

_OPTIONS = frozenset(
    {
        "allChangesForCluster",
        "fullDocument",
        "fullDocumentBeforeChange",
        "showExpandedEvents",
        "startAfter",
        "startAtOperationTime",
    }
)
#: Where ``_data`` says whether it is the token of an invalidate event, and what it says then.
_KIND, _INVALIDATE = slice(30, 32), "6F"
_MODIFIED = "Encountered an event whose _id field, which contains the resume token, was modified by the pipeline."
#: Operations that can have an image of what was before.
_CHANGING = frozenset({"update", "replace", "delete"})


class Cursor:
    """Read the oplog as the server does: from a position on, at one level, through a pipeline.

    :param level: database and collection; None for all.
    :param pipeline: of the aggregate command, ``$changeStream`` first.
    :raises ConfigurationError: for what only a real server can do.
    :ivar end: the resume token of what was read (postBatchResumeToken).
    :ivar is_dead: whether an invalidate event ended it.
    """

    def __init__(self, oplog: Oplog, level: Level, pipeline: list[Mapping[str, Any]]) -> None:
        self._oplog = oplog
        self._level = level
        self._options: Mapping[str, Any] = pipeline[0]["$changeStream"]
        for option in self._options.keys() - _OPTIONS:
            raise refusal(f"the option {option} of $changeStream")
        self._stages = stages(pipeline[1:])
        self._after, self._sought = "", ""
        self._waiting: deque[Event] = deque()
        self._is_unread = True
        self.is_dead = False
        self.end, self._start = self._begin()
        self._next = oplog.since(self._start)

    @property
    def is_behind(self) -> bool:
        """Tell whether there is something that it has not read, its beginning included: a new cursor says at once where
        it stands, so that nobody waits for it.
        """
        return self._is_unread or bool(self._waiting) or self._next < self._oplog.end

    def read(self, count: int) -> list[Event]:
        """Read on, for at most so many events.

        :raises PyMongoError: when the oplog no longer holds what comes next, or the pipeline spoils an event.
        """
        self._check_history()
        found: list[Event] = []
        while self.is_behind and not self.is_dead and len(found) < count:
            if not self._waiting:
                self._scan()
                continue
            event = self._waiting.popleft()
            seen = self._let_through(event)
            if seen is not None:
                found.append(seen)
            if event["operationType"] == "invalidate":
                self.is_dead = True
            if seen is not None or self.is_dead:
                self.end = event["_id"]
        return found

    def _begin(self) -> tuple[Mapping[str, Any], Timestamp]:
        if "startAfter" in self._options:
            token = self._options["startAfter"]
            try:
                start = Position.of(token).cluster_time
            except ValueError as error:
                raise failure(260) from error
            self._after = token["_data"].upper()
            # A place between events is found wherever the stream goes on; an event has to be there.
            self._sought = "" if self._after == high_water_mark(start)["_data"] else self._after
            return token, start
        now = self._oplog.now
        begin = self._options.get("startAtOperationTime", Timestamp(now.time, now.inc + 1))
        return high_water_mark(begin), begin

    def _check_history(self) -> None:
        oplog, is_first = self._oplog, self._is_unread
        self._is_unread = False
        if is_first and oplog.begin and self._start < oplog.oldest:
            raise failure(286)
        if self._next < oplog.begin:
            raise failure(136)

    def _scan(self) -> None:
        time, event = self._oplog[self._next]
        self._next += 1
        if event is not None:
            self._waiting.extend(each for each in self._made_of(event) if self._is_ahead(each))
        mark = high_water_mark(time)
        if mark["_data"] > self.end["_data"].upper():
            self.end = mark

    def _made_of(self, event: Event) -> Iterator[Event]:
        """Give what this cursor makes of a change: nothing, an event, or one and an invalidate."""
        operation, own, to = event["operationType"], event["ns"], event.get("to")
        database, collection = self._level
        if database not in (None, own["db"]) and not (to and to["db"] == database):
            return
        if collection is not None:
            places = [(place["db"], place.get("coll")) for place in (own, to) if place]
            if operation == "dropDatabase" or self._level not in places:
                return
        if operation in EXPANDED and not self._options.get("showExpandedEvents"):
            return
        yield event
        ends = ("drop", "rename") if collection is not None else ("dropDatabase",) if database is not None else ()
        if operation in ends:
            yield _invalidate(event)

    def _is_ahead(self, event: Event) -> bool:
        data = event["_id"]["_data"]
        if data == self._sought and (event["operationType"] == "invalidate" or self._let_through(event) is not None):
            self._sought = ""
        return bool(data > self._after)

    def _let_through(self, event: Event) -> Event | None:
        seen: Event | None = self._with_images(event)
        for stage in self._stages:
            seen = None if seen is None else stage(seen)
        if seen is None:
            return None
        if self._sought and event["_id"]["_data"] > self._sought:
            raise failure(280)
        if seen.get("_id") != event["_id"]:
            raise failure(280, _MODIFIED)
        return seen

    def _with_images(self, event: Event) -> Event:
        """Give the event with the images that were asked for, as far as there are some."""
        operation = event["operationType"]
        shown = dict(event)
        if operation == "update":
            _show(shown, "fullDocument", self._options.get("fullDocument", "default"))
        if operation in _CHANGING:
            _show(shown, "fullDocumentBeforeChange", self._options.get("fullDocumentBeforeChange", "off"))
        return shown


def _show(event: dict[str, Any], image: str, asked: str) -> None:
    if asked in ("default", "off"):
        event.pop(image, None)
    elif event.get(image) is None:
        if asked == "required":
            raise failure(47)
        event[image] = None


def _invalidate(event: Event) -> Event:
    data = event["_id"]["_data"]
    token = {**event["_id"], "_data": data[: _KIND.start] + _INVALIDATE + data[_KIND.stop :]}
    times = {name: event[name] for name in ("clusterTime", "wallTime")}
    return {"_id": token, "operationType": "invalidate", **times}
