"""One SQLite file among processes, forks and greenlets: who waits, who is excluded, whom a lock outlives."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import gevent
import pytest
import sqlite_utils
from gevent.event import Event

from rigatoni import ConfigurationError, Position, ResumeTokenPersistenceError, SQLiteStore

POSITION = Position.of({"_data": "82000000010000000A2B022C0100296E5A1004"})
LATER = Position.of({"_data": "82000000020000000A2B022C0100296E5A1004"})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "positions.db"


@pytest.fixture
def store(path):
    store = SQLiteStore(path)
    store.open()
    yield store
    store.unlock("shop")
    store.close()


@contextlib.contextmanager
def another_process(code, *arguments):
    """Run a program; its first line of output says that it is ready, and a line of input lets it go on."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        process.ready = process.stdout.readline().strip()
        assert process.ready
        try:
            yield process
        finally:
            process.kill()


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


LOCK_DATABASE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("begin exclusive")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("commit")
print("free", flush=True)
"""

LOCK_NAME = """
import os, sys
from rigatoni import SQLiteStore
store = SQLiteStore(sys.argv[1])
assert store.lock("shop")
print(os.getpid(), flush=True)
sys.stdin.readline()
"""

LOCK_NAME_AND_FORK = """
import os, sys
from rigatoni import SQLiteStore
store = SQLiteStore(sys.argv[1])
assert store.lock("shop")
child = os.fork()
if child == 0:
    store.unlock("shop")
    print(os.getpid(), flush=True)
sys.stdin.readline()
"""


def test_a_locked_database_is_waited_for_without_holding_up_the_hub(store, path):
    store.save("shop", {"": POSITION})
    done = Event()
    with another_process(LOCK_DATABASE, path) as other:
        saving = gevent.spawn(store.save, "shop", {"": LATER}, {"state": "running"})
        saving.link(lambda _: done.set())
        # Every round is one turn of the hub while the save waits; a read needs no lock in WAL mode.
        for _ in range(50):
            assert not done.wait(0.002)
        assert store.load("shop")[""].token == POSITION.token
        assert go_on(other) == "free"
        assert done.wait(10)
    saving.get()
    assert store.load("shop")[""].token == LATER.token


def test_patience_ends_with_an_error_that_says_what_to_end(path, store):
    with another_process(LOCK_DATABASE, path):
        impatient = SQLiteStore(path, patience=0.05)
        with pytest.raises(ResumeTokenPersistenceError, match="another process holds a transaction") as raised:
            impatient.save("shop", {"": POSITION})
        assert str(path) in str(raised.value)
        impatient.close()
    store.save("shop", {"": POSITION})


def test_a_database_that_is_locked_at_the_opening_is_waited_for_too(path):
    with another_process(LOCK_DATABASE, path) as other:
        store = SQLiteStore(path)
        opening = gevent.spawn(store.open)
        gevent.sleep(0.05)
        assert not opening.ready()
        assert go_on(other) == "free"
        opening.get(timeout=10)
    assert store.load("shop") == {}
    store.close()


def test_a_greenlet_killed_while_it_waits_leaves_the_old_position_and_a_usable_store(store, path):
    store.save("shop", {"": POSITION})
    with another_process(LOCK_DATABASE, path) as other:
        saving = gevent.spawn(store.save, "shop", {"": LATER, "shop": LATER})
        gevent.sleep(0.05)
        saving.kill()
        assert go_on(other) == "free"
    assert {scope: kept.token for scope, kept in store.load("shop").items()} == {"": POSITION.token}
    store.save("shop", {"": LATER})
    assert store.load("shop")[""].token == LATER.token


def test_an_interrupt_in_the_middle_of_a_transaction_undoes_all_of_it(store):
    def statements():
        yield "delete from resume_tokens", ()
        raise KeyboardInterrupt

    store.save("shop", {"": POSITION})
    with pytest.raises(KeyboardInterrupt):
        store._connections.write(statements())
    assert list(store.load("shop")) == [""]
    store.save("shop", {"": LATER})


def test_threads_that_are_in_the_middle_of_their_work_survive_a_close(store):
    errors, stop = [], threading.Event()

    def work(scope):
        try:
            while not stop.is_set():
                store.save("shop", {scope: POSITION}, {"by": scope})
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(scope,)) for scope in "ab"]
    for thread in threads:
        thread.start()
    for _ in range(50):
        store.close()
        store.load("shop")
    stop.set()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert sorted(store.load("shop")) == ["a", "b"]


SAVE_FOR_EVER = """
import itertools, sys
from rigatoni import Position, SQLiteStore
store = SQLiteStore(sys.argv[1])
for n in itertools.count(1):
    position = Position.of({"_data": f"82{n:08X}0000000A2B022C0100296E5A1004"})
    store.save("shop", {"a": position, "b": position}, {"n": n})
    print(n, flush=True)
