"""What must hold, whatever happened: nothing lost, each document in order, repeated only what a kill explains. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

#: The number of a delete, which no event carries: the last change of its document.
DELETED = 10**9

#: One change: the document, and its number among the changes of this document.
Change = tuple[str, int]

#: How a watching process ended: after a clean end nothing may be repeated.
CLEAN, KILLED, UNFINISHED = "clean", "killed", "unfinished"


class Write(NamedTuple):
    """A change that a writer made.

    :ivar acknowledged: by a majority; else its outcome is unknown, and it is neither required nor forbidden.
    """

    change: Change
    acknowledged: bool


class Note(NamedTuple):
    """A change that a handler saw: by which event, in which process, when (monotonic, the same for all processes)."""

    change: Change
    event: str
    pid: int
    when: float


class Bound(NamedTuple):
    """How many events one end that is not clean may repeat.

    :ivar in_flight: of all streams together.
    :ivar interval: seconds between two saves: what they brought comes on top.
    """

    in_flight: int
    interval: float


@dataclass
class Verdict:
    """What came of it.

    :ivar lost: acknowledged, and never handled.
    :ivar disordered: handled after a later change of the same document.
    :ivar doubled: repeated without an excuse.
    :ivar invented: handled but never written, or twice by different events.
    :ivar repeated: with an excuse.
    :ivar allowed: how many could have been.
    """

    acknowledged: int = 0
    handled: int = 0
    repeated: int = 0
    allowed: int = 0
    lost: list[Change] = field(default_factory=list)
    disordered: list[Note] = field(default_factory=list)
    doubled: list[Note] = field(default_factory=list)
    invented: list[Note] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Tell whether every promise was kept."""
        return not (self.lost or self.disordered or self.doubled or self.invented)


def judged(writes: Iterable[Write], notes: Sequence[Note], ends: Mapping[int, str], bound: Bound) -> Verdict:
    """Compare what was written with what was handled.

    :param notes: in the order in which they were made.
    :param ends: how each process ended.
    """
    written = {write.change: write.acknowledged for write in writes}
    seen = {note.change for note in notes}
    verdict = Verdict(acknowledged=sum(written.values()), handled=len(seen))
    verdict.lost = missing(written.items(), seen)
    verdict.disordered = list(_disordered(notes))
    events: dict[Change, str] = {}
    for note in notes:
        if note.change not in written or events.setdefault(note.change, note.event) != note.event:
            verdict.invented.append(note)
    _weigh_repetitions(verdict, notes, ends, bound)
    return verdict


def missing(writes: Iterable[tuple[Change, bool]], seen: set[Change]) -> list[Change]:
    """List what was acknowledged and is not among what was seen."""
    return [change for change, acknowledged in writes if acknowledged and change not in seen]


def most_within(times: Sequence[float], seconds: float) -> int:
    """Count what the busiest stretch of so many seconds brought."""
    first = most = 0
    for last, when in enumerate(times):
        while when - times[first] > seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def _disordered(notes: Iterable[Note]) -> Iterator[Note]:
    """Find what came for the first time after a later change, and what a process saw after a later one."""
    reached: dict[str, int] = {}
    reached_by: dict[tuple[int, str], int] = {}
    seen: set[Change] = set()
    for note in notes:
        document, number = note.change
        is_late = note.change not in seen and number < reached.get(document, -1)
        if is_late or number < reached_by.get((note.pid, document), -1):
            yield note
        seen.add(note.change)
        reached[document] = max(number, reached.get(document, -1))
        reached_by[note.pid, document] = max(number, reached_by.get((note.pid, document), -1))


def _weigh_repetitions(verdict: Verdict, notes: Sequence[Note], ends: Mapping[int, str], bound: Bound) -> None:
    """Charge each repetition to the process that saw the change before; only one that did not end clean may have any.

    What it handled and what is behind its saved position is what was in flight at its end, and what came since its last
    save; and each of its notes is followed by at most one next note of the same change.
    """
    times: defaultdict[int, list[float]] = defaultdict(list)
    for note in notes:
        times[note.pid].append(note.when)
    left = {
        pid: 0 if ends[pid] == CLEAN else bound.in_flight + most_within(sorted(times[pid]), bound.interval)
        for pid in times
    }
    verdict.allowed = sum(left.values())
    before: dict[Change, int] = {}
    repeated: Counter[int] = Counter()
    for note in notes:
        earlier = before.get(note.change)
        before[note.change] = note.pid
        if earlier is None:
            continue
        repeated[earlier] += 1
        if earlier == note.pid or repeated[earlier] > left[earlier]:
            verdict.doubled.append(note)
        else:
            verdict.repeated += 1
