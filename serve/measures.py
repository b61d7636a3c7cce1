"""What this replica counts of itself, for ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from rayloom.db.metrics import Totals
    from rayloom.db.read_split import ReadSplit
    from rayloom.serve.gate import Admission

_BUCKETS_S: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Measures:
    """Counts since this replica started."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admission: Admission | None = None
        self._requests = Histogram(
            "rayloom_http_request_duration_seconds",
            "Time to the end of the answer, of requests that are not streams.",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=_BUCKETS_S,
        )
        self._streams = Histogram(
            "rayloom_http_stream_duration_seconds",
            "How long event streams stayed open.",
            ("route",),
            registry=self.registry,
            buckets=(1.0, 10.0, 60.0, 600.0, 3600.0),
        )

    def observe(self, method: str, route: str, status: int, seconds: float, is_stream: bool) -> None:
        """Count one request that has ended."""
        if is_stream:
            self._streams.labels(route).observe(seconds)
        else:
            known = method if method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} else "other"
            self._requests.labels(known, route, str(status)).observe(seconds)


class ReadCounts(Collector):
    """Where reads that may go to the replica went, and how the replica is."""

    def __init__(self, reads: ReadSplit) -> None:
        self._reads = reads

    def collect(self) -> Iterator[Metric]:
        """One look."""
        reads = CounterMetricFamily(
            "rayloom_reads",
            "Reads of lists, logs, traces and reports, by what answered them; the reason says why the primary did.",
            labels=("source", "reason"),
        )
        for (source, reason), count in sorted(self._reads.counts.items()):
            reads.add_metric((source, reason), count)
        yield reads
        state = self._reads.state
        if state is None:
            return
        yield GaugeMetricFamily("rayloom_replica_used", "1 while the replica is read from.", state.fault is None)
        if state.lag_s is not None:
            yield GaugeMetricFamily("rayloom_replica_lag_seconds", "How late the replica is.", state.lag_s)
        if state.lag_bytes is not None:
            yield GaugeMetricFamily("rayloom_replica_lag_bytes", "WAL that is not replayed yet.", state.lag_bytes)


class TotalCounts(Collector):
    """Export the totals that PostgreSQL counts."""

    def __init__(self, totals: Totals) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """One look."""
        yield CounterMetricFamily("rayloom_tasks_submitted", "Tasks that came in.", self._totals.tasks)
        yield CounterMetricFamily("rayloom_attempts_recorded", "Attempts that ended.", self._totals.attempts)
