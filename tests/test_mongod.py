"""The throw-away replica set: what it does, what it says when it cannot, and that nothing of it outlives its owner."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pymongo import MongoClient, ReadPreference, WriteConcern
from pymongo.errors import OperationFailure, PyMongoError

import rigatoni
from rigatoni import ConfigurationError
from rigatoni.mongod import ReplicaSet
from rigatoni.mongod.replica_set import _free_ports

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(rigatoni.__file__).parent.parent)}

OWNER = """
import os, sys
from rigatoni.mongod import ReplicaSet
from rigatoni.mongod.replica_set import _free_ports
replica_set = ReplicaSet()
replica_set.start()
{prelude}
print(replica_set.uri_of(0), replica_set.log(0).parent, flush=True)
"""


@pytest.fixture(scope="module")
def replica_set() -> Iterator[ReplicaSet]:
    with ReplicaSet(parameters={"enableTestCommands": True}, oplog_size=8) as replica_set:
        yield replica_set


@pytest.fixture
def client(replica_set: ReplicaSet) -> Iterator[MongoClient]:
    with MongoClient(replica_set.uri, heartbeatFrequencyMS=500) as client:
        yield client


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def is_alive(uri: str) -> bool:
    # The kernel takes connections for a frozen server too, and refuses them once its process is gone.
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", urlsplit(uri).port)) == 0


def start_owner(prelude: str = "", afterwards: str = "os.read(0, 1)") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OWNER.format(prelude=prelude) + afterwards],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def test_a_set_of_one_takes_writes_and_has_change_streams(client: MongoClient) -> None:
    with client.shop.orders.watch() as stream:
        client.shop.orders.insert_one({"_id": 1})

        assert next(stream)["documentKey"] == {"_id": 1}


def test_parameters_and_oplog_size_reach_the_server(client: MongoClient) -> None:
    client.admin.command("configureFailPoint", "failCommand", mode="off")

    assert client.local.command("collStats", "oplog.rs")["maxSize"] == 8 * 1024 * 1024


@pytest.mark.parametrize("end", [ReplicaSet.kill, ReplicaSet.stop])
def test_a_member_that_ended_comes_back_on_its_port_with_its_data(
    replica_set: ReplicaSet, client: MongoClient, end: Callable[[ReplicaSet, int], None]
) -> None:
    uri = replica_set.uri_of(0)
    client.shop.get_collection("kept", write_concern=WriteConcern(j=True)).insert_one({"end": end.__name__})

    end(replica_set, 0)
    assert not is_alive(uri)
    replica_set.restart(0)

    assert replica_set.uri_of(0) == uri
    assert client.shop.kept.count_documents({"end": end.__name__}) == 1


def test_a_restart_of_a_running_member_even_a_frozen_one_ends_it_first(replica_set: ReplicaSet) -> None:
    def server_id() -> object:
        with MongoClient(replica_set.uri_of(0)) as client:
            return client.admin.command("hello")["topologyVersion"]["processId"]

    before = server_id()
    replica_set.freeze(0)
    replica_set.restart(0)

    assert server_id() != before


def test_a_frozen_member_keeps_its_port_and_answers_once_thawed(replica_set: ReplicaSet) -> None:
    replica_set.freeze(0)

    assert is_alive(replica_set.uri_of(0))
    with MongoClient(replica_set.uri_of(0), timeoutMS=300) as client, pytest.raises(PyMongoError):
        client.admin.command("ping")

    replica_set.thaw(0)
    with MongoClient(replica_set.uri_of(0)) as client:
        assert client.admin.command("ping")["ok"] == 1
    assert replica_set.primary() == 0


def test_no_primary_within_the_time_given_is_an_error(replica_set: ReplicaSet) -> None:
    replica_set.freeze(0)

    with pytest.raises(TimeoutError, match="primary within 0.1 s"):
        replica_set.primary(timeout=0.1)

    replica_set.thaw(0)


def test_a_set_of_one_that_stepped_down_is_primary_again_after_the_duration(replica_set: ReplicaSet) -> None:
    with MongoClient(replica_set.uri_of(0)) as client:
        before = client.admin.command("hello")["electionId"]

        assert replica_set.step_down(duration=1) == 0

        assert replica_set.primary() == 0
        assert client.admin.command("hello")["electionId"] != before


def test_a_standalone_server_has_no_change_streams() -> None:
    with ReplicaSet(replicated=False) as server, MongoClient(server.uri) as client:
        with pytest.raises(OperationFailure) as failure:
            client.shop.watch()

        assert failure.value.code == 40573


def test_close_ends_the_members_and_removes_the_data_and_a_second_close_nothing() -> None:
    replica_set = ReplicaSet()
    replica_set.start()
    uri, folder = replica_set.uri_of(0), replica_set.log(0).parent

    replica_set.close()
    replica_set.close()

    assert not is_alive(uri)
    assert not folder.exists()


def test_an_owner_that_gets_sigkill_leaves_neither_servers_nor_data_even_frozen_and_forked() -> None:
    prelude = (
        "replica_set.freeze(0)\n"
        "if not os.fork():\n"  # it holds the owner's end of every pipe open
        "    os.read(0, 1)\n"
        "    os._exit(0)"
    )
    with start_owner(prelude) as owner:
        uri, folder = owner.stdout.readline().split()
        assert is_alive(uri)
        assert Path(folder).is_dir()

        owner.kill()

        assert eventually(lambda: not is_alive(uri) and not Path(folder).exists())


def test_a_fork_of_the_owner_ends_nothing_and_is_told_whose_the_set_is() -> None:
    prelude = """
