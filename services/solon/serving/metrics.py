"""Prometheus metrics of one server: calls, their outcomes and costs, and the engine's state.

Of the engine only what ``Load`` tells is shown, at the moment of the scrape. No label holds what a
caller chooses, so that nobody can make a server remember without bounds. Knows nothing of gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from solon.engine.base import Engine, EngineError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""From a judgement by a small model to a chain of rounds by a large one."""


class Metrics:
    """What one server counts."""

    def __init__(self, engine: Engine) -> None:
        """``engine``: started before the first scrape, or shown as absent until then."""
        self.registry = CollectorRegistry()
        self._in_flight = Gauge(
            "solon_requests_in_flight",
            "Calls that are being answered.",
            ["method"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "solon_request_duration_seconds",
            "Time from a call's arrival to its end, by method and status code.",
            ["method", "code"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._failed = Counter(
            "solon_requests_failed",
            "Calls that were refused or failed, by the reason of their ErrorInfo.",
            ["method", "reason"],
            registry=self.registry,
        )
        self._replayed = Counter(
            "solon_requests_replayed",
            "Calls whose answer was known from the same request_id.",
            ["method"],
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "solon_queue_seconds",
            "Time that an answered call's work waited for the model.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "solon_tokens",
            "Tokens of answered calls; cached ones are prompt tokens that were not computed again.",
            ["method", "kind"],
            registry=self.registry,
        )
        self._cost = Counter(
            "solon_cost_usd",
            "What the model's host charges for answered calls, by the server's prices.",
            ["method"],
            registry=self.registry,
        )
        self.registry.register(_EngineCollector(engine))

    def of(self, method: str) -> MethodMetrics:
        """The part of one method, such as ``JudgeService/Compare``."""
        return MethodMetrics(
            in_flight=self._in_flight.labels(method),
            seconds=lambda code: self._seconds.labels(method, code),
            failed=lambda reason: self._failed.labels(method, reason),
            replayed=self._replayed.labels(method),
            queue_seconds=self._queue_seconds.labels(method),
            tokens=lambda kind: self._tokens.labels(method, kind),
            cost=self._cost.labels(method),
        )


class MethodMetrics:
    """What is counted of one method's calls. Looks a label up once, not with every call."""

    def __init__(
        self,
        *,
        in_flight: Gauge,
        seconds: Callable[[str], Histogram],
        failed: Callable[[str], Counter],
        replayed: Counter,
        queue_seconds: Histogram,
        tokens: Callable[[str], Counter],
        cost: Counter,
    ) -> None:
        """See ``Metrics``: ``seconds`` by code, ``failed`` by reason, ``tokens`` by kind."""
        self._in_flight = in_flight
        self._seconds = cache(seconds)
        self._failed = cache(failed)
        self._replayed = replayed
        self._queue_seconds = queue_seconds
        self._tokens = cache(tokens)
        self._cost = cost

    def began(self) -> None:
        """A call arrived."""
        self._in_flight.inc()

    def ended(self, code: str, reason: str | None, seconds: float) -> None:
        """A call ended.

        Args:
            code: The status code's name.
            reason: The ErrorInfo's reason, if it failed with one.
            seconds: Since it arrived.
        """
        self._in_flight.dec()
        self._seconds(code).observe(seconds)
        if reason is not None:
            self._failed(reason).inc()

    def replayed(self) -> None:
        """A call got an answer that was known."""
        self._replayed.inc()

    def spent(
        self, queue_seconds: float, *, prompt: int, cached: int, completion: int, cost_usd: float
    ) -> None:
        """A response said what it took: tokens, seconds that it waited, US dollars."""
        self._tokens("prompt").inc(prompt)
        self._tokens("cached").inc(cached)
        self._tokens("completion").inc(completion)
        self._queue_seconds.observe(queue_seconds)
        if cost_usd:
            self._cost.inc(cost_usd)


class _EngineCollector:
    """Reads the engine when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> list[Metric]:
        """Nothing: to be registered before the engine has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """See ``prometheus_client.registry.Collector``."""
        try:
            load, version = self._engine.load(), self._engine.weight_version
        except EngineError:  # one that loads or is closed has no state to show
            yield _gauge("solon_engine_up", "Whether the engine answers.", 0)
            return
        yield _gauge("solon_engine_up", "Whether the engine answers.", 1)
        yield _gauge("solon_queue_depth", "Sequences that wait for the model.", load.queued)
        yield _gauge("solon_queue_capacity", "Sequences that may wait.", load.queue_capacity)
        yield _gauge("solon_batch_size", "Sequences in the batch that runs.", load.running)
        yield _gauge("solon_paused", "Whether generation is paused.", int(load.paused))
        yield _counter("solon_batches", "Forward passes of the model.", load.batches)
        yield _counter(
            "solon_batched_sequences",
            "Sequences in all forward passes; its rate over that of batches is the mean size.",
            load.batched_sequences,
        )
        weights = GaugeMetricFamily(
            "solon_weights", "1, with the version of the weights in use.", labels=["version"]
        )
        weights.add_metric([version], 1)
        yield weights


class Scrapes:
    """Answers ``GET /metrics`` in a thread of its own, until closed."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listen; port 0 lets the system choose.

        Raises:
            OSError: The address cannot be bound.
        """
        self._server, self._thread = start_http_server(port, host, registry=metrics.registry)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Return when the thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)
