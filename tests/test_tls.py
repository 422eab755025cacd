"""A server that speaks TLS: watched over it, patched and not, and refused clearly to a client that does not."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import BOTH, run_program
from pymongo import MongoClient
from watchers import collecting

from rigatoni import ChangeStreamConfig, MaxReconnectAttemptsExceededError, MemoryStore, Watcher
from rigatoni.mongod import ReplicaSet

PASSWORD = "s3cret"

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key, in one file."""
    folder = tmp_path_factory.mktemp("certificate")
    key, signed, both = folder / "key.pem", folder / "signed.pem", folder / "both.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    ask = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*ask, "-keyout", str(key), "-out", str(signed)], check=True, capture_output=True)
    both.write_text(key.read_text() + signed.read_text())
    return both


@pytest.fixture(scope="module")
def server(certificate: Path) -> Iterator[tuple[str, str]]:
    """A server that takes nothing but TLS: its URI without and with it."""
    # It is made without TLS, which it demands only once it is there.
    arguments = ["--tlsMode", "allowTLS", "--tlsCertificateKeyFile", str(certificate)]
    arguments += ["--tlsCAFile", str(certificate), "--tlsAllowConnectionsWithoutCertificates"]
    with ReplicaSet(arguments=arguments) as replica_set:
        plain = replica_set.uri
        encrypted = f"{plain}&tls=true&tlsCAFile={certificate}"
        with MongoClient(encrypted) as client:
            for mode in ("preferTLS", "requireTLS"):
                client.admin.command("setParameter", 1, tlsMode=mode)
        yield plain, encrypted


def test_a_client_without_tls_is_told_that_the_server_hangs_up(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    uri = server[0].replace("://", f"://me:{PASSWORD}@") + "&serverSelectionTimeoutMS=300"
    config = ChangeStreamConfig(max_reconnect_attempts=2, initial_backoff=0.01)
    watcher = Watcher(uri, "shop", store=MemoryStore(), config=config)
    collecting(watcher)

    with pytest.raises(MaxReconnectAttemptsExceededError, match="127.0.0.1:.*closed") as raised:
        watcher.start()

    assert raised.value.attempts == 2
    assert PASSWORD not in str(raised.value) + caplog.text


PROGRAM = """
from pymongo import MongoClient
from rigatoni import MemoryStore, Watcher

watcher = Watcher(given["uri"], "shop", store=MemoryStore())


@watcher.on("insert", collection="orders")
def note(event):
    say(number=event.document_key["_id"])
    if event.document_key["_id"] == 99:
        watcher.stop()


watcher.start()
with MongoClient(given["uri"]) as client:
    client.shop.orders.drop()
    client.shop.orders.insert_many({"_id": number} for number in range(100))
watcher.join()
say(state=watcher.state)
"""


@BOTH
def test_changes_arrive_over_tls(server: Any, tmp_path: Path, patched: bool) -> None:
    program = run_program(PROGRAM, tmp_path, patched=patched, uri=server[1])

    assert program.said("number") == list(range(100))
    assert program.said("state") == ["stopped"]
