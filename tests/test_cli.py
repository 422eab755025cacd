"""The command line and ``rigatoni run``: what they say, where, and with which exit code they end."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, ENTRY_POINT, ENVIRONMENT, Running, rigatoni_ends, running
from conftest import wait_until

import rigatoni

PROGRAM = """\
import os
from rigatoni import RetryPolicy, Watcher

watcher = Watcher(os.environ["URI"], os.environ["DATABASE"], store="positions.db")
notes = os.open("notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

@watcher.on("insert", collection="orders")
def note(event):
    os.write(notes, f"{event.full_document['n']}\\n".encode())

@watcher.on("delete", on_error="stop", retry=RetryPolicy(max_attempts=1))
def refuse(event):
    raise LookupError("no such order")
"""


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


@contextmanager
def running_program(folder: Path, uri: str, database: Any) -> Iterator[Running]:
    (folder / "program.py").write_text(PROGRAM)
    with running(folder, "run", "program:watcher", URI=uri, DATABASE=database.name) as run:
        yield run


def noted(folder: Path) -> list[int]:
    path = folder / "notes"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_watching(folder: Path) -> bool:
    if not (folder / "positions.db").exists():
        return False
    store = rigatoni.SQLiteStore(folder / "positions.db")
    store.open()
    try:
        return (store.status("default") or {}).get("state") == "running"
    finally:
        store.close()


# The group.


def test_loading_the_command_line_imports_nothing_that_must_be_patched_first() -> None:
    script = "import sys, rigatoni.cli; print(sorted({'gevent', 'pymongo', 'bson', 'ssl'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)

    assert (run.stdout, run.stderr) == ("[]\n", "")


def test_the_version_is_told() -> None:
    run = rigatoni_ends("--version", command=ENTRY_POINT)

    assert (run.returncode, run.stdout) == (0, f"rigatoni {rigatoni.__version__}\n")


def test_help_shows_examples_and_the_exit_code_of_every_category() -> None:
    run = rigatoni_ends("--help")
    categories = {error.category for error in rigatoni.StreamError.__subclasses__()}
    codes = {words[1]: words[0] for words in map(str.split, run.stdout.splitlines()) if words and words[0].isdigit()}

    assert run.returncode == 0
    assert "rigatoni run shop.handlers:watcher" in run.stdout
    assert categories <= codes.keys()
    assert len({codes[category] for category in categories} - {"0", "1", "2"}) == len(categories)


@pytest.mark.parametrize(
    "arguments",
    [
        ["mongodb://me:secret@127.0.0.1:1/"],
        ["run", "mongodb://me:secret@127.0.0.1:1/"],
        ["doctor", "mongodb://me:secret@127.0.0.1:1/?serverSelectionTimeoutMS=1"],
        ["doctor", "mongodb://me:sec/ret@127.0.0.1:1/"],
        ["tokens", "mongodb://me:secret@127.0.0.1:1/"],
        ["tokens", "list", "--nmae", "mongodb://me:secret@127.0.0.1:1/"],
        ["watch", "shop", "mongodb://me:secret@127.0.0.1:1/"],
        ["watch", "mongodb://me:secret@127.0.0.1:1/", "mongodb+srv://me:secret@shop.example/"],
        ["watch", "mongodb://me:sec/ret@127.0.0.1:1/"],
        ["watch", "mongodb://me:secret@127.0.0.1:1/?serverSelectionTimeoutMS=1&nonsense=secret"],
        ["watch", "mongodb://me:secret@127.0.0.1:1/?serverSelectionTimeoutMS=1&authMechanism=NO"],
    ],
)
def test_a_wrong_command_line_never_shows_the_password(arguments: list[str]) -> None:
    run = rigatoni_ends(*arguments, RIGATONI_MAX_RECONNECT_ATTEMPTS="1")

    assert run.returncode != 0
    assert run.stderr
    assert not any(part in run.stdout + run.stderr for part in ("secret", "sec/", "ret@"))


# rigatoni run


@pytest.mark.parametrize("command", [COMMAND, ENTRY_POINT], ids=["python -m", "entry point"])
def test_run_patches_before_ssl_and_pymongo_come_in(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import sys\n"
        "import gevent.ssl, socket, ssl, threading, time\n"
        "from gevent.monkey import is_module_patched\n"
        "assert all(map(is_module_patched, ['socket', 'ssl', 'threading', 'time', 'select', 'queue']))\n"
        "import pymongo.ssl_context\n"
        "assert pymongo.ssl_context.SSLContext is gevent.ssl.SSLContext\n"
        "raise SystemExit(77)\n"
    )
    run = rigatoni_ends("run", "program:watcher", cwd=tmp_path, command=command)

    # gevent warns when ssl came in before it patched.
    assert (run.returncode, run.stderr) == (77, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_ends_with_0_and_the_next_repeats_nothing(
    number: int, tmp_path: Path, uri: str, database: Any
) -> None:
    with running_program(tmp_path, uri, database) as run:
        wait_until(lambda: is_watching(tmp_path))
        database.orders.insert_many([{"n": n} for n in range(500)])
        wait_until(lambda: len(noted(tmp_path)) >= 100)
        assert run.end(number) == 0
        assert "Traceback" not in run.err
    before = noted(tmp_path)
    database.orders.insert_one({"n": 500})
    with running_program(tmp_path, uri, database) as run:
        wait_until(lambda: 500 in noted(tmp_path))
        assert run.end(number) == 0

    assert 100 <= len(before) <= 500
    assert noted(tmp_path) == list(range(501))


def test_run_waits_for_the_handler_that_works_when_the_signal_comes(tmp_path: Path, uri: str, database: Any) -> None:
    slow = "    import time; os.write(notes, b'0\\n'); time.sleep(0.1); time.sleep(0.1)\n    os.write(notes, b'1\\n')\n"
    text = PROGRAM[: PROGRAM.index("    os.write")] + slow
    (tmp_path / "program.py").write_text(text)
    with running(tmp_path, "run", "program:watcher", URI=uri, DATABASE=database.name) as run:
        wait_until(lambda: is_watching(tmp_path))
        database.orders.insert_one({"n": 0})
        wait_until(lambda: noted(tmp_path))
        assert run.end(signal.SIGTERM) == 0

    assert noted(tmp_path) == [0, 1]


def test_a_fatal_error_ends_run_with_its_category_and_code(tmp_path: Path, uri: str, database: Any) -> None:
    with running_program(tmp_path, uri, database) as run:
        wait_until(lambda: is_watching(tmp_path))
        database.orders.insert_one({"_id": 1, "n": 1})
        database.orders.delete_one({"_id": 1})
        code = run.end()

    last = run.err.splitlines()[-1]
    assert code == 17
    assert last.startswith("rigatoni: handler: program:refuse failed 1 times with LookupError")
    # The library's own log says why.
    assert "no such order" in run.err


def test_run_logs_what_happens_unless_the_program_configured_logging(tmp_path: Path) -> None:
    unconfigured = "from rigatoni import Watcher\nwatcher = Watcher()\n"
    configured = "import logging\nlogging.basicConfig(level='CRITICAL')\n" + unconfigured
    (tmp_path / "plain.py").write_text(
        "import logging\n" + unconfigured + "watcher.on()(print)\n"
        "watcher.run = lambda: logging.getLogger('rigatoni.shop').info('hello')\n"
    )
    (tmp_path / "configured.py").write_text(
        configured + "watcher.on()(print)\nwatcher.run = lambda: logging.getLogger('rigatoni.shop').info('hello')\n"
    )

    assert "INFO rigatoni.shop: hello" in rigatoni_ends("run", "plain:watcher", cwd=tmp_path).stderr
    assert rigatoni_ends("run", "configured:watcher", cwd=tmp_path).stderr == ""


@pytest.mark.parametrize(
    ("target", "mistake"),
    [
        ("program", "'program' names no watcher: write MODULE:WATCHER"),
        ("program:", "names no watcher"),
        ("program.py:watcher", "there is no module"),
        ("./program:watcher", "is no Python name"),
        ("program:__import__('os')", "is no Python name"),
        ("nowhere:watcher", "there is no module 'nowhere'"),
        ("nowhere.deeper:watcher", "there is no module 'nowhere'"),
        ("program:wacher", "has no 'wacher': its watchers are watcher"),
        ("program:number", "is no Watcher but a int: its watchers are watcher"),
        ("empty:watcher", "it has no watcher"),
        ("self_starting:watcher", "starts its watcher itself"),
        ("mongodb://localhost:27017", "is no URI"),
    ],
)
def test_a_target_that_is_no_watcher_is_a_usage_error_that_names_the_mend(
    target: str, mistake: str, tmp_path: Path
) -> None:
    watcher = "from rigatoni import Watcher\nwatcher = Watcher()\nnumber = 7\n"
    (tmp_path / "program.py").write_text(watcher)
    (tmp_path / "empty.py").touch()
    (tmp_path / "self_starting.py").write_text(
        "from rigatoni import ChangeStreamConfig, StreamError, Watcher\n"
        "uri = 'mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=1'\n"
        "config = ChangeStreamConfig(max_reconnect_attempts=1)\n"
        "watcher = Watcher(uri, config=config)\n"
        "watcher.on()(print)\n"
        "try:\n    watcher.run()\nexcept StreamError:\n    pass\n"
    )
    run = rigatoni_ends("run", target, cwd=tmp_path)

    assert run.returncode == 2
    assert mistake in " ".join(run.stderr.split())
    assert run.stderr.splitlines()[-1].startswith("Error: ")


def test_an_attribute_of_an_attribute_of_a_module_in_a_package_is_found(tmp_path: Path) -> None:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "app.py").write_text(
        "from types import SimpleNamespace\nfrom rigatoni import Watcher\n"
        "services = SimpleNamespace(watcher=Watcher())\n"
    )
    run = rigatoni_ends("run", "shop.app:services.watcher", cwd=tmp_path)

    # It is found and started, and then says that it has nothing to do.
    assert run.returncode == 10
    assert run.stderr.splitlines()[-1].startswith("rigatoni: configuration: ")


def test_a_program_with_a_missing_import_shows_where(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import no_such_dependency\n")
    run = rigatoni_ends("run", "program:watcher", cwd=tmp_path)

    assert run.returncode == 1
    assert 'program.py", line 1' in run.stderr
    assert "No module named 'no_such_dependency'" in run.stderr


def test_a_wrong_registration_shows_its_line_and_its_category(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from rigatoni import Watcher\nwatcher = Watcher()\n\n@watcher.on('inserted')\ndef ship(event): ...\n"
    )
    run = rigatoni_ends("run", "program:watcher", cwd=tmp_path)

    assert run.returncode == 10
    assert 'program.py", line 4' in run.stderr
    assert run.stderr.splitlines()[-1].startswith("rigatoni: configuration: unknown operation 'inserted'")
