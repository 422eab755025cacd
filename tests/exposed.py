"""Metrics as Prometheus sees them: real text, read by the parser of ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from rigatoni.contrib.prometheus import exposition

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Exposed:
    """The samples of a text.

    :ivar families: the type of each metric, by name.
    """

    def __init__(self, text: bytes, content_type: str = "text/plain") -> None:
        read = read_openmetrics if content_type.startswith("application/openmetrics-text") else read_text
        found = list(read(text.decode()))
        self.families = {family.name: family.type for family in found}
        self.samples = [sample for family in found for sample in family.samples]

    def values(self, name: str, **labels: str) -> list[float]:
        """Give the values of a metric whose labels agree with these."""
        return [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        """Give the value of what must be one sample."""
        (value,) = self.values(name, **labels)
        return value

    def labels(self, name: str) -> list[Mapping[str, str]]:
        return [each.labels for each in self.samples if each.name == name]


def exposed(watcher: Any, now: float | None = None, accept: str = "") -> Exposed:
    """Read the row of a watcher and give its metrics."""
    return Exposed(*exposition(watcher.name, watcher.store.status(watcher.name), accept, now))
