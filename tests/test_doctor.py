"""``rigatoni doctor``: the advice is right, and following it helps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import rigatoni_ends
from conftest import wait_until
from guarded import Guarded, guarded_server
from proxy import Proxy
from pymongo import MongoClient

from rigatoni import SQLiteStore
from rigatoni.mongod import ReplicaSet


def examined(*arguments: str, **environment: str) -> tuple[int, dict[str, list[Any]]]:
    """Let the doctor look, and give the exit code and the findings by subject."""
    run = rigatoni_ends("doctor", "--json", *arguments, **environment)
    assert "Traceback" not in run.stderr, run.stderr
    found: dict[str, list[Any]] = {}
    for line in run.stdout.splitlines():
        finding = json.loads(line)
        found.setdefault(finding["subject"], []).append(finding)
    return run.returncode, found


def levels(findings: list[Any]) -> list[str]:
    return [finding["level"] for finding in findings]


@pytest.fixture
def uri(mongodb_replica_set: Any) -> str:
    return str(mongodb_replica_set.uri)


class Clinic:
    """A server that asks for a user, and does what a mend says."""

    def __init__(self, guarded: Guarded) -> None:
        self.uri, self.uri_as, self.root = guarded.uri, guarded.uri_as, guarded.root
        self.root.shop.orders.insert_one({})
        self.root.shop.customers.insert_one({})

    def add_user(self, name: str) -> str:
        self.root.admin.command("createUser", name, pwd="secret", roles=[])
        return self.uri_as(f"{name}:secret")

    def follow(self, mend: str) -> None:
        """Do what a mend says, as mongosh would."""
        role = json.loads(re.findall(r"db\.createRole\((.*?)\);", mend)[0])
        self.root.admin.command("createRole", role.pop("role"), **role)
        self.grant(mend)

    def grant(self, mend: str) -> None:
        [(database, user, roles)] = re.findall(r'use (\w+); db\.grantRolesToUser\("(\w+)", (\[.*?\])\)', mend)
        self.root[database].command("grantRolesToUser", user, roles=json.loads(roles))


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clinic]:
    with guarded_server(tmp_path_factory.mktemp("key")) as guarded:
        yield Clinic(guarded)


def test_a_sound_set_has_no_problem_and_every_finding_is_one_line(uri: str, database: Any, store_path: str) -> None:
    database.create_collection("odd\n\x1b[31m", changeStreamPreAndPostImages={"enabled": True})
    run = rigatoni_ends("doctor", uri, "-d", database.name, "--store", store_path)

    assert (run.returncode, run.stdout.isascii()) == (0, True)
    assert not os.path.exists(store_path)
    assert all(re.match("(ok|note|warning|problem) +[a-z]", line) for line in run.stdout.splitlines())
    assert r"odd\n\x1b[31m' keeps pre- and post-images" in run.stdout
    assert run.stderr == "0 problems, 0 warnings\n"


def test_following_the_advice_about_images_turns_them_on(uri: str, database: Any, store_path: str) -> None:
    database.orders.insert_one({})
    arguments = (uri, "-d", database.name, "-c", "orders", "-c", "ordesr", "--store", store_path)
    [orders, absent] = examined(*arguments)[1]["images"]
    assert (orders["level"], absent["level"]) == ("note", "note")
    assert "is not there yet" in absent["text"]
    assert f'use {database.name}; db.runCommand({{collMod: "orders", changeStreamPreAndPostImages' in orders["mend"]
    database.command("collMod", "orders", changeStreamPreAndPostImages={"enabled": True})

    assert levels(examined(*arguments)[1]["images"]) == ["ok", "note"]


def test_the_version_says_what_it_does_not_allow(uri: str, store_path: str) -> None:
    with MongoClient[Any](uri) as client:
        version = client.server_info()["versionArray"][:3]
    found = examined(uri, "--store", store_path)[1]["version"]

    told = [finding["text"] for finding in found if finding["level"] == "note"]
    assert any("$changeStreamSplitLargeEvent" in text for text in told) == (version < [6, 0, 9])


def test_a_standalone_server_is_a_problem_with_the_way_to_a_set(store_path: str) -> None:
    with ReplicaSet(replicated=False) as standalone:
        code, found = examined(standalone.uri, "--store", store_path)

    assert (code, levels(found["server"])) == (3, ["problem"])
    assert "rs.initiate()" in found["server"][0]["mend"]
    assert "privileges" not in found


def test_a_member_that_is_away_is_named(store_path: str) -> None:
    # None is to be elected anew, however busy the machine is.
    with ReplicaSet(3, election_timeout=10.0) as replica_set, MongoClient[Any](replica_set.uri) as client:
        away = next(member for member in range(3) if member != replica_set.primary())
        replica_set.kill(away)
        wait_until(lambda: client.admin.command("replSetGetStatus")["members"][away]["state"] not in (1, 2))
        code, found = examined(replica_set.uri, "--store", store_path)
        name = replica_set.uri_of(away).split("/")[2]

    # On a busy machine the others may not have found each other again by then.
    assert (code, {*levels(found["server"])}) == (0, {"ok", "warning"})
    assert any(f"member {name} is " in finding["text"] for finding in found["server"])


def test_a_long_way_to_the_server_is_no_difference_of_clocks(mongodb_replica_set: Any, store_path: str) -> None:
    with Proxy(mongodb_replica_set.uri_of(0), latency=0.1) as proxy:
        code, found = examined(proxy.uri, "--store", store_path)

    assert (code, found["clock"][0]["text"]) == (0, "the server's is 0.0 s apart")


def test_an_absent_server_is_a_problem_and_the_rest_is_examined(store_path: str) -> None:
    uri = "mongodb://u:secret@127.0.0.1:1/?serverSelectionTimeoutMS=1"
    code, found = examined("--store", store_path, RIGATONI_URI=uri)

    assert (code, levels(found["server"])) == (3, ["problem"])
    assert "nobody at 127.0.0.1:1" in found["server"][0]["text"]
    assert levels(found["store"]) == ["note"]
    assert "secret" not in str(found)


def test_without_a_uri_only_this_place_is_examined(store_path: str) -> None:
    code, found = examined("--store", store_path)

    assert (code, levels(found["server"])) == (0, ["note"])
    assert {"store", "disk", "pymongo", "gevent", "patching"} <= found.keys()


def test_a_short_oplog_is_a_warning_that_says_relative_to_what(short_oplog: str, store_path: str) -> None:
    code, found = examined(short_oplog, "--store", store_path)

    assert (code, levels(found["oplog"])) == (0, ["warning"])
    assert (
        "loses its position" in found["oplog"][0]["text"] and "a night and the day after" in found["oplog"][0]["text"]
    )
    command = json.loads(re.sub(r"(\w+):", r'"\1":', found["oplog"][0]["mend"].partition("(")[2].partition(")")[0]))
    with MongoClient[Any](short_oplog) as client:
        client.admin.command(command)
        wait_until(lambda: client.local.command("collStats", "oplog.rs")["maxSize"] == command["size"] * 2**20)
    code, found = examined(short_oplog, "--store", store_path)
    assert "has room for more" in found["oplog"][0]["text"]


# Privileges.


def test_a_user_without_privileges_gets_the_role_that_helps(clinic: Clinic, store_path: str) -> None:
    uri = clinic.add_user("clerk")
    arguments = ("-d", "shop", "-c", "orders", "--store", store_path)
    code, found = examined(*arguments, RIGATONI_URI=uri)

    assert (code, levels(found["privileges"])) == (3, ["problem"])
    assert '"collection": "orders"' in found["privileges"][0]["mend"]
    for optional in ("identity", "oplog", "images"):
        assert levels(found[optional]) == ["note"]
        assert found[optional][0]["text"].startswith("unknown: not permitted")
    clinic.follow(found["privileges"][0]["mend"])
    clinic.grant(found["identity"][0]["mend"])
    code, found = examined(*arguments, RIGATONI_URI=uri)

    assert (code, levels(found["privileges"]), levels(found["identity"])) == (0, ["ok"], ["ok"])


def test_who_may_watch_only_single_collections_is_told_to_watch_each(clinic: Clinic, store_path: str) -> None:
    uri = clinic.add_user("butcher")
    for name in ("orders", "customers"):
        privilege = {"resource": {"db": "shop", "collection": name}, "actions": ["find", "changeStream"]}
        clinic.root.admin.command("createRole", name, privileges=[privilege], roles=[])
        clinic.root.admin.command("grantRolesToUser", "butcher", roles=[name])
    code, found = examined("-d", "shop", "-c", "orders", "-c", "customers", "--store", store_path, RIGATONI_URI=uri)

    assert (code, levels(found["privileges"])) == (3, ["problem", "note"])
    assert '"collection": ""' in found["privileges"][0]["mend"]
    assert "watcher.watch(collection)" in found["privileges"][1]["mend"]


@pytest.mark.parametrize(
    ("user", "text"), [("clerk:mistaken", "refuses this user"), ("", "not permitted without a user")]
)
def test_who_is_not_let_in_is_told_why(user: str, text: str, clinic: Clinic, store_path: str) -> None:
    uri = clinic.uri_as(user) if user else clinic.uri
    code, found = examined("--store", store_path, RIGATONI_URI=uri)

    assert code == 3
    [told] = [each for each in sum(found.values(), []) if each["level"] == "problem"]
    assert text in told["text"] and "user" in told["mend"]


# The connection string, the store, the program.


def test_options_that_weaken_a_promise_are_warnings(uri: str, store_path: str) -> None:
    host = uri.partition("?")[0]
    options = (
        "directConnection=true&maxPoolSize=1&socketTimeoutMS=9000&readPreference=nearest&serverSelectionTimeoutMS=9000"
    )
    code, found = examined(f"{host}?{options}", "--store", store_path)

    assert (code, set(levels(found["uri"]))) == (0, {"warning"})
    assert len(found["uri"]) == 5
    refused, found = examined(f"{host}?loadBalanced=true", "--store", store_path)
    assert (refused, "loadBalanced=true is not supported" in str(found["server"])) == (3, True)


def test_an_empty_file_is_left_empty(tmp_path: Path) -> None:
    path = tmp_path / "rigatoni.db"
    path.touch()
    code, found = examined("--store", str(path))
    reading = rigatoni_ends("tokens", "list", "--store", str(path))

    assert (code, levels(found["store"])[0], reading.returncode) == (0, "note", 16)
    assert (path.stat().st_size, len([*tmp_path.iterdir()])) == (0, 1)


def test_a_store_that_others_may_read_or_that_is_no_store_is_told(tmp_path: Path) -> None:
    store, foreign = tmp_path / "rigatoni.db", tmp_path / "foreign.db"
    SQLiteStore(store).open()
    store.chmod(0o644)
    foreign.write_text("no database at all, but text")
    code, found = examined("--store", str(store))
    refused, strange = examined("--store", str(foreign))
    absent = examined("--store", str(tmp_path / "nowhere" / "rigatoni.db"))

    assert (code, levels(found["store"])[:2]) == (0, ["ok", "warning"])
    assert found["store"][1]["mend"] == f"chmod 600 {store}"
    assert (refused, levels(strange["store"])) == (3, ["problem"])
    assert foreign.read_text() == "no database at all, but text"
    assert (absent[0], levels(absent[1]["store"])) == (3, ["problem"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, found = examined("--store", str(tmp_path / "rigatoni.db"))
    tmp_path.chmod(0o700)

    assert (code, levels(found["store"])) == (3, ["problem"])


def test_a_wrong_setting_of_the_environment_is_a_problem_and_an_unknown_one_a_warning(store_path: str) -> None:
    code, wrong = examined("--store", store_path, RIGATONI_BATCH_SIZE="many")
    other, unknown = examined("--store", store_path, RIGATONI_BACTH_SIZE="7", RIGATONI_NAME="shop")

    assert (code, levels(wrong["environment"])) == (3, ["problem"])
    assert "RIGATONI_BATCH_SIZE" in wrong["environment"][0]["text"]
    assert (other, levels(unknown["environment"])) == (0, ["warning"])
    assert "'RIGATONI_BACTH_SIZE'" in unknown["environment"][0]["text"]
    assert "RIGATONI_NAME" not in unknown["environment"][0]["text"]


@pytest.mark.parametrize(
    ("arguments", "code", "mistake"),
    [
        (["-c", "orders"], 2, "needs its database"),
        (["-d", "a.b"], 10, "the name of a database"),
        (["-d", ""], 10, "the name of a database"),
        (["-d", "a b"], 3, "a name or an option"),
        (["-d", "admin"], 3, "admin, local, config"),
    ],
)
def test_what_cannot_be_watched_is_refused(arguments: list[str], code: int, mistake: str, uri: str) -> None:
    run = rigatoni_ends("doctor", uri, *arguments)

    assert run.returncode == code
    assert mistake in run.stdout + run.stderr
