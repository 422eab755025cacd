"""Hooks harm nothing, and cost nothing where nobody listens."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pytest

from rigatoni.events import ChangeEvent
from rigatoni.hooks import HookChain, Hooks

EVENT = ChangeEvent({})
ERROR = ValueError("broken")

#: Every hook that is told something, with arguments.
TOLD: dict[str, tuple[Any, ...]] = {
    "opened": ("shop",),
    "received": ("shop", 3, 1000),
    "handled": (EVENT, 0.5),
    "failed": (EVENT, ERROR, 1),
    "dead_lettered": (EVENT, ERROR),
    "saved": ("shop", {"_data": "82"}),
    "reconnecting": ("shop", ERROR, 1, 0.1),
    "gap": ("shop", 1, 2),
    "closed": ("shop", None),
}


def recorder(name: str, seen: list[tuple[Any, ...]]) -> Hooks:
    """Make a hook that writes down what `name` is told."""
    return type("Recorder", (Hooks,), {name: lambda self, *arguments: seen.append(arguments)})()


def test_every_hook_is_in_the_chain() -> None:
    public = {name for name in vars(Hooks) if not name.startswith("_")}

    assert public == {*TOLD, "status"}


@pytest.mark.parametrize("name", TOLD)
def test_every_listener_is_told_in_order(name: str) -> None:
    seen: list[tuple[Any, ...]] = []
    chain = HookChain([recorder(name, seen), Hooks(), recorder(name, seen)])

    getattr(chain, name)(*TOLD[name])

    assert seen == [TOLD[name], TOLD[name]]


@pytest.mark.parametrize("name", TOLD)
def test_a_hook_that_raises_is_logged_and_harms_no_other(name: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: Hooks, *arguments: object) -> None:
        raise RuntimeError("the hook is broken")

    seen: list[tuple[Any, ...]] = []
    chain = HookChain([type("Broken", (Hooks,), {name: broken})(), recorder(name, seen)])

    getattr(chain, name)(*TOLD[name])

    assert seen == [TOLD[name]]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the hook is broken" in caplog.text


@pytest.mark.parametrize("name", TOLD)
def test_the_base_class_listens_to_nothing(name: str) -> None:
    assert getattr(Hooks(), name)(*TOLD[name]) is None
    assert not HookChain([Hooks()]).overrides(name)
    assert not HookChain([]).overrides(name)
    assert HookChain([Hooks(), recorder(name, [])]).overrides(name)


class _Status(Hooks):
    def __init__(self, status: Any) -> None:
        self._status = status

    def status(self) -> Mapping[str, Any]:
        if isinstance(self._status, Exception):
            raise self._status
        status: Mapping[str, Any] = self._status
        return status


def test_status_is_merged_and_later_hooks_win() -> None:
    chain = HookChain([_Status({"a": 1, "b": 1}), Hooks(), _Status({"b": 2})])

    assert chain.status() == {"a": 1, "b": 2}


@pytest.mark.parametrize("status", [RuntimeError("broken"), None, 5, "text"])
def test_a_broken_status_harms_no_other(status: Any) -> None:
    assert HookChain([_Status({"a": 1}), _Status(status), _Status({"b": 2})]).status() == {"a": 1, "b": 2}
