"""Run a soak and say what came of it."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

from rigatoni.mongod import ReplicaSet

from .faults import APPLICATION, Faults
from .notes import Notes
from .oracle import KILLED, Note, Verdict, Write, judged, missing
from .plan import KINDS, WATCHERS, planned
from .processes import Broken, Watching, wait_until
from .watching import BOUND
from .writing import Writer, marked

DATABASE = "soak"
WRITERS = 4


class Soak:
    """One run: writers, watchers and faults, until everything is mended and handled."""

    def __init__(self, seed: int, minutes: float, members: int, folder: Path) -> None:
        self.seed, self.minutes, self.members = seed, minutes, members
        self.broken: list[str] = []
        self.faults: Faults | None = None
        self.writers: list[Writer] = []
        self.watchers: list[Watching] = []
        self._marks: list[Write] = []
        self.notes = Notes(folder / "notes")
        self._folder = folder

    @property
    def writes(self) -> list[Write]:
        """Everything that was written."""
        return [write for writer in self.writers for write in writer.writes] + self._marks

    @property
    def ends(self) -> dict[int, str]:
        """How each process ended."""
        return {pid: end for watcher in self.watchers for pid, end in watcher.ends.items()}

    def run(self) -> None:
        """Do it; what was broken is in :attr:`broken`."""
        with ReplicaSet(self.members, parameters={"enableTestCommands": True}) as replica_set, ExitStack() as closing:
            uri = replica_set.uri + f"&appName={APPLICATION}"
            self.watchers = [Watching(slot, self._folder, uri, DATABASE) for slot in range(WATCHERS)]
            self.writers = [Writer(number, replica_set.uri, DATABASE, self.seed) for number in range(WRITERS)]
            for watcher in self.watchers:
                closing.callback(watcher.close)
                watcher.start(patched=True)
            self.watchers[0].wait_for_positions()
            self.faults = Faults(replica_set, self.members, self.watchers)
            try:
                self._disturb(self.faults)
                self._drain(self.faults, replica_set.uri)
            except Broken as error:
                self.broken.append(str(error))
            finally:
                (self._folder / "faults").write_text("\n".join(self.faults.told))

    def verdict(self) -> Verdict:
        """Ask the oracle."""
        return judged(self.writes, self.notes.all(), self.ends, BOUND)

    def _disturb(self, faults: Faults) -> None:
        tracks = planned(self.seed, 60 * self.minutes, self.members)
        written, failed = threading.Event(), threading.Event()
        with ThreadPoolExecutor(len(self.writers) + len(tracks)) as pool:
            writing = [pool.submit(writer.run, written) for writer in self.writers]
            following = [pool.submit(faults.follow, name, track, failed) for name, track in tracks.items()]
            for future in (*following, *writing):
                future.add_done_callback(lambda done: failed.set() if done.exception() else None)
            try:
                wait(following)
            finally:
                failed.set()
                written.set()
        for future in (*following, *writing):
            future.result()

    def _drain(self, faults: Faults, uri: str) -> None:
        """Wait until everything is handled; then a clean stop and another start must repeat nothing."""
        faults.mend()
        self._marks += marked(uri, DATABASE, "end")
        self._wait_for_everything()
        for watcher in self.watchers:
            watcher.terminate()
        self.watchers[0].start(patched=False)
        self._marks += marked(uri, DATABASE, "afterwards")
        self._wait_for_everything()
        self.watchers[0].terminate()

    def _wait_for_everything(self) -> None:
        # A backlog takes as long as it takes; only one that no longer shrinks is given up. What is missing is asked of
        # the very notes that are counted: the last one may come in between.
        notes = self._noted()
        while missing(self.writes, {note.change for note in notes}):
            # Less often, because each look goes through all notes.
            known = len(notes)
            what = "every acknowledged write is handled"
            notes = wait_until(lambda known=known: self._noted(known), what, pause=0.5)

    def _noted(self, known: int = -1) -> Sequence[Note]:
        """Return all notes; none as long as there are no more than so many."""
        for watcher in self.watchers:
            watcher.check()
        notes = self.notes.all()
        return notes if len(notes) > known else ()


def table(soak: Soak, verdict: Verdict) -> str:
    """Say it in a few lines."""
    done: Counter[str] = soak.faults.done if soak.faults is not None else Counter()
    handling = {note.pid for note in soak.notes.all()}
    killed = sum(soak.ends[pid] == KILLED for pid in handling)
    unknown = sum((writer.unknown for writer in soak.writers), Counter[str]())
    rows = {
        "seed": soak.seed,
        "minutes": soak.minutes,
        **{kind.replace("_", " "): done[kind] for kind in KINDS},
        "processes that handled": f"{len(handling)}, {killed} of them killed",
        "changes written": f"{verdict.acknowledged} acknowledged, {len(soak.writes) - verdict.acknowledged} unknown",
        "writes of unknown outcome": ", ".join(f"{count} {name}" for name, count in unknown.items()) or 0,
        "changes handled": verdict.handled,
        "repeated": f"{verdict.repeated} ({verdict.allowed} allowed)",
        "repeated without an excuse": len(verdict.doubled),
        "lost": len(verdict.lost),
        "out of order": len(verdict.disordered),
        "invented": len(verdict.invented),
    }
    return "\n".join(f"{name:26} {value}" for name, value in rows.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when every promise was kept, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long there are faults; default 5")
    parser.add_argument("--seed", type=int, help="which faults come when; default: any")
    parser.add_argument("--members", type=int, default=3, help="of the replica set; default 3")
    given = parser.parse_args(arguments)
    seed = SystemRandom().randrange(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(seed, given.minutes, given.members, folder)
    soak.run()
    verdict = soak.verdict()
    print(table(soak, verdict))
    if verdict.holds and not soak.broken:
        shutil.rmtree(folder)
        return 0
    examples = [
        f"{what}: {found}"
        for what in ("lost", "disordered", "doubled", "invented")
        for found in getattr(verdict, what)[:10]
    ]
    print(*examples, *soak.broken, sep="\n")
    print(f"violated; notes and logs are in {folder}; again:", end=" ")
    print(f"tox -e soak -- --minutes {given.minutes} --members {given.members} --seed {seed}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
