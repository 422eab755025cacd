"""What the README says is so: its commands, its programs, its links."""

from __future__ import annotations

import ast
import signal
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from commands import running
from conftest import wait_until
from documents import ROOT, Page
from docutils import nodes
from docutils.core import publish_doctree
from reader import Reader
from test_examples import GUNICORN, address

import rigatoni
from rigatoni import SQLiteStore

URI = "mongodb://localhost:27017"
COMMANDS = (
    'python3 -m venv .venv && .venv/bin/pip install -q ".[embedded]" && .venv/bin/rigatoni demo',
    "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox",
)
README = Page("README.rst")
PROGRAM = README.take("def ship(event):\n    print(")
MEANWHILE = README.take("time.sleep(60)")
FLASK = README.take("Rigatoni(app")
GUNICORN_CONF = README.take('worker_class = "gevent"')
HANDLERS = README.take("def reprice(")
TESTS = README.take("make_event("), README.take("arrived.wait(")


def parsed(text: str) -> nodes.document:
    """Parse reStructuredText; anything that docutils complains of is an error."""
    return publish_doctree(text, settings_overrides={"report_level": 1, "halt_level": 1, "syntax_highlight": "none"})


def test_the_changelog_is_valid_and_begins_with_this_version() -> None:
    changelog = parsed((ROOT / "CHANGELOG.rst").read_text("utf-8"))
    titles = [title.astext() for title in changelog.findall(nodes.Titular)]

    assert titles[:2] == ["Changes", rigatoni.__version__]


def test_both_commands_stand_there_as_promised_and_ci_runs_the_second() -> None:
    literal = [each.astext() for each in parsed(README.text).findall(nodes.literal_block)]

    assert all(command in literal for command in COMMANDS)
    assert COMMANDS[1] in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_every_link_leads_to_a_file_and_every_page_of_the_manual_has_one() -> None:
    links = {link["refuri"] for link in parsed(README.text).findall(nodes.reference) if "refuri" in link}
    pages = {f"docs/{path.name}" for path in ROOT.glob("docs/*.rst")} - {"docs/index.rst", "docs/changes.rst"}

    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []
    assert pages - links == set()


def test_the_first_program_has_ten_lines_and_is_the_example() -> None:
    example = (ROOT / "examples" / "orders.py").read_text("utf-8")
    head = ast.get_docstring(ast.parse(example), clean=False)

    assert len(PROGRAM.splitlines()) == 10
    assert PROGRAM.split() == example.replace(f'"""{head}"""', "").split()


@pytest.fixture
def reader(tmp_path: Path, mongodb_replica_set: Any) -> Reader:
    reader = Reader(tmp_path, mongodb_replica_set.uri)
    reader.save("orders.py", PROGRAM.replace(URI, mongodb_replica_set.uri))
    return reader


def wait_until_active(reader: Reader) -> None:
    store = SQLiteStore(reader.folder / "rigatoni.db")
    wait_until(lambda: (store.status("default") or {}).get("state") == "running")
    store.close()


@pytest.mark.parametrize("program", ["orders", "meanwhile"])
def test_the_first_program_handles_an_insert_and_stops_at_sigint(program: str, reader: Reader, shop: Any) -> None:
    reader.save("meanwhile.py", MEANWHILE)
    with reader.starts("python", f"{program}.py") as running:
        wait_until_active(reader)
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: running.out == "shipping pasta\n")
        # A program that sleeps has Python's own code for a KeyboardInterrupt.
        ended = running.end(signal.SIGINT) if program == "orders" else running.interrupt()
    assert ended == (0 if program == "orders" else -signal.SIGINT)


def test_the_tests_in_the_readme_pass(reader: Reader) -> None:
    reader.save("orders.py", PROGRAM)
    reader.save("test_orders.py", "\n\n".join(TESTS))

    assert "2 passed" in reader.runs("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py")


def test_each_handler_gets_what_it_asked_for(reader: Reader, shop: Any) -> None:
    reader.save("handlers.py", HANDLERS.replace(URI, reader.uri))
    with reader.starts("rigatoni", "run", "handlers:watcher") as running:
        wait_until_active(reader)
        shop.products.insert_one({"_id": 1, "price": 2})
        shop.products.update_one({"_id": 1}, {"$set": {"price": 3}})
        for collection in ("mails", "clicks", "views_2025", "uploads", "logs"):
            shop[collection].insert_one({"_id": 7})
        said = "now 3", "sent 7", "1 at once", "later", "insert 82"
        wait_until(lambda: all(line in running.out for line in said) and running.out.count("at once") == 2)


def test_the_flask_application_runs_under_gunicorn_and_shows_its_page(
    reader: Reader, shop: Any, mongodb_replica_set: Any
) -> None:
    reader.save("web.py", FLASK.replace(URI, mongodb_replica_set.uri))
    reader.save("gunicorn.conf.py", GUNICORN_CONF)
    with running(reader.folder, "--bind", "127.0.0.1:0", "web:app", command=GUNICORN) as server:
        url = address(server)
        wait_until_active(reader)
        shop.orders.insert_one({"item": "pasta"})
        wait_until(lambda: "shipping pasta" in server.err)
        with urlopen(f"{url}/rigatoni/", timeout=60) as page:
            assert page.status == 200


def test_every_program_of_the_readme_is_run() -> None:
    assert README.left == []
