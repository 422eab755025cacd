"""What the stores write: canonical Extended JSON, which keeps every BSON type and which people and tools can read.

https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from bson import json_util
from bson.binary import UuidRepresentation
from bson.codec_options import DatetimeConversion
from bson.json_util import JSONMode, JSONOptions

_WRITE = JSONOptions(json_mode=JSONMode.CANONICAL, uuid_representation=UuidRepresentation.STANDARD)
# As a client with default codec options reads it; dates that datetime cannot hold come back as DatetimeMS.
_READ = JSONOptions(json_mode=JSONMode.CANONICAL, datetime_conversion=DatetimeConversion.DATETIME_AUTO)


def encode(value: Any) -> str:
    """Write a BSON value as text of ASCII characters only."""
    return json_util.dumps(value, json_options=_WRITE)


def decode(text: object) -> Any:
    """Read what :func:`encode` wrote.

    :raises ValueError: when the text is damaged; the message does not hold it, because a token holds ``_id`` values.
    """
    if not isinstance(text, str):
        raise ValueError(f"a {type(text).__name__} where text was written")
    try:
        return json_util.loads(text, json_options=_READ)
    # Each BSON type fails on damaged text with exceptions of its own, from binascii.Error to decimal.InvalidOperation.
    except Exception as error:
        raise ValueError(f"no Extended JSON ({type(error).__name__})") from None


def encode_event(event: Mapping[str, Any]) -> str:
    """Write a change event in a form that can surely be read again as a mapping.

    What has no Extended JSON (types of a client's own codec, documents that only look like Extended JSON) is written as
    its repr.
    """
    try:
        text = encode(event)
        if isinstance(decode(text), Mapping):
            return text
    # User code decides what codec options make of a document, so that any exception may come from here.
    except Exception:
        pass
    plain = _plain(event)
    return encode(plain if isinstance(plain, dict) else {"repr": plain})


def event_id(event: Mapping[str, Any], text: str) -> str:
    """Give what tells this event from all others: its ``_data``; without one (made by hand), a digest of `text`."""
    token = event.get("_id")
    data = token.get("_data") if isinstance(token, Mapping) else None
    return data if isinstance(data, str) else hashlib.sha256(text.encode()).hexdigest()


def encode_status(status: Mapping[str, Any]) -> str:
    """Write a status row as plain JSON; a value that JSON does not know, or cannot hold, is written as its text."""
    try:
        return _json(status)
    # What hooks put into it is user code: circular, too deep, or a mapping that raises.
    except Exception:
        return _json({key: value if _has_json(value) else _shown(value) for key, value in status.items()})


def readable(text: str) -> str:
    """Give text that SQLite can keep: characters that have no UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _json(value: object) -> str:
    return json.dumps(
        value, default=lambda other: dict(other) if isinstance(other, Mapping) else _shown(other), skipkeys=True
    )


def _has_json(value: object) -> bool:
    try:
        return bool(_json(value))
    except Exception:
        return False


def _plain(value: Any) -> Any:
    try:
        plain = value
        if isinstance(value, Mapping):
            plain = {key if isinstance(key, str) else _shown(key): _plain(item) for key, item in value.items()}
        elif isinstance(value, (list, tuple)):
            plain = [_plain(item) for item in value]
        if type(decode(encode(plain))) is dict or not isinstance(plain, dict):
            return plain
    except Exception:
        pass
    return _shown(value)


def _shown(value: object) -> str:
    try:
        return repr(value)
    # The repr of a type of the user's own is user code too.
    except Exception:
        return f"<{type(value).__name__}>"
