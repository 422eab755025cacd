"""Applications that tests serve as processes of their own: by gunicorn, and by Flask's development server.

The application notes what its handlers are called with in a file, a line ``_id pid`` each; ``/`` tells which process
answers and how its watcher is.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from commands import ENVIRONMENT
from conftest import wait_until

from rigatoni import SQLiteStore

SHOP = """\
import os

from flask import Flask, current_app

from rigatoni.contrib.flask import Rigatoni

rigatoni = Rigatoni()


@rigatoni.on("insert", collection="orders")
def note(event):
    with open(os.path.join(current_app.root_path, "seen"), "a") as seen:
        seen.write(f"{event.document_key['_id']} {os.getpid()}\\n")


def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    rigatoni.init_app(app)
    app.add_url_rule("/", view_func=lambda: {"pid": os.getpid(), "state": rigatoni.watcher.state})
    return app
"""
#: Servers of parallel tests must not share a socket at home; versions that have none ignore it.
ALONE = "control_socket_disable = True\n"
HOOKS = "from rigatoni.contrib.gunicorn import post_worker_init, worker_exit\n"


class Serving:
    """A server process; ``with`` ends it and its workers, whatever happened.

    :param folder: of its modules, which also keeps what they write.
    :param uri: of the server that is watched.
    :param database: that is watched.
    """

    def __init__(self, folder: Path, command: list[str], uri: str, database: str, **environment: str) -> None:
        self._folder = folder
        self._log = folder / f"log{len(list(folder.glob('log*')))}"
        settings = {
            "FLASK_RIGATONI_URI": uri,
            "FLASK_RIGATONI_DATABASE": database,
            "FLASK_RIGATONI_STORE": str(folder / "tokens.db"),
            "FLASK_RIGATONI_START_AT": "1h",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=ENVIRONMENT | settings | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def port(self) -> int:
        """Where it says that it serves; 0 before."""
        told = re.search(r"(?:Listening at: |Running on )http://127\.0\.0\.1:(\d+)", self.log)
        return int(told[1]) if told else 0

    @property
    def seen(self) -> Counter[int]:
        """How often each document was handled."""
        return Counter(int(line.split()[0]) for line in lines_of(self._folder / "seen"))

    def status(self) -> dict[str, Any]:
        """Return the status row, as any process reads it; empty while there is none."""
        store = SQLiteStore(self._folder / "tokens.db")
        try:
            return (store.status("default") if (self._folder / "tokens.db").exists() else None) or {}
        finally:
            store.close()

    def active(self) -> int | None:
        """Return the pid of the process that watches; None while none does."""
        status = self.status()
        return status["pid"] if status.get("state") == "running" else None

    def get(self, path: str = "/") -> Any:
        """Ask it; None while nobody answers."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
                return json.load(answer)
        except (URLError, ConnectionError):
            return None

    def states(self, count: int) -> dict[int, str]:
        """Ask until so many processes have answered, and say how the watcher of each is."""
        found: dict[int, str] = {}

        def ask() -> bool:
            answer = self.get()
            if answer is not None:
                found[answer["pid"]] = answer["state"]
            return len(found) >= count

        self.wait_for(ask)
        return found

    def wait_for(self, condition: Callable[[], object], timeout: float = 60.0) -> None:
        """Wait for a condition; what it logged is told when it does not come about."""
        try:
            wait_until(lambda: condition() or self.process.poll() is not None, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; its log:\n{self.log}") from None
        assert self.process.poll() is None or condition(), f"it ended with {self.process.returncode}:\n{self.log}"

    def wait_seen(self, count: int) -> None:
        self.wait_for(lambda: len(self.seen) >= count)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            # Its workers too: the session is its own.
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def gunicorn(
    folder: Path, uri: str, database: str, *options: str, conf: str = HOOKS, app: str = "shop:create_app()"
) -> Serving:
    """Serve the shop, or another application of the folder, by gunicorn."""
    write(folder, {"shop.py": SHOP, "gunicorn.conf.py": ALONE + conf})
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", *options, app]
    return Serving(folder, command, uri, database)


def flask(folder: Path, uri: str, database: str, *options: str, **environment: str) -> Serving:
    """Run a command of Flask for the shop."""
    write(folder, {"shop.py": SHOP})
    return Serving(folder, [sys.executable, "-m", "flask", "--app", "shop", *options], uri, database, **environment)


def write(folder: Path, files: dict[str, str]) -> None:
    """Write modules that are not there yet."""
    for name, text in files.items():
        if not (folder / name).exists():
            (folder / name).write_text(text)


def lines_of(path: Path) -> list[str]:
    """Return the complete lines of a file that another process writes."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()
