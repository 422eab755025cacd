"""The password of a connection string is shown to nobody: by no message, log, repr or status, nor by tools that show
the local variables of tracebacks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from traceback import TracebackException, format_exception
from typing import Any
from urllib.parse import quote_plus

import pytest
from commands import rigatoni_ends
from conftest import wait_until
from guarded import Guarded, guarded_server
from pymongo import MongoClient

from rigatoni import ChangeStreamConfig, SQLiteStore, StreamError, Watcher

SECRET = "s3cretword"
#: One that a URI holds in another form than the server gets it in.
ODD_SECRET = "p@ss/m4ze:rd%é"
ESCAPED_SECRET = quote_plus(ODD_SECRET)
#: What they look like where somebody took the first half for something else; some are in both forms.
PARTS = (SECRET, "s3cret", "retword", ODD_SECRET, ESCAPED_SECRET, "p@ss", "p%40ss", "m4ze", "rd%é", "rd%25")
HOST = "127.0.0.1:1"

#: Refused when the watcher is made, with a mistake in or around the password.
MALFORMED = [
    f"mongodb:/u:{SECRET}@{HOST}",
    f"http://u:{SECRET}@{HOST}",
    f"mongodb://u:{SECRET}@",
    f"mongodb://u:{SECRET}@{HOST},,b",
    f"mongodb://u:{SECRET}",
    f"mongodb://u:s3c/{SECRET}@{HOST}",
    f"mongodb://u:s3c?{SECRET}@{HOST}",
    f"mongodb://u:{SECRET}@{HOST}/?appName={SECRET}@b",
    f" mongodb://u:{SECRET}@{HOST}",
    f"mongodb://u:{SECRET}@{HOST} b",
    f"mongodb://u:{ODD_SECRET}@{HOST}",
]
#: Refused by the start, by pymongo or because nobody answers.
REFUSED = [
    f"mongodb://u:{SECRET}%zz@{HOST}",
    f"mongodb://u:{SECRET}@x@{HOST}",
    f"mongodb://u:[{SECRET}@{HOST}",
    f"mongodb://u:{SECRET}℀@{HOST}",
    f"mongodb://u:{SECRET}:{SECRET}@{HOST}",
    f"mongodb://:{SECRET}@{HOST}",
    f"mongodb://u:{SECRET}@127.0.0.1:99999",
    f"mongodb://u:{SECRET}@{HOST}/a b.$c",
    f"mongodb://u:{SECRET}@{HOST}/?authMechanism=MONGODB-X509&authSource=nowhere",
    f"mongodb://u:{SECRET}@{HOST}/?loadBalanced=true",
    f"mongodb://u:{SECRET}@{HOST}/?tls=true&tlsInsecure=true&tlsAllowInvalidCertificates=false",
    f"mongodb://u@{HOST}/?tlsCertificateKeyFile=/nowhere.pem&tlsCertificateKeyFilePassword={SECRET}",
    f"mongodb://u@{HOST}/?tlsCertificateKeyFile={__file__}&tlsCertificateKeyFilePassword={SECRET}",
    f"mongodb://{HOST}/?authMechanism=MONGODB-AWS&authMechanismProperties=AWS_SESSION_TOKEN:{SECRET}",
    f"mongodb+srv://u:{SECRET}@nowhere.invalid/",
    f"mongodb+srv://u:{SECRET}@nowhere.invalid:27017/",
    f"mongodb://u:{SECRET}@{HOST}/",
    f"mongodb://u:{SECRET}@nowhere.invalid/",
    f"mongodb://u:{ESCAPED_SECRET}@{HOST}/",
    f"mongodb://u:{ESCAPED_SECRET}@nowhere.invalid/",
    f"mongodb+srv://u:{ESCAPED_SECRET}@nowhere.invalid/",
    f"mongodb://u:{ESCAPED_SECRET}@127.0.0.1:99999",
]
QUICK = ChangeStreamConfig(max_reconnect_attempts=1, initial_backoff=0.001)


def chain(shown: TracebackException | None) -> Iterator[TracebackException]:
    while shown is not None:
        yield shown
        shown = shown.__cause__ or shown.__context__


def said_by(error: BaseException) -> str:
    """Give all that an error shows: its text, its traceback, and the variables of all frames but those of this file."""
    told = [str(error), repr(error), *map(str, error.args), str(vars(error)), *format_exception(error)]
    for shown in chain(TracebackException.from_exception(error, capture_locals=True)):
        for frame in shown.stack:
            # The program has it in its own variables.
            if frame.filename != __file__:
                told += [f"{name} = {value}" for name, value in (frame.locals or {}).items()]
    return "\n".join(told)


def assert_hidden(text: str) -> None:
    assert text
    assert [part for part in PARTS if part in text.replace(__file__, "")] == []


def lines_without_source(text: str) -> str:
    """Leave out what a traceback quotes of this file, which holds what it looks for."""
    return "\n".join(line for line in text.splitlines() if "SECRET" not in line)


def quick(uri: str) -> str:
    return uri + ("&" if "?" in uri else "?" if uri.count("/") > 2 else "/?") + "serverSelectionTimeoutMS=1"


@pytest.mark.parametrize("uri", MALFORMED)
def test_a_malformed_uri_is_refused_without_being_shown(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    with pytest.raises(StreamError, match="URI") as raised:
        Watcher(uri)
    assert raised.value.category == "configuration"
    assert_hidden(lines_without_source(said_by(raised.value)) + caplog.text)


@pytest.mark.parametrize("options", [{"name": "no name!"}, {"store": 5}, {"database": "a.b"}, {"hooks": [5]}])
def test_another_mistake_does_not_show_the_uri_either(options: dict[str, Any]) -> None:
    with pytest.raises(StreamError) as raised:
        Watcher(f"mongodb://u:{SECRET}@{HOST}", **options)
    assert_hidden(lines_without_source(said_by(raised.value)))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("uri", "way"), [*zip(REFUSED, cycle(["start", "run"]), strict=False)])
def test_a_start_that_fails_shows_it_nowhere(
    uri: str, way: str, store_path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    watcher = Watcher(quick(uri), "shop", store=store_path, config=QUICK)
    watcher.on("insert")(lambda event: None)
    with pytest.raises(StreamError) as raised:
        getattr(watcher, way)()
    wait_until(lambda: watcher.state == "failed")
    shown = [said_by(raised.value), caplog.text, repr(watcher), str(watcher.stats()), repr(vars(watcher))]
    shown += map(repr, (watcher._settings, watcher._life, vars(watcher._life)))
    store = SQLiteStore(store_path)
    store.open()
    shown.append(str(store.status("default")))
    store.close()
    assert_hidden(lines_without_source("\n".join(shown)))
    assert_hidden(Path(store_path).read_bytes().decode("latin-1"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A server that asks for user and password, and can be told to fail."""
    with guarded_server(tmp_path_factory.mktemp("key"), SECRET, enableTestCommands=True) as guarded:
        yield guarded


