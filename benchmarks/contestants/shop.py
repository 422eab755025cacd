"""A small site: a page, and a handler that writes down what it is called with, eight bytes an event, in a file of its
process.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from flask import Flask

from rigatoni.contrib.flask import Rigatoni

app = Flask(__name__)
app.config.from_prefixed_env()
rigatoni = Rigatoni(app)
_files: dict[int, int] = {}


@rigatoni.on("insert", collection="orders")
def note(event: Any) -> None:
    """Write down which order it was."""
    pid = os.getpid()
    if pid not in _files:
        path = os.path.join(os.environ["NOTES"], str(pid))
        _files[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_files[pid], event.document_key["_id"].to_bytes(8, sys.byteorder, signed=True))


@app.get("/")
def index() -> dict[str, int]:
    """Answer with a few bytes."""
    return {"pid": os.getpid()}
