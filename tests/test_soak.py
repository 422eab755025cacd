"""The soak's oracle sees what goes wrong, its plan is the same for the same seed, and a short run of it holds."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path
from time import monotonic

import pytest
from conftest import PYTHON
from soak.notes import Notes, note, opened
from soak.oracle import CLEAN, DELETED, KILLED, UNFINISHED, Bound, Note, Verdict, Write, judged, most_within
from soak.plan import KINDS, OF_SERVERS, planned

#: What a process that was killed may repeat here; no note is within the interval of another.
BOUND = Bound(in_flight=1, interval=0.1)


def verdict(seen: str, ends: str = CLEAN, *, unknown: str = "", bound: Bound = BOUND) -> Verdict:
    """Judge what processes saw of two documents' changes a0 to a2 and b0 to b2.

    :param seen: changes, each process's after a bar.
    :param ends: how the processes ended, in their order.
    :param unknown: changes of unknown outcome.
    """
    writes = [
        Write((document, number), f"{document}{number}" not in unknown) for document in "ab" for number in range(3)
    ]
    notes = [
        Note((change[0], int(change[1])), f"id of {change}", pid, float(place))
        for pid, run in enumerate(seen.split("|"))
        for place, change in enumerate(run.split())
    ]
    return judged(writes, notes, dict(enumerate(ends.split())), bound)


def test_everything_once_and_in_order_holds() -> None:
    found = verdict("a0 b0 b1 a1 a2 b2")

    assert found.holds
    assert (found.acknowledged, found.handled, found.repeated, found.allowed) == (6, 6, 0, 0)


def test_a_lost_change_is_found() -> None:
    found = verdict("a0 a1 b0 b1 b2")

    assert not found.holds
    assert found.lost == [("a", 2)]


def test_a_change_of_unknown_outcome_may_come_or_not() -> None:
    assert verdict("a0 a1 b0 b1 b2", unknown="a2").holds
    assert verdict("a0 a1 a2 b0 b1 b2", unknown="a2").holds


def test_a_change_after_a_later_one_of_its_document_is_found() -> None:
    found = verdict("a0 a2 a1 b0 b1 b2")

    assert not found.holds
    assert [late.change for late in found.disordered] == [("a", 1)]


def test_a_change_that_comes_first_after_another_process_saw_a_later_one_is_found() -> None:
    found = verdict("a0 a2 b0 | a1 b1 b2", f"{KILLED} {CLEAN}")

    assert [late.change for late in found.disordered] == [("a", 1)]


def test_a_repetition_in_disorder_is_found() -> None:
    bound = Bound(10, 0.1)

    assert verdict("a0 a1 a2 | a1 a2 b0 b1 b2", f"{KILLED} {CLEAN}", bound=bound).holds
    found = verdict("a0 a1 a2 | a2 a1 b0 b1 b2", f"{KILLED} {CLEAN}", bound=bound)
    assert [late.change for late in found.disordered] == [("a", 1)]


@pytest.mark.parametrize("end", [CLEAN, KILLED, UNFINISHED])
def test_a_change_that_comes_twice_within_a_process_is_found(end: str) -> None:
    found = verdict("a0 a0 a1 a2 b0 b1 b2", end)

    assert not found.holds
    assert [double.change for double in found.doubled] == [("a", 0)]


@pytest.mark.parametrize("end", [KILLED, UNFINISHED])
def test_a_kill_may_repeat_as_much_as_the_bound_says_and_no_more(end: str) -> None:
    within = verdict("a0 a1 | a0 a1 a2 b0 b1 b2", f"{end} {CLEAN}")
    assert within.holds
    assert (within.repeated, within.allowed) == (2, 2)

    beyond = verdict("a0 a1 b0 | a0 a1 a2 b0 b1 b2", f"{end} {CLEAN}")
    assert not beyond.holds
    assert [double.change for double in beyond.doubled] == [("b", 0)]


def test_a_clean_end_repeats_nothing() -> None:
    found = verdict("a0 a1 | a1 a2 b0 b1 b2", f"{CLEAN} {CLEAN}")

    assert not found.holds
    assert [double.change for double in found.doubled] == [("a", 1)]


def test_a_repetition_is_charged_to_the_process_that_saw_the_change_last() -> None:
    # The first one excuses a0 and a1, but a0 came from the second one once more, and that ended clean.
    found = verdict("a0 a1 | a0 | a0 a1 a2 b0 b1 b2", f"{KILLED} {CLEAN} {CLEAN}")

    assert [double.change for double in found.doubled] == [("a", 0)]
    assert found.repeated == 2


def test_a_change_that_nobody_wrote_is_found() -> None:
    assert [note.change for note in verdict("a0 a1 a2 b0 b1 b2 b7").invented] == [("b", 7)]


def test_a_change_that_is_two_events_is_found() -> None:
    writes = [Write(("a", 0), True)]
    notes = [Note(("a", 0), "one", 1, 0.0), Note(("a", 0), "another", 2, 1.0)]

    found = judged(writes, notes, {1: KILLED, 2: CLEAN}, BOUND)

    assert not found.holds
    assert found.invented == [notes[1]]


def test_a_delete_is_the_last_change_of_its_document() -> None:
    writes = [Write(("a", 7), True), Write(("a", DELETED), True)]
    notes = [Note(("a", DELETED), "delete", 1, 0.0), Note(("a", 7), "update", 1, 1.0)]

    assert judged(writes, notes[::-1], {1: CLEAN}, BOUND).holds
    assert not judged(writes, notes, {1: CLEAN}, BOUND).holds


def test_the_busiest_stretch_is_counted() -> None:
    assert most_within([], 1.0) == 0
    assert most_within([0.0, 5.0, 5.5, 5.9, 7.0], 1.0) == 3


def test_a_note_that_a_kill_cut_off_is_none_and_spoils_none(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    file = opened(str(notes.path))
    note(file, [(("quick/0-1", 3), "one")])
    with notes.path.open("ab") as cut:
        cut.write(b"\nquick/0-1 4 two 17 12.5")
    assert [seen.change for seen in notes.all()] == [("quick/0-1", 3)]

    note(file, [(("quick/0-1", 4), "two"), (("quick/0-1", 5), "three")])

    assert [(seen.change[1], seen.event) for seen in notes.all()] == [(3, "one"), (4, "two"), (5, "three")]
    assert all(seen.when <= monotonic() for seen in notes.all())


def test_the_same_seed_gives_the_same_faults_and_another_one_others() -> None:
    assert planned(7, 300.0) == planned(7, 300.0)
    assert planned(7, 300.0) != planned(8, 300.0)


def test_a_longer_run_begins_with_the_faults_of_a_shorter_one() -> None:
    short, long = planned(7, 60.0), planned(7, 600.0)

    # All but the last, which may be too long for the shorter run.
    assert all(long[track][: len(faults)] == faults for track, faults in short.items())
    assert all(len(long[track]) > len(faults) > 0 for track, faults in short.items())


def test_a_long_run_has_every_kind_of_fault_and_each_track_one_after_the_other() -> None:
    tracks = planned(7, 1800.0)

    assert {fault.kind for track in tracks.values() for fault in track} == set(KINDS)
    for track in tracks.values():
        assert all(earlier.at + earlier.duration < later.at for earlier, later in pairwise(track))
        assert track[-1].at + track[-1].duration <= 1800.0


def test_a_set_of_one_has_no_majority_to_lose() -> None:
    assert {fault.kind for fault in planned(7, 1800.0, members=1)["servers"]} == set(OF_SERVERS) - {"majority_lost"}


@pytest.mark.faults
def test_a_soak_of_half_a_minute_loses_nothing_and_keeps_the_order() -> None:
    command = [PYTHON, "-m", "soak", "--minutes", "0.5", "--seed", "14"]

    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=600)

    print(found.stdout)
    assert found.returncode == 0, found.stdout + found.stderr
