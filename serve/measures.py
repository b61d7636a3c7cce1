"""What this replica counts of itself, for ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Histogram

if TYPE_CHECKING:
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
