"""A knob: an option that says what it must be, checks it, and reads it from the text of an environment."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import Field, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from .errors import ConfigurationError

logger = logging.getLogger(__name__)

#: Stages from text may come from anywhere; these run JavaScript on the server.
_JAVASCRIPT = {"$function", "$accumulator", "$where"}


def number(value: object, low: float, high: float) -> float:
    # Comparing keeps out NaN and infinity, and whole numbers that no float can hold.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError
    return float(value)


SECONDS = partial(number, low=sys.float_info.min, high=sys.float_info.max)


def whole(value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def choice(value: object, choices: Sequence[str]) -> str | None:
    if value is not None and (not isinstance(value, str) or value not in choices):
        raise ValueError
    return value


def stages(value: object) -> tuple[Mapping[str, Any], ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ValueError
    return tuple(document(stage) for stage in value)


def document(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError
    return deepcopy(dict(value))


def collation(value: object) -> Mapping[str, Any] | None:
    # pymongo's Collation carries its document; asking for it needs no import of pymongo.
    return None if value is None else document(getattr(value, "document", value))


def token(value: object) -> Mapping[str, Any] | None:
    if value is None:
        return None
    token = document(value)
    if not isinstance(token.get("_data"), str):
        raise ValueError
    return token


def exceptions(value: object) -> object:
    kinds = value if isinstance(value, tuple) else (value,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
        raise ValueError
    return value


def knob(
    default: object,
    must: str,
    take: Callable[[Any], object],
    *,
    convert: Callable[[str], object] | None = None,
    called: str | None = None,
    **options: Any,
) -> Any:
    """Describe a field of a dataclass.

    :param default: ``dataclasses.MISSING`` for none.
    :param must: what it must be, in words.
    :param take: takes such a value in, or raises ValueError; or ConfigurationError, without the value in its message.
    :param convert: makes a value of text; default: by the type of the field.
    :param called: its name in a mapping; default: the field's.
    """
    return field(
        default=default, metadata={"must": must, "take": take, "convert": convert, "called": called}, **options
    )


def taken(
    name: str, knob: Mapping[str, Any], value: object, convert: Callable[[str], object] = str, *, shows: bool = False
) -> object:
    """Take a value in.

    :param shows: the message may hold the value, because it stands in the program.
    :raises ConfigurationError: when it can never work.
    """
    try:
        return knob["take"](convert(value) if isinstance(value, str) else value)
    except ConfigurationError as error:
        mistake = f"{name}: {error}"
    except (LookupError, TypeError, ValueError, RecursionError):
        mistake = f"{name} must be {knob['must']}" + (f", not {_shown(value)}" if shows else "")
    # Raised outside, because the text of these errors can hold the value.
    raise ConfigurationError(mistake)


def read(knobs: Iterable[Field[Any]], mapping: Mapping[str, Any], prefix: str, known: Iterable[str]) -> dict[str, Any]:
    """Read the values of knobs, by field, as far as they stand in a mapping; an empty text counts as not set.

    One WARNING lists the names with this prefix that are neither theirs nor `known`.

    :raises ConfigurationError: naming the key, never the value.
    """
    named = {key_of(knob, prefix): knob for knob in knobs}
    given = [key for key in mapping if isinstance(key, str) and key.startswith(prefix)]
    unknown = [repr(key) for key in given if not any(fnmatchcase(key, name) for name in (*named, *known))]
    if unknown:
        logger.warning("unknown settings are ignored, misspelt? %s", ", ".join(sorted(unknown)))
    values: dict[str, Any] = {}
    for key in given:
        if key in named and mapping[key] != "":
            knob = named[key]
            convert = knob.metadata["convert"] or _CONVERTERS.get(str(knob.type), _JSON)
            values[knob.name] = taken(key, knob.metadata, mapping[key], convert)
    return values


def key_of(knob: Field[Any], prefix: str) -> str:
    """Name a knob as mappings do."""
    return prefix + (knob.metadata["called"] or knob.name.upper())


def _shown(value: object) -> str:
    # Of an object its type, for its repr is anybody's.
    return repr(value) if isinstance(value, (str, int, float, list)) else type(value).__name__


def _without_javascript(document: dict[str, Any]) -> dict[str, Any]:
    if _JAVASCRIPT & document.keys():
        raise ValueError
    return document


_BOOLEANS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
_CONVERTERS: dict[str, Callable[[str], object]] = {
    "bool": lambda text: _BOOLEANS[text.strip().lower()],
    "int": int,
    "float": float,
    "str": str,
    "str | None": str,
}
_JSON = partial(json.loads, object_hook=_without_javascript)