@pytest.mark.parametrize("secret", [SECRET, ESCAPED_SECRET], ids=["plain", "escaped"])
@pytest.mark.parametrize(
    ("user", "options"),
    [("nobody", ""), ("root", "&authSource=elsewhere"), ("root", "&authMechanism=PLAIN"), ("root", "&tls=true")],
)
def test_who_is_refused_by_the_server_finds_the_password_in_no_frame_of_the_driver(
    user: str, options: str, secret: str, guarded: Guarded, caplog: pytest.LogCaptureFixture, store_path: str
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    uri = guarded.uri_as(f"{user}:{secret}") + options
    watcher = Watcher(f"{uri}&serverSelectionTimeoutMS=1000", store=store_path, config=QUICK)
    watcher.on("insert")(lambda event: None)
    with pytest.raises(StreamError) as raised:
        watcher.start()
    assert raised.value.__cause__ is not None
    assert_hidden(said_by(raised.value) + caplog.text)


def test_a_connection_that_breaks_while_the_password_is_checked_does_not_show_it(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, store_path: str
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    uri = guarded.uri_as(f"root:{SECRET}")
    point = {"configureFailPoint": "failCommand"}
    data = {"failCommands": ["saslContinue"], "closeConnection": True, "appName": "rigatoni default"}
    with MongoClient[Any](uri) as client:
        client.admin.command({**point, "mode": "alwaysOn", "data": data})
        try:
            watcher = Watcher(uri, store=store_path, config=QUICK)
            watcher.on("insert")(lambda event: None)
            with pytest.raises(StreamError, match="gave up after 1 attempts") as raised:
                watcher.start()
        finally:
            client.admin.command({**point, "mode": "off"})
    assert "AutoReconnect" in str(raised.value)
    assert_hidden(said_by(raised.value) + caplog.text)


def drop(user: str, guarded: Guarded) -> None:
    guarded.root.admin.command("dropUser", user)


def change_password(user: str, guarded: Guarded) -> None:
    guarded.root.admin.command("updateUser", user, pwd="another one")
    # So that the user has to be told once more.
    data = {"failCommands": ["getMore"], "closeConnection": True, "appName": "rigatoni default"}
    guarded.root.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 1}, "data": data})


