"""The stages of a change stream that the fake server can evaluate: ``$match``, ``$project`` of fields, ``$unset``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .match import compiled, refusal

Event = Mapping[str, Any]
Stage = Callable[[Event], Event | None]

#: What the guard against events over 16 MB sets. No event of a fake server is too large for it, so that it has nothing
#: to do here.
_GUARD = "rigatoni:truncated"


def stages(pipeline: Sequence[Any]) -> list[Stage]:
    """Compile what follows ``$changeStream``; a stage gives None for an event that it does not let through.

    :raises ConfigurationError: for a stage that cannot be evaluated here: nothing is ignored.
    """
    return [_stage(stage) for stage in pipeline]


def _stage(stage: Any) -> Stage:
    if not isinstance(stage, Mapping) or len(stage) != 1:
        raise refusal(f"the stage {stage!r:.60}")
    ((name, said),) = stage.items()
    if name == "$match":
        predicate = compiled(said)
        return lambda event: event if predicate(event) else None
    if name == "$unset":
        return _without([said] if isinstance(said, str) else said)
    if name == "$project" and isinstance(said, Mapping):
        return _project(said)
    if name == "$set" and isinstance(said, Mapping) and _GUARD in said:
        return lambda event: event
    raise refusal(f"the stage {name}")


def _project(said: Mapping[str, Any]) -> Stage:
    for path, value in said.items():
        if not isinstance(value, (bool, int, float)):
            raise refusal(f"$project with an expression for {path!r}")
    kept = [path for path, value in said.items() if value]
    left_out = [path for path, value in said.items() if not value]
    if not kept or kept == ["_id"] and left_out:
        return _without(left_out)
    if set(left_out) - {"_id"}:
        raise refusal("$project that both keeps fields and leaves some out")
    paths = [path.split(".") for path in kept if path != "_id"] + ([] if left_out else [["_id"]])
    return lambda event: _kept(event, paths)


def _without(paths: Sequence[str]) -> Stage:
    parts = [path.split(".") for path in paths]
    return lambda event: _removed(event, parts)


def _kept(value: Any, paths: list[list[str]]) -> Any:
    if isinstance(value, list):
        return [_kept(each, paths) for each in value if isinstance(each, (Mapping, list))]
    if [] in paths or not isinstance(value, Mapping):
        return value
    return {
        name: _kept(inner, rest)
        for name, inner in value.items()
        if (rest := _below(paths, name)) and ([] in rest or isinstance(inner, (Mapping, list)))
    }


def _removed(value: Any, paths: list[list[str]]) -> Any:
    if isinstance(value, list):
        return [_removed(each, paths) for each in value]
    if not isinstance(value, Mapping):
        return value
    return {name: _removed(inner, _below(paths, name)) for name, inner in value.items() if [name] not in paths}


def _below(paths: list[list[str]], name: str) -> list[list[str]]:
    return [path[1:] for path in paths if path[:1] == [name]]
