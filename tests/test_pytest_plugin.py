"""The pytest plugin, in test runs of its own."""

import os
import subprocess
import sys
from pathlib import Path

import rigatoni

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rigatoni.__file__).parent.parent)}


def run_pytest(folder: Path, **environment: str) -> str:
    (folder / "test_with_plugin.py").write_text(
        "from pymongo import MongoClient\n"
        "def test_write(mongodb_replica_set, mongodb_database_name):\n"
        "    with MongoClient(mongodb_replica_set.uri) as client:\n"
        "        client[mongodb_database_name].orders.insert_one({})\n"
        "        assert client[mongodb_database_name].orders.count_documents({}) == 1\n"
        "def test_play(fake_mongodb):\n"
        "    from rigatoni import MemoryStore, Watcher\n"
        "    watcher, seen = Watcher(fake_mongodb, 'shop', store=MemoryStore()), []\n"
        "    watcher.on('insert')(seen.append)\n"
        "    with watcher:\n"
        "        fake_mongodb.insert('orders')\n"
        "        fake_mongodb.drain(watcher)\n"
        "    assert len(seen) == 1\n"
    )
    settings = {**ENVIRONMENT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "rigatoni.contrib.pytest",
        "-c",
        os.devnull,
        str(folder),
    ]
    return subprocess.run(command, capture_output=True, text=True, env=settings, cwd=folder).stdout


def test_the_plugin_gives_a_running_set_a_fresh_database_and_a_fake_server(tmp_path: Path) -> None:
    assert "2 passed" in run_pytest(tmp_path)


def test_the_plugin_skips_without_a_mongod_but_fails_where_one_is_asked_for(tmp_path: Path) -> None:
    # An empty PATH, and an empty package in front of the embedded one.
    (tmp_path / "fiftyone").mkdir()
    (tmp_path / "fiftyone" / "__init__.py").touch()
    paths = os.pathsep.join((str(tmp_path), ENVIRONMENT["PYTHONPATH"]))
    nowhere = {"PATH": "", "PYTHONPATH": paths, "RIGATONI_MONGOD": "", "CI": ""}

    assert "1 passed, 1 skipped" in run_pytest(tmp_path, **nowhere)
    assert "1 error" in run_pytest(tmp_path, **{**nowhere, "CI": "true"})
    assert "1 error" in run_pytest(tmp_path, **{**nowhere, "RIGATONI_MONGOD": "/no/such/mongod"})


def test_loading_the_plugin_imports_neither_gevent_nor_pymongo() -> None:
    script = "import sys, rigatoni.contrib.pytest; print(sorted({'gevent', 'pymongo', 'bson'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)

    assert (run.stdout, run.stderr) == ("[]\n", "")
