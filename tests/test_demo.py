"""``rigatoni demo``: it loses nothing, it would say so if it did, and it leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import rigatoni_ends, running

pytestmark = pytest.mark.usefixtures("mongodb_replica_set")

# A demo with another program, or less patience.
SABOTAGED = """\
import sys, rigatoni.cli, rigatoni.demo, rigatoni.demo.program as program
rigatoni.demo.PATIENCE = 3.0
before = program.PROGRAM
program.PROGRAM = before.replace({old!r}, {new!r})
assert program.PROGRAM != before
sys.exit(rigatoni.cli.main())
"""

# A store that keeps only the first position of all; and who ends in order leaves a mark.
FORGETFUL = """\
import atexit
from rigatoni import SQLiteStore

class Forgetful(SQLiteStore):
    def save(self, name, positions, status=None):
        super().save(name, {} if self.load(name) else positions, status)

watcher = Watcher(os.environ["DEMO_URI"], "demo", store=Forgetful("positions.db"))
atexit.register(lambda: open(os.environ["TMPDIR"] + "/ended", "a").write("in order "))
"""

SUMMARY = re.compile(r"written (\d+), handled (\d+), lost (\d+), repeated after the crash (\d+)")


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the demo puts what it needs: all that it starts has this folder's name in its environment."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def processes_of(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.fsencode(folder) in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
        except OSError:
            # It ended meanwhile, or belongs to somebody else.
            continue
    return found


def sabotaged_demo(old: str, new: str, temporary: Path) -> subprocess.CompletedProcess[str]:
    script = SABOTAGED.format(old=old, new=new)
    return rigatoni_ends("demo", "--operations", "200", command=(sys.executable, "-c", script), TMPDIR=str(temporary))


def counts(run: Any) -> list[int]:
    summary = SUMMARY.fullmatch(run.stdout.splitlines()[-1])
    assert summary is not None, run.stdout + run.stderr
    return list(map(int, summary.groups()))


def test_a_program_that_is_killed_half_way_loses_nothing_and_nothing_is_left_behind(temporary: Path) -> None:
    run = rigatoni_ends("demo", "--operations", "1200", TMPDIR=str(temporary))
    written, handled, lost, repeated = counts(run)
    killed = re.search(r"kill -9 (\d+): it is gone, having handled (\d+) changes", run.stdout)
    again = re.search(r"started again \(process (\d+)\)", run.stdout)

    assert (run.returncode, run.stderr) == (0, "")
    assert (written, handled, lost) == (1200, 1200, 0)
    assert killed is not None and again is not None
    assert killed[1] != again[1]
    assert int(killed[2]) >= 600
    assert repeated <= int(killed[2])
    # In a pipe its progress is plain lines.
    assert "\r" not in run.stdout
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


def test_a_program_that_skips_events_is_found_out_and_the_exit_code_says_so(temporary: Path) -> None:
    # Insert, two updates and the delete of one document.
    run = sabotaged_demo("    changed =", "    if event.document_key['_id'] == 7: return\n    changed =", temporary)

    assert counts(run)[:3] == [200, 196, 4]
    assert run.returncode == 1


def test_what_is_handled_again_after_a_real_kill_is_counted(temporary: Path) -> None:
    run = sabotaged_demo(
        'watcher = Watcher(os.environ["DEMO_URI"], "demo", store="positions.db")', FORGETFUL, temporary
    )
    killed = re.search(r"having handled (\d+) changes", run.stdout)

    assert killed is not None
    *others, repeated = counts(run)
    assert others == [200, 200, 0]
    # On a busy machine it may have handled everything when it is killed: then nobody waits for what it repeats.
    assert repeated == int(killed[1]) or killed[1] == "200"
    assert run.returncode == 0
    # Only the second one: the first was really killed.
    assert (temporary / "ended").read_text() == "in order "


def test_a_program_that_does_not_start_is_told_with_its_own_words(temporary: Path) -> None:
    run = sabotaged_demo("import os\n", "raise SystemExit('no coffee')\n", temporary)

    assert run.returncode == 1
    assert "the program ended with exit code 1" in run.stderr
    assert "no coffee" in run.stderr
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


def test_without_a_mongod_it_says_where_to_get_one(temporary: Path) -> None:
    run = rigatoni_ends("demo", RIGATONI_MONGOD="/no/such/mongod", TMPDIR=str(temporary))

    assert run.returncode == 10
    assert run.stderr.startswith("rigatoni: configuration: RIGATONI_MONGOD=")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["", "throw-away mongod", "A writer", "kill -9"])
def test_an_interrupted_demo_leaves_nothing_behind(number: int, moment: str, tmp_path: Path, temporary: Path) -> None:
    with running(tmp_path, "demo", TMPDIR=str(temporary)) as demo:
        # The guardian's folder is the first thing that there is, but for a file by which Python tries the place.
        demo.wait_for(lambda: moment in demo.out and any(path.is_dir() for path in temporary.iterdir()))
        code = demo.end(number)

    assert (code, demo.err) == (130, "")
    assert SUMMARY.search(demo.out) is None
    assert list(temporary.iterdir()) == []
    assert processes_of(temporary) == []


def test_on_a_terminal_the_progress_is_one_line_that_is_redrawn(tmp_path: Path, temporary: Path) -> None:
    ours, theirs = os.openpty()
    shown = b""
    try:
        with running(tmp_path, "demo", "--operations", "400", stdout=theirs, TMPDIR=str(temporary)) as demo:
            while b"repeated after the crash" not in shown:
                shown += os.read(ours, 65536)
            assert demo.end() == 0
    finally:
        os.close(ours)
        os.close(theirs)

    assert any(line.count("\r\x1b[K    written ") > 1 for line in shown.decode().split("\r\n"))
