"""Run tests of the drivers' unified test format on ``ChangeStreamListener``, as far as change streams use that format.

Whatever is not understood (a requirement, an operation, an argument, an operator) fails the test: nothing is passed
over. https://github.com/mongodb/specifications/tree/master/source/unified-test-format
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from bson import json_util
from listening import Commands
from pymongo import MongoClient
from pymongo.write_concern import WriteConcern

from rigatoni import ChangeStreamConfig, ChangeStreamListener, StreamError

Document = dict[str, Any]
Version = tuple[int, ...]

#: Errors that the drivers hand to the application and the listener waits out.
WAITED_OUT = {("getMore", 216)}  # ElectionInProgress
#: What a program may ask an event for; none of it may raise, whatever the event looks like.
ATTRIBUTES = (
    *("id", "operation", "database", "collection", "document_key", "full_document", "full_document_before_change"),
    *("update_description", "cluster_time", "wall_time", "resume_token", "txn_number", "lsid", "truncated"),
)
PATIENCE = 60.0
MISSING = object()


@dataclass(frozen=True)
class UnifiedTest:
    """One test, and the file around it."""

    file: str
    content: Document
    test: Document

    @property
    def name(self) -> str:
        return f"{self.file}: {self.test['description']}"

    def topology(self, version: Version) -> str | None:
        """Name the kind of server that it runs on; None when a server of this version has none."""
        given = [where.get("runOnRequirements", [{}]) for where in (self.content, self.test)]
        kinds = [kind for kind in ("replicaset", "single") if all(_meets(each, version, kind) for each in given)]
        return kinds[0] if kinds else None


def read_tests(folder: Path) -> list[UnifiedTest]:
    """Read the tests of a folder; none when it is absent."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json_util.loads(path.read_text("utf-8"))
        found += [UnifiedTest(path.stem, content, test) for test in content["tests"]]
    return found


def version_of(text: str) -> Version:
    return tuple(map(int, text.split(".")))


def _meets(requirements: list[Document], version: Version, topology: str) -> bool:
    checks: dict[str, Callable[[Any], bool]] = {
        "minServerVersion": lambda least: version >= version_of(least),
        "maxServerVersion": lambda most: version <= version_of(most),
        "topologies": lambda kinds: topology in kinds,
        "serverless": lambda word: bool(word != "require"),
    }
    return any(all(checks[key](value) for key, value in each.items()) for each in requirements)


def run(unified: UnifiedTest, uri: str) -> None:
    """Run a test on a server.

    :raises AssertionError: when it fails.
    """
    with ExitStack() as closing:
        _Run(unified, uri, closing).run()


