"""Visitors of a web site: so many requests a second, at even times, until the standard input ends.

A request counts from the moment when it was due, so that a server that stands still for a moment is not asked less.
"""

from __future__ import annotations

import json
import sys
from http.client import HTTPConnection, HTTPException
from time import monotonic
from typing import Any

import gevent
from gevent.fileobject import FileObject
from gevent.pool import Pool


def main(given: dict[str, Any]) -> None:
    """Say when the first request is answered; at the end what all took, in milliseconds, and how many were not."""
    took: list[float] = []
    failed = 0

    def ask(due: float) -> None:
        nonlocal failed
        connection = HTTPConnection("127.0.0.1", given["port"], timeout=30)
        try:
            connection.request("GET", "/")
            connection.getresponse().read()
            took.append((monotonic() - due) * 1000)
            if len(took) == 1:
                print("answered", flush=True)
        except (OSError, HTTPException):
            failed += 1
        finally:
            connection.close()

    end = gevent.spawn(FileObject(sys.stdin.buffer).read)
    pool, due, began = Pool(), monotonic(), monotonic()
    while not end.dead and failed < 100 + len(took):
        due += 1 / given["rate"]
        gevent.sleep(max(0.0, due - monotonic()))
        pool.spawn(ask, due)
    seconds = monotonic() - began
    pool.join()
    took.sort()
    quantiles = {f"p{share}": took[int(len(took) * share / 100)] for share in (50, 99)}
    print(json.dumps({**quantiles, "requests": len(took) / seconds, "failed": failed}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