"""


def test_after_kill_9_everything_reported_is_there_and_nothing_by_halves(store, path):
    with another_process(SAVE_FOR_EVER, path) as writer:
        reported = [int(writer.stdout.readline()) for _ in range(50)]
        os.kill(writer.pid, signal.SIGKILL)
        reported += map(int, writer.stdout.read().split())
    kept = store.load("shop")
    assert kept["a"].token == kept["b"].token
    assert store.status("shop")["n"] == kept["a"].cluster_time.time >= reported[-1]


def test_a_name_locked_by_another_process_is_free_when_that_is_killed(store, path):
    with another_process(LOCK_NAME, path) as other:
        assert store.lock("shop") is False
        assert store.lock("shop") is False
        assert store.holder("shop") == f"pid {other.ready} on {os.uname().nodename}"
        assert store.lock("mail") is True
        store.unlock("mail")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert store.lock("shop") is True
        assert store.holder("shop").startswith(f"pid {os.getpid()} ")


def test_a_forked_child_neither_frees_nor_keeps_the_lock_of_its_parent(store, path):
    with another_process(LOCK_NAME_AND_FORK, path) as parent:
        # The child has called unlock() by now.
        assert store.lock("shop") is False
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        os.kill(int(parent.ready), 0)
        assert store.lock("shop") is True


def test_a_path_by_another_link_leads_to_the_same_lock(store, path):
    link = path.with_name("link.db")
    link.symlink_to(path)
    store.lock("shop")
    with pytest.raises(ConfigurationError):
        SQLiteStore(link).lock("shop")


def test_two_stores_of_one_path_exclude_each_other_and_only_the_owner_unlocks(store, path):
    second = SQLiteStore(path)
    store.lock("shop")
    with pytest.raises(ConfigurationError, match="two watchers"):
        second.lock("shop")
    second.unlock("shop")
    with pytest.raises(ConfigurationError, match="two watchers"):
        second.lock("shop")


FORK_AND_SAVE = """
import os, sys
from rigatoni import Position, SQLiteStore

def save(scope):
    store.save("shop", {scope: Position.of({"_data": "82000000010000000A2B022C0100296E5A1004"})}, {"by": scope})

store = SQLiteStore(sys.argv[1])
save("parent")
closed, close = os.pipe()
saved, tell = os.pipe()
child = os.fork()
if child == 0:
    save("child")
    os.write(tell, b".")
    os.read(closed, 1)
    save("child, after its parent closed")
    os._exit(0)
os.read(saved, 1)
save("parent again")
store.close()
os.write(close, b".")
status = os.waitpid(child, 0)[1]
print(status, *sorted(store.load("shop")), sep="|", flush=True)
"""


def test_a_forked_child_and_its_parent_do_not_lose_each_others_positions(path):
    with another_process(FORK_AND_SAVE, path) as process:
        assert process.ready == "0|child|child, after its parent closed|parent|parent again"


PATCHED = """
from gevent import monkey
monkey.patch_all()
import os, sys, threading, gevent
from rigatoni import SQLiteStore

store = SQLiteStore(sys.argv[1])
store.open()
idents = set()

def work(n):
    idents.add(threading.get_ident())
    store.save("shop", {}, {"n": n})

gevent.joinall([gevent.spawn(work, n) for n in range(5)], raise_error=True)
pool = gevent.get_hub().threadpool
gevent.joinall([pool.spawn(work, n) for n in range(5)], raise_error=True)
links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
connections = sum(os.path.realpath(link) == store.location for link in links if os.path.exists(link))
print(len(idents) > connections, 2 <= connections <= 1 + 5, flush=True)
"""


def test_greenlets_of_a_patched_process_share_the_connection_of_their_thread(path):
    with another_process(PATCHED, path) as process:
        assert process.ready == "True True"


MANY_LETTERS = """
from gevent import monkey
monkey.patch_all()
import sys, gevent
from rigatoni import DeadLetter, SQLiteStore
store = SQLiteStore(sys.argv[1])
store.open()
for number in range(500):
    event = {"_id": {"_data": str(number)}, "operationType": "insert"}
    store.bury("shop", DeadLetter(0, "h", event, "e", "t", 1, 0.0))
turns = 0

def take_turns():
    global turns
    while True:
        gevent.sleep(0)
        turns += 1

gevent.spawn(take_turns)
gevent.sleep(0)
before = turns
letters = store.letters("shop")
print(len(letters), turns - before, flush=True)
"""


def test_many_letters_are_read_without_holding_up_the_hub(path):
    with another_process(MANY_LETTERS, path) as process:
        count, turns = map(int, process.ready.split())
    assert count == 500
    assert turns >= 10


def test_a_store_that_another_process_makes_at_the_same_moment_is_nobody_elses(path, monkeypatch):
    look = sqlite_utils.Database.table_names
    others = []

    def look_late(database):
        if not others:
            others.append(SQLiteStore(path, patience=0.0))
            with contextlib.suppress(ResumeTokenPersistenceError):
                # As fast as one that finds the file just after this one.
                others[0].open()
        return look(database)

    monkeypatch.setattr(sqlite_utils.Database, "table_names", look_late)
    store = SQLiteStore(path)
    store.open()
    store.save("shop", {"": POSITION})
    assert others and list(store.load("shop")) == [""]
    for each in (store, *others):
        each.close()


def test_what_cleans_up_by_age_finds_the_files_of_a_quiet_watcher_young(store, path):
    store.lock("shop")
    store.save("shop", {"": POSITION}, {"state": "running"})
    files = [path, path.with_name("positions.db-shm"), path.with_name("positions.db.shop.lock")]
    for file in files:
        os.utime(file, (0, 0))
    store.save("shop", {}, {"state": "running"})
    assert all(file.stat().st_mtime > 0 for file in files)
