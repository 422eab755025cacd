"""The programs on the pages about Flask, gunicorn, the page, metrics and operations do what is said there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from commands import running
from conftest import wait_until
from documents import Page
from reader import Reader
from test_examples import GUNICORN, address, is_running

from rigatoni import Watcher
from rigatoni.testing import make_event

URI = "mongodb://localhost:27017"
FLASK = (sys.executable, "-m", "flask")
FLASK_PAGE = Page("docs/flask.rst")
SHOP = FLASK_PAGE.take("app.config.update")
EXTENSIONS = FLASK_PAGE.take("rigatoni = Rigatoni()")
ORDERS = FLASK_PAGE.take("Blueprint(")
FACTORY = FLASK_PAGE.take("def create_app")
GUNICORN_PAGE = Page("docs/gunicorn.rst")
CONF = GUNICORN_PAGE.take("workers = 4")
NAMED = GUNICORN_PAGE.take('hooks("shop.handlers:watcher")')
OWN = GUNICORN_PAGE.take("def post_worker_init")
LIVE_PAGE = Page("docs/page.rst")
LIVE = LIVE_PAGE.take("Rigatoni(app, page")
BLUEPRINT = LIVE_PAGE.take("register_blueprint")
AUTHORIZE = LIVE_PAGE.take("PROBE_KEY")
METRICS_PAGE = Page("docs/metrics.rst")
HEALTH = METRICS_PAGE.take("for reason in problems")
SERVICE = METRICS_PAGE.take("start_http_server(8000)")
EXPORTER = METRICS_PAGE.take("make_wsgi_app(registry)")
ALARM = METRICS_PAGE.take("class Alarm")
CONTAINER = Page("docs/operations.rst").take("/data/rigatoni.db")


def get(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=60) as answer:
        return str(answer.read().decode())


@pytest.fixture
def reader(tmp_path: Path, mongodb_replica_set: Any) -> Reader:
    reader = Reader(tmp_path, mongodb_replica_set.uri)
    (tmp_path / "shop").mkdir()
    return reader


def save_factory(reader: Reader) -> None:
    reader.save("shop/extensions.py", EXTENSIONS)
    reader.save("shop/orders.py", ORDERS.replace("logger.info", "logger.warning"))
    reader.save("shop/__init__.py", FACTORY)


def test_the_development_server_starts_the_watcher_with_the_first_request(reader: Reader, shop: Any) -> None:
    reader.save("web.py", SHOP.replace(URI, reader.uri))
    with running(reader.folder, "--app", "web", "run", "--port", "0", command=FLASK) as server:
        url = address(server)
        with pytest.raises(OSError, match="404"):
            get(url)
        wait_until(lambda: is_running(reader.folder / "rigatoni.db"))
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: "shipping pasta" in server.err)


@pytest.mark.parametrize("conf", [CONF, OWN], ids=["as it is", "with hooks of one's own"])
def test_a_factory_is_served_by_gunicorn(conf: str, reader: Reader, shop: Any) -> None:
    save_factory(reader)
    reader.save("gunicorn.conf.py", conf)
    settings = {"FLASK_RIGATONI_URI": reader.uri, "FLASK_RIGATONI_DATABASE": "shop"}
    arguments = ("--bind", "127.0.0.1:0", "shop:create_app()")
    with running(reader.folder, *arguments, command=GUNICORN, **settings) as server:
        address(server)
        wait_until(lambda: is_running(reader.folder / "rigatoni.db"))
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: "shipping pasta" in server.err)
        assert "is ready" in server.err or conf == CONF


def test_a_watcher_of_no_flask_application_is_named(reader: Reader, shop: Any) -> None:
    reader.save("shop/handlers.py", BY_HAND.replace(URI, reader.uri))
    reader.save("gunicorn.conf.py", NAMED)
    with running(reader.folder, "--bind", "127.0.0.1:0", "shop.handlers:app", command=GUNICORN) as server:
        assert get(address(server)) == "hello"
        wait_until(lambda: is_running(reader.folder / "rigatoni.db"))
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: "shipping pasta" in server.out)


BY_HAND = f"""
from rigatoni import Watcher