import signal
if not os.fork():
    signal.alarm(30)
    replica_set.close()
    try:
        replica_set.kill(0)
    except Exception as error:
        os._exit(f"belongs to process {os.getppid()}" not in str(error))
print(os.wait()[1], flush=True)
"""
    with start_owner(prelude) as owner:
        assert owner.stdout.readline() == "0\n"
        uri, _ = owner.stdout.readline().split()

        with MongoClient(uri) as client:
            assert client.admin.command("ping")["ok"] == 1
        owner.stdin.write("x")


def test_an_owner_that_ends_without_close_leaves_nothing() -> None:
    with start_owner(afterwards="") as owner:
        uri, folder = owner.stdout.readline().split()

    assert eventually(lambda: not is_alive(uri) and not Path(folder).exists())


def test_the_servers_are_outside_the_process_group_that_a_ctrl_c_reaches(client: MongoClient) -> None:
    server = client.admin.command("serverStatus")["pid"]

    assert os.getpgid(server) != os.getpgrp()
    assert os.getsid(server) != os.getsid(0)


def test_other_greenlets_of_a_patched_process_go_on_while_the_set_starts() -> None:
    script = """
from gevent import monkey; monkey.patch_all()
import gevent
from rigatoni.mongod import ReplicaSet
from rigatoni.mongod.replica_set import _free_ports
ticks = 0
def tick():
    global ticks
    while True:
        ticks += 1
        gevent.sleep(0.01)
ticker = gevent.spawn(tick)
with ReplicaSet() as replica_set:
    during_start = ticks
    replica_set.kill(0)
    replica_set.restart(0)
print(during_start)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=ENVIRONMENT)

    assert run.stderr == ""
    assert int(run.stdout) > 10


@pytest.mark.faults
def test_a_set_of_three_elects_a_new_primary_whatever_happens_to_the_old_one() -> None:
    with ReplicaSet(members=3) as replica_set, MongoClient(replica_set.uri) as client:
        stepped_down = replica_set.step_down()
        killed = replica_set.primary()
        assert killed != stepped_down

        replica_set.kill(killed)
        survivor = replica_set.primary()
        assert survivor != killed

        replica_set.restart(killed)
        client.get_database("shop", write_concern=WriteConcern("majority")).orders.insert_one({"_id": 1})
        majority = client.get_database("shop", read_preference=ReadPreference.SECONDARY)
        assert eventually(lambda: majority.orders.count_documents({}) == 1)


def test_a_server_that_does_not_start_is_an_error_with_its_own_words() -> None:
    replica_set = ReplicaSet(arguments=["--nonsense"])

    with pytest.raises(ConfigurationError, match="member 0 did not start:\n.*nonsense"):
        replica_set.start()

    with pytest.raises(ConfigurationError, match="does not run: start"):
        _ = replica_set.uri


def test_a_restart_on_a_port_that_somebody_took_is_an_error_that_says_so(replica_set: ReplicaSet) -> None:
    replica_set.kill(0)
    with socket.create_server(("127.0.0.1", urlsplit(replica_set.uri_of(0)).port)):
        with pytest.raises(ConfigurationError, match="Address already in use"):
            replica_set.restart(0)

    replica_set.restart(0)
    assert replica_set.primary() == 0


def test_a_port_that_somebody_took_meanwhile_is_replaced_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        taken = somebody.getsockname()[1]
        choices = iter([[taken]])
        monkeypatch.setattr(
            "rigatoni.mongod.replica_set._free_ports", lambda count: next(choices, None) or _free_ports(count)
        )
        with ReplicaSet() as replica_set:
            assert urlsplit(replica_set.uri_of(0)).port != taken
            assert replica_set.primary() == 0


def test_a_second_start_is_refused(replica_set: ReplicaSet) -> None:
    with pytest.raises(ConfigurationError, match="runs already"):
        replica_set.start()


@pytest.mark.parametrize("member", [-1, 1])
def test_a_member_that_does_not_exist_is_refused_with_those_that_do(replica_set: ReplicaSet, member: int) -> None:
    with pytest.raises(ConfigurationError, match="they are 0 to 0"):
        replica_set.kill(member)


@pytest.mark.parametrize("options", [{"members": 0}, {"members": 8}, {"members": 3, "replicated": False}])
def test_an_impossible_number_of_members_is_refused(options: dict) -> None:
    with pytest.raises(ConfigurationError, match="1 to 7"):
        ReplicaSet(**options)
