"""What the programs share that replay a change stream: what they are given, and what they say at their end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter, process_time
from typing import Any

from bson import json_util

given: dict[str, Any] = json_util.loads(sys.argv[1])


@contextmanager
def replayed() -> Iterator[tuple[list[int], Callable[[], None]]]:
    """Time what is done inside: it notes the number of each document, and calls ``begin()`` with the first.

    All must come, in their order. What it costs to import, connect and open is not counted: ``bench_cost.py`` does.
    """
    numbers: list[int] = []
    before = cpu = 0.0

    def begin() -> None:
        nonlocal before, cpu
        before, cpu = perf_counter(), process_time()

    yield numbers, begin
    seconds, cpu = perf_counter() - before, process_time() - cpu
    assert len(numbers) == given["count"], f"{len(numbers)} events instead of {given['count']}"
    assert numbers == list(range(given["count"])), "the events came in another order"
    print(json.dumps({"rate": len(numbers) / seconds, "cpu": cpu / len(numbers) * 1e6}))