@pytest.mark.parametrize(("lose", "code"), [(drop, 13), (change_password, 18)])
def test_a_user_who_is_no_longer_let_in_while_it_watches_finds_the_password_nowhere(
    lose: Callable[[str, Guarded], None],
    code: int,
    guarded: Guarded,
    caplog: pytest.LogCaptureFixture,
    store_path: str,
) -> None:
    caplog.set_level(logging.DEBUG, "rigatoni")
    user, seen = f"clerk{code}", []
    guarded.root.admin.command("createUser", user, pwd=ODD_SECRET, roles=["root"])
    watcher = Watcher(guarded.uri_as(f"{user}:{ESCAPED_SECRET}"), "shop", store=store_path, config=QUICK)
    watcher.on("insert")(seen.append)
    assert watcher.start() == "running"
    guarded.root.shop.orders.insert_one({})
    wait_until(lambda: seen)
    lose(user, guarded)
    with pytest.raises(StreamError) as raised:
        watcher.join(60)
    assert getattr(raised.value, "code", None) == code
    status = watcher.store.status("default")
    watcher.store.close()
    assert status is not None and status["state"] == "failed"
    assert_hidden(said_by(raised.value) + caplog.text + repr(watcher) + str(watcher.stats()) + str(status))
    assert_hidden(Path(store_path).read_bytes().decode("latin-1"))


@pytest.mark.parametrize(
    ("command", "uri"),
    [
        ("watch", REFUSED[3]),
        ("run", REFUSED[3]),
        ("run", REFUSED[16]),
        ("run", MALFORMED[5]),
        ("run", MALFORMED[-1]),
        ("run", REFUSED[-1]),
    ],
)
def test_the_command_line_shows_it_nowhere(command: str, uri: str, tmp_path: Path) -> None:
    program = """
import os
from rigatoni import ChangeStreamConfig, Watcher

watcher = Watcher(os.environ["RIGATONI_URI"], config=ChangeStreamConfig(max_reconnect_attempts=1))
watcher.on()(print)
"""
    (tmp_path / "shop.py").write_text(program)
    arguments = ["run", "shop:watcher"] if command == "run" else ["watch"]
    environment = {"RIGATONI_URI": quick(uri), "RIGATONI_MAX_RECONNECT_ATTEMPTS": "1", "PYTHONDEVMODE": "1"}
    ended = rigatoni_ends(*arguments, cwd=tmp_path, **environment)
    assert ended.returncode in (10, 12)
    assert_hidden(ended.stdout + ended.stderr)