class _Run:
    def __init__(self, unified: UnifiedTest, uri: str, closing: ExitStack) -> None:
        self._unified = unified
        self._uri = uri
        self._closing = closing
        self._entities: Document = {"testRunner": self}
        self._observed: dict[str, tuple[Commands, set[str]]] = {}
        self._operations: dict[str, Callable[..., Any]] = {
            **OPERATIONS,
            "failPoint": self._fail,
            "createChangeStream": self._watch,
        }

    def run(self) -> None:
        content, test = self._unified.content, self._unified.test
        assert test.keys() <= {"description", "runOnRequirements", "operations", "expectEvents"}
        self._fill(content.get("initialData", []))
        for entity in content["createEntities"]:
            ((kind, options),) = entity.items()
            self._entities[options["id"]] = self._made(kind, **options)
        for operation in test["operations"]:
            self._do(**operation)
        for expected in test.get("expectEvents", []):
            self._check_events(**expected)

    def _fill(self, data: list[Document]) -> None:
        with MongoClient(self._uri) as client:
            for each in data:
                database = client.get_database(each["databaseName"], write_concern=WriteConcern("majority"))
                database.drop_collection(each["collectionName"])
                collection = database.create_collection(each["collectionName"])
                if each["documents"]:
                    collection.insert_many(deepcopy(each["documents"]))

    def _made(self, kind: str, **options: Any) -> Any:
        if kind == "database":
            return self._entities[options["client"]][options["databaseName"]]
        if kind == "collection":
            return self._entities[options["database"]][options["collectionName"]]
        assert (kind, options.get("observeEvents", ["commandStartedEvent"])) == ("client", ["commandStartedEvent"])
        commands, ignored = Commands(), {"configureFailPoint", *options.get("ignoreCommandMonitoringEvents", [])}
        self._observed[options["id"]] = commands, ignored
        # A server that fails with "shutting down" is asked again only after the next heartbeat.
        return self._closing.enter_context(MongoClient(self._uri, heartbeatFrequencyMS=500, event_listeners=[commands]))

    def _do(
        self,
        name: str,
        object: str,
        arguments: Mapping[str, Any] | None = None,
        saveResultAsEntity: str | None = None,
        expectResult: Any = MISSING,
        expectError: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            result = self._operations[name](self._entities[object], **deepcopy(dict(arguments or {})))
        except StreamError as error:
            assert expectError is not None, f"{name} failed: {error!r}"
            check_error(expectError, error)
            return
        if expectError is not None:
            self._check_waited_out(expectError.get("errorCode"))
        if expectResult is not MISSING:
            check(expectResult, result, "result", is_root=True)
        if saveResultAsEntity is not None:
            self._entities[saveResultAsEntity] = result

    def _check_waited_out(self, code: int | None) -> None:
        failures = {failure for commands, _ in self._observed.values() for failure in commands.failures}
        assert ("getMore", code) in WAITED_OUT & failures, f"error {code} was expected"

    def _fail(self, runner: object, client: str, failPoint: Document) -> None:
        admin = self._entities[client].admin
        self._closing.callback(admin.command, "configureFailPoint", failPoint["configureFailPoint"], mode="off")
        admin.command(failPoint)

    def _watch(self, source: Any, **options: Any) -> ChangeStreamListener:
        # A reply that comes empty-handed is one command more than the tests expect.
        config = {"max_await_time": 10.0, "initial_backoff": 0.001, **{_snake(key): options[key] for key in options}}
        return self._closing.enter_context(ChangeStreamListener(source, ChangeStreamConfig(**config)))

    def _check_events(self, client: str, events: list[Document], ignoreExtraEvents: bool = False) -> None:
        commands, ignored = self._observed[client]
        sent = [each for each in commands.sent if each[0] not in ignored]
        assert len(sent) == len(events) or (ignoreExtraEvents and len(sent) > len(events)), sent
        for expected, (name, command) in zip(events, sent, strict=False):
            check_command(name, command, **expected["commandStartedEvent"])
            asked = expected["commandStartedEvent"]["command"].get("cursor", {}).get("batchSize")
            if asked is not None:
                assert {more["batchSize"] for more in commands.named("getMore")} == {asked}


def _snake(name: str) -> str:
    return re.sub("(?=[A-Z])", "_", name).lower()


def _next(listener: ChangeStreamListener) -> Mapping[str, Any]:
    deadline = monotonic() + PATIENCE
    while (event := listener.try_next()) is None:
        assert monotonic() < deadline, "no event came"
    for name in ATTRIBUTES:
        getattr(event, name)
    event.ack()
    return event.raw


OPERATIONS: dict[str, Callable[..., Any]] = {
    "createCollection": lambda database, collection, **options: database.create_collection(collection, **options),
    "createIndex": lambda collection, keys, name: collection.create_index(list(keys.items()), name=name),
    "deleteOne": lambda collection, filter: collection.delete_one(filter),
    "dropCollection": lambda database, collection: database.drop_collection(collection),
    "dropIndex": lambda collection, name: collection.drop_index(name),
    "insertOne": lambda collection, document: collection.insert_one(document),
    "iterateUntilDocumentOrError": _next,
    "rename": lambda collection, to, dropTarget=False: collection.rename(to, dropTarget=dropTarget),
    "replaceOne": lambda collection, filter, replacement: collection.replace_one(filter, replacement),
    "runCommand": lambda database, commandName, command: database.command(command),
    "updateOne": lambda collection, filter, update: collection.update_one(filter, update),
}


# -- what is expected


def check_command(
    name: str,
    sent: Mapping[str, Any],
    command: Mapping[str, Any],
    commandName: str | None = None,
    databaseName: str | None = None,
) -> None:
    """Check a command that was sent against what is expected of a driver."""
    assert commandName in (None, name) and databaseName in (None, sent["$db"])
    check(ours(command), sent, "command", is_root=True)


def ours(command: Mapping[str, Any]) -> Document:
    """Turn the command that a driver would send into that of the listener."""
    command = deepcopy(dict(command))
    if "cursor" in command:
        command["cursor"]["batchSize"] = 0
    for stage in command.get("pipeline", []):
        if "resumeAfter" in stage.get("$changeStream", {}):
            stage["$changeStream"]["startAfter"] = stage["$changeStream"].pop("resumeAfter")
    return command


def check_error(expected: Mapping[str, Any], error: StreamError) -> None:
    """Check an error of the listener against what is expected of a driver."""
    details = getattr(error.__cause__, "details", None) or {}
    found = {
        "errorCode": error.code,
        "errorCodeName": details.get("codeName"),
        "errorLabelsContain": sorted(error.labels & set(expected.get("errorLabelsContain", []))),
        "isClientError": error.code is None,
    }
    check(expected, found, "error", is_root=True)


def check(expected: Any, actual: Any, where: str, is_root: bool = False) -> None:
    """Check a value; only the root of a document may have keys that are not expected."""
    operators = [key for key in expected if key.startswith("$$")] if isinstance(expected, dict) else []
    if operators:
        ((name, operand),) = expected.items()
        _CHECKS[name](operand, actual, where)
    elif isinstance(expected, dict):
        assert isinstance(actual, Mapping), f"{where} is no document: {actual!r}"
        for key, value in expected.items():
            check(value, actual.get(key, MISSING), f"{where}.{key}")
        assert is_root or actual.keys() <= expected.keys(), f"{where} has more than was expected: {actual!r}"
    elif isinstance(expected, list):
        assert isinstance(actual, list) and len(actual) == len(expected), f"{where} is {actual!r}"
        for index, value in enumerate(expected):
            check(value, actual[index], f"{where}.{index}")
    else:
        same = actual == expected and isinstance(actual, bool) == isinstance(expected, bool)
        assert same, f"{where} is {actual!r}, not {expected!r}"


def _check_exists(expected: bool, actual: Any, where: str) -> None:
    assert (actual is not MISSING) == expected, f"{where} is {actual!r}"


def _check_type(expected: str | list[str], actual: Any, where: str) -> None:
    kinds = {"int": int, "long": int, "object": Mapping, "array": list}
    wanted = tuple(kinds[name] for name in ([expected] if isinstance(expected, str) else expected))
    assert isinstance(actual, wanted) and not isinstance(actual, bool), f"{where} is {actual!r}"


def _check_unset_or_matches(expected: Any, actual: Any, where: str) -> None:
    if actual is not MISSING:
        check(expected, actual, where)


_CHECKS: dict[str, Callable[[Any, Any, str], None]] = {
    "$$exists": _check_exists,
    "$$type": _check_type,
    "$$unsetOrMatches": _check_unset_or_matches,
}
