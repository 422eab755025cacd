"""Real servers on this machine as one replica set, and what can befall its members."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from rigatoni import ConfigurationError

from .binary import find_mongod
from .guardian import Guardian

T = TypeVar("T")
_PORT_TAKEN = 48  # mongod's exit code EXIT_NET_ERROR


class ReplicaSet:
    """Run real servers on this machine as one replica set, until :meth:`close` or the end of this process.

    A context manager. Members are numbered from 0, their data lies in a temporary folder, their ports are chosen free.
    They end, and the data goes, with the process that started them, whatever ends it (SIGKILL too); a Ctrl-C in the
    terminal does not reach them. A fork may use :attr:`uri` and :meth:`uri_of`; there :meth:`close` does nothing.

    :param members: how many, 1 to 7; a set of one starts in about a second.
    :param replicated: False for a standalone server, which has no oplog (it answers 40573 to a change stream).
    :param parameters: server parameters by name, e.g. ``{"enableTestCommands": True}`` for failpoints.
    :param arguments: further command-line arguments of every ``mongod``.
    :param oplog_size: megabytes; None leaves it to the server.
    :param election_timeout: seconds without a primary after which the members elect one.
    :raises ConfigurationError: an impossible number of members.
    """

    def __init__(
        self,
        members: int = 1,
        *,
        replicated: bool = True,
        parameters: Mapping[str, object] | None = None,
        arguments: Sequence[str] = (),
        oplog_size: int | None = None,
        election_timeout: float = 1.0,
    ) -> None:
        if not 1 <= members <= (7 if replicated else 1):
            raise ConfigurationError(f"members={members!r}: a replica set has 1 to 7 here, a standalone server is 1")
        self._members = range(members)
        self._replicated = replicated
        self._election_timeout = election_timeout
        self._arguments = [*arguments, *(["--oplogSize", str(oplog_size)] if oplog_size else [])]
        for name, value in {"diagnosticDataCollectionEnabled": False, **(parameters or {})}.items():
            self._arguments += ["--setParameter", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
        self._guardian: Guardian | None = None
        self._binary = ""
        self._ports: list[int] = []

    def __enter__(self) -> ReplicaSet:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the servers; return when one is a writable primary and every other a secondary.

        :raises ConfigurationError: they run already, no ``mongod`` can be had (:func:`find_mongod`), or one does not
            start; the message then has the telling lines of its log.
        :raises TimeoutError: the servers are not ready within a minute or so.
        """
        if self._guardian is not None:
            raise ConfigurationError("this replica set runs already: close() it first, or make another one")
        self._binary = find_mongod()
        self._guardian = Guardian()
        try:
            self._launch()
            if self._replicated:
                self._initiate()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every member at once and remove the data; calling it again does nothing."""
        guardian = self._guardian
        if guardian is not None and guardian.owner == os.getpid():
            self._guardian = None
            guardian.close()

    @property
    def uri(self) -> str:
        """The connection string of the whole set."""
        self._running()
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"mongodb://{hosts}/" + (f"?replicaSet={self._name}" if self._replicated else "")

    def uri_of(self, member: int) -> str:
        """Return the connection string of one member alone (``directConnection=true``)."""
        self._running()
        return f"mongodb://127.0.0.1:{self._ports[self._known(member)]}/?directConnection=true"

    def log(self, member: int) -> Path:
        """Return the path of a member's log; each run begins it anew, and it goes with the data."""
        return Path(self._running().folder, f"{self._known(member)}.log")

    def primary(self, timeout: float = 30.0) -> int:
        """Return the number of the writable primary, waiting for an election if need be; frozen members do not count.

        :param timeout: seconds to wait.
        :raises TimeoutError: nobody was elected, e.g. because most members are down.
        """
        return _wait(self._writable, timeout, "no member became a writable primary")

    def kill(self, member: int) -> None:
        """End a member at once (SIGKILL), as a crash would; a frozen one too."""
        self._ask("signal", member, signal.SIGKILL)
        self._wait_for_end(member)

    def stop(self, member: int, wait: bool = True) -> None:
        """End a member in order (SIGTERM), as a planned restart does.

        A primary steps down at once; in a set of several it then answers errors for up to 15 s (server parameter
        ``shutdownTimeoutMillisForSignaledShutdown``).

        :param wait: return when it has ended, not before.
        """
        self._ask("signal", member, signal.SIGTERM)
        self.thaw(member)
        if wait:
            self._wait_for_end(member)

    def restart(self, member: int) -> None:
        """Start a member again on its port and data, stopping it first if it runs; return when it is of use.

        That is when it is a writable primary or, in a set of several, a secondary.

        :raises ConfigurationError: it does not start; the message has the telling lines of its log.
        """
        self.stop(member)
        self._run(member)
        if not self._is_listening(member):
            raise self._failure(member)
        self._wait_until_ready(member)

    def freeze(self, member: int) -> None:
        """Let a member stand still with its connections open (SIGSTOP), as a hung host would."""
        self._ask("signal", member, signal.SIGSTOP)

    def thaw(self, member: int) -> None:
        """Let a frozen member go on (SIGCONT)."""
        self._ask("signal", member, signal.SIGCONT)

    def step_down(self, duration: float = 10.0) -> int:
        """Make the primary a secondary (``replSetStepDown``) and return its number; :meth:`primary` waits for the next.

        :param duration: seconds, in whole ones, for which it does not stand for election again.
        """
        member = self.primary()
        # Alone there is no secondary that could catch up: without force the server refuses.
        how = {"force": True} if len(self._members) == 1 else {"secondaryCatchUpPeriodSecs": int(duration)}
        self._command(member, {"replSetStepDown": int(duration), **how})
        return member

    @property
    def _name(self) -> str:
        # No two sets share it, so that a client left over from an earlier set on the same port is refused.
        return os.path.basename(self._running().folder)

    def _running(self) -> Guardian:
        if self._guardian is None:
            raise ConfigurationError("this replica set does not run: start() it, or use it in a with statement")
        return self._guardian

    def _known(self, member: int) -> int:
        if member not in self._members:
            raise ConfigurationError(f"there is no member {member!r}: they are 0 to {len(self._members) - 1}")
        return member

    def _launch(self) -> None:
        # Between the choice of a port and its use somebody else may take it.
        for _ in range(5):
            self._ports = _free_ports(len(self._members))
            for member in self._members:
                self._run(member)
            taken = [member for member in self._members if not self._is_listening(member)]
            if not taken:
                return
            failure = self._failure(taken[0])
            for member in self._members:
                self.kill(member)
        raise failure

    def _run(self, member: int) -> None:
        data = Path(self._running().folder, str(member))
        data.mkdir(exist_ok=True)
        command = [self._binary, "--dbpath", str(data), "--port", str(self._ports[member]), "--bind_ip", "127.0.0.1"]
        command += ["--nounixsocket", "--wiredTigerCacheSizeGB", "0.25", "--quiet", *self._arguments]
        command += ["--replSet", self._name] if self._replicated else []
        self._ask("start", member, command, str(self.log(member)))

    def _is_listening(self, member: int) -> bool:
        """Wait for the server's own word: what answers on a port that was taken meanwhile is somebody else."""

        def settled() -> bool:
            return b"aiting for connections" in self.log(member).read_bytes() or self._exit_code(member) is not None

        _wait(settled, 60.0, f"member {member} did not start")
        if self._exit_code(member) not in (None, _PORT_TAKEN):
            raise self._failure(member)
        return self._exit_code(member) is None

    def _failure(self, member: int) -> ConfigurationError:
        lines = self.log(member).read_text("utf-8", "replace").splitlines()
        telling = [line for line in lines if not line.startswith("{") or '"s":"E"' in line or '"s":"F"' in line]
        return ConfigurationError(f"member {member} did not start:\n" + "\n".join((telling or lines)[-5:]))

    def _initiate(self) -> None:
        hosts = [{"_id": n, "host": f"127.0.0.1:{port}"} for n, port in enumerate(self._ports)]
        # The default heartbeat of 2 s would make a set of several wait that long for each step of its beginning.
        settings = {"electionTimeoutMillis": int(1000 * self._election_timeout), "heartbeatIntervalMillis": 500}
        self._command(0, {"replSetInitiate": {"_id": self._name, "members": hosts, "settings": settings}})
        for member in self._members:
            self._wait_until_ready(member)
        self.primary()

    def _wait_until_ready(self, member: int) -> None:
        ready = ("isWritablePrimary",) if len(self._members) == 1 else ("isWritablePrimary", "secondary")
        _wait(lambda: any(self._hello(member).get(state) for state in ready), 60.0, f"member {member} is not ready")

    def _writable(self) -> int | None:
        hellos = {member: self._hello(member) for member in self._members}
        # A thawed primary still takes itself for one: of two, the one elected later is right, as for the drivers.
        writable = [member for member, hello in hellos.items() if hello.get("isWritablePrimary")]
        return max(writable, key=lambda member: str(hellos[member].get("electionId")), default=None)

    def _hello(self, member: int) -> dict[str, Any]:
        try:
            return self._command(member, {"hello": 1}, timeoutMS=1000)
        except PyMongoError:
            return {}

    def _command(self, member: int, command: dict[str, Any], **options: Any) -> dict[str, Any]:
        client: MongoClient[dict[str, Any]] = MongoClient(self.uri_of(member), **options)
        with client:
            return client.admin.command(command)

    def _ask(self, verb: str, member: int, *details: object) -> int | None:
        guardian = self._running()
        if guardian.owner != os.getpid():
            raise ConfigurationError(
                f"this replica set belongs to process {guardian.owner}: a fork starts one of its own"
            )
        return guardian.ask(verb, self._known(member), *details)

    def _exit_code(self, member: int) -> int | None:
        return self._ask("poll", member)

    def _wait_for_end(self, member: int) -> None:
        _wait(lambda: self._exit_code(member) is not None, 60.0, f"member {member} did not end")


def _free_ports(count: int) -> list[int]:
    # Below the ports that systems give to outgoing connections: one of those could take that of a member that is down.
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise ConfigurationError("no free port between 20000 and 32000 on 127.0.0.1: end what holds them")


def _wait(condition: Callable[[], T | None], timeout: float, complaint: str) -> T:
    """Return the first result of `condition` that is neither None nor False."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result is not None and result is not False:
            return result
        if time.monotonic() > deadline:
            raise TimeoutError(f"{complaint} within {timeout} s")
        time.sleep(0.02)
