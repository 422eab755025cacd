"""Metrics for Prometheus, read from the status row, so that every process that sees the store gives the same ones.

:class:`PrometheusHooks` counts in the process that is active and puts its numbers into the row;
:class:`StatusCollector` and :func:`exposition` make metrics of rows, wherever they are read. What is in a row anyway
(lag, headroom, retries, …) needs no hooks. https://prometheus.io/docs/concepts/metric_types/
"""

from .collector import StatusCollector, exposition
from .hooks import PrometheusHooks

__all__ = ["PrometheusHooks", "StatusCollector", "exposition"]
