"""The process between an owner and its servers, which ends them when the owner has ended, whatever ended it.

This file is both sides: :class:`Guardian` in the owner, and the program of the guardian process, which is run as a
script and therefore imports nothing but the standard library. The guardian is the parent of the servers, so no process
id is ever a guess: until it has asked for a child's exit code, nobody else can get that child's id. (PR_SET_PDEATHSIG
would follow the thread that made the child, not the process.)
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any


class Guardian:
    """A guardian process with an empty folder, both of which go with this process, or with :meth:`close`.

    :raises RuntimeError: the process does not start; it says why on the standard error stream.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        # In a session of its own, so that a Ctrl-C in the terminal reaches the owner alone.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self.owner), tempfile.gettempdir()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        self.folder: str = self._answer()

    def ask(self, verb: str, member: int, *details: object) -> int | None:
        """Have a member started, signalled or only looked at; return its exit code, None while it runs.

        :param verb: "start" (details: command line, path of the log), "signal" (number) or "poll".
        :raises RuntimeError: somebody has ended the guardian.
        """
        with self._lock:
            assert self._process.stdin is not None
            print(json.dumps([verb, member, *details]), file=self._process.stdin, flush=True)
            code: int | None = self._answer()
            return code

    def close(self) -> None:
        """End the members at once, and return when the folder is removed."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("the guardian process of the replica set has ended: start another replica set")
        return json.loads(line)


def guard(owner: int, folder: str) -> None:
    """Serve the owner's requests, one line each, until it has ended; then end the members and remove the folder."""
    members: dict[int, subprocess.Popen[bytes]] = {}
    try:
        print(json.dumps(folder), flush=True)
        # A fork of the owner may hold the pipe open after the owner's end: therefore the look at the parent.
        while os.getppid() == owner:
            if select.select([sys.stdin], [], [], 1.0)[0]:
                line = sys.stdin.readline()
                if not line:
                    break
                print(json.dumps(_obey(members, *json.loads(line))), flush=True)
    finally:
        for process in members.values():
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _obey(members: dict[int, subprocess.Popen[bytes]], verb: str, member: int, *details: Any) -> int | None:
    if verb == "start":
        command, path = details
        with open(path, "wb") as log:
            members[member] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    elif verb == "signal":
        members[member].send_signal(*details)
    return members[member].poll()


if __name__ == "__main__":
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, which the servers would inherit.
        signal.signal(number, lambda *_: None)
    guard(int(sys.argv[1]), tempfile.mkdtemp(prefix="rigatoni-", dir=sys.argv[2]))
