"""What is counted: Prometheus's text for machines, and a summary for the status page."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

# Requests that the status page's percentiles are of.
_RECENT = 1000


class Metrics:
    """Of one server; all of its methods are called by one thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        prefix = "sparseinfer_"
        self._requests = Counter(
            f"{prefix}requests", "Answered requests", ("path", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            f"{prefix}request_seconds",
            "From a request's first byte to the last of its answer",
            ("path",),
            registry=self._registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
        )
        self._tokens = Counter(f"{prefix}tokens", "Tokens of texts", ("kind",), registry=self._registry)
        self._gauges: dict[str, Gauge] = {}
        self._reloads = Counter(
            f"{prefix}reloads", "Exchanges of the model", ("result",), registry=self._registry
        )
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._count = 0
        self._started = time.time()

    def answered(self, path: str, status: int, seconds: float) -> None:
        """path: a path of the server, or "other"."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)
        if path.startswith("/v1/") and path != "/v1/models":
            self._count += 1
            self._recent.append(seconds)

    def tokens(self, kind: str, count: int) -> None:
        self._tokens.labels(kind).inc(count)

    def reloaded(self, result: str) -> None:
        self._reloads.labels(result).inc()

    def set(self, values: Mapping[str, tuple[float, str]]) -> None:
        """Gauges: name -> value and what it is."""
        for name, (value, help) in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"sparseinfer_{name}", help, registry=self._registry)
            self._gauges[name].set(value)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def summary(self) -> dict[str, float | None]:
        """Requests since the start, and milliseconds that the last 1000 took; None: there was none."""
        ordered = sorted(self._recent)
        return {
            "requests": self._count,
            "p50_ms": _percentile(ordered, 0.50),
            "p99_ms": _percentile(ordered, 0.99),
            "uptime_s": time.time() - self._started,
        }


def _percentile(ordered: list[float], share: float) -> float | None:
    """The nearest rank."""
    return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None