watcher = Watcher("{URI}", "shop")

@watcher.on("insert", collection="orders")
def ship(event):
    print("shipping", event.full_document["item"], flush=True)

def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
"""


@pytest.mark.parametrize("text", [LIVE, BLUEPRINT], ids=["extension", "blueprint"])
def test_the_page_is_there_for_whom_it_is_meant(text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "web"}
    exec(text, names)

    assert names["app"].test_client().get("/rigatoni/").status_code == 200
    stranger = names["app"].test_client().get("/rigatoni/", environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert stranger.status_code == (403 if text == LIVE else 200)


def test_some_may_look_some_may_change_and_probes_may_pass() -> None:
    from flask import Flask, request, session

    names: dict[str, Any] = {}
    exec(AUTHORIZE, names)
    app = Flask("web")
    app.config.update(PROBE_KEY="secret", SECRET_KEY="other")

    def may(role: str, path: str = "/rigatoni/", method: str = "GET", **headers: str) -> bool:
        with app.test_request_context(path, method=method, headers=headers):
            session["role"] = role
            return bool(names["authorize"](request))

    assert may("operator") and may("admin") and not may("guest")
    assert may("admin", method="POST") and not may("operator", method="POST")
    assert may("", "/rigatoni/health", **{"X-Probe-Key": "secret"}) and not may("admin", "/rigatoni/health")


def test_health_is_asked_in_a_program(reader: Reader) -> None:
    reader.save("health.py", HEALTH)

    assert "there is no status row" in reader.runs("python", "health.py")


def test_a_service_and_an_exporter_beside_it_show_the_same_metrics(reader: Reader, shop: Any) -> None:
    assert "8000" in SERVICE and "/data/rigatoni.db" in EXPORTER
    text = SERVICE.replace(URI, reader.uri).replace("start_http_server(8000)", SHOWS)
    reader.save("service.py", text)
    reader.save("exporter.py", EXPORTER.replace("/data/rigatoni.db", "rigatoni.db"))
    with running(reader.folder, "service.py", command=(sys.executable, "-u")) as service:
        wait_until(lambda: is_running(reader.folder / "rigatoni.db"))
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: "shipping pasta" in service.out)
        processed = 'rigatoni_events_processed_total{collection="orders",database="shop",operation="insert"'
        wait_until(lambda: processed in get(service.out.splitlines()[0]))
        with running(
            reader.folder / "shop",
            "--chdir",
            str(reader.folder),
            "--bind",
            "127.0.0.1:0",
            "exporter:app",
            command=GUNICORN,
        ) as exporter:
            assert processed in get(address(exporter))


#: Where a free port is taken, and told.
SHOWS = """print(f"http://127.0.0.1:{start_http_server(0)[0].server_port}/metrics", flush=True)"""


def test_an_alarm_rings_for_a_dead_letter(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(ALARM, names)
    event = make_event()

    names["watcher"]._settings.hooks.dead_lettered(event, ValueError("no pasta"))

    assert capsys.readouterr().out == f"look at {event.id} no pasta\n"


def test_the_program_of_a_container_can_be_made(monkeypatch: Any) -> None:
    monkeypatch.setenv("RIGATONI_URI", URI)
    names: dict[str, Any] = {}

    exec(CONTAINER, names)

    assert isinstance(names["watcher"], Watcher) and names["watcher"].store.location == "/data/rigatoni.db"


@pytest.mark.parametrize("page", [FLASK_PAGE, GUNICORN_PAGE, LIVE_PAGE, METRICS_PAGE], ids=lambda page: page.path.name)
def test_every_program_of_these_pages_is_run(page: Page) -> None:
    assert page.left == []
