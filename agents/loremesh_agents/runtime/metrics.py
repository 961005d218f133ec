"""Prometheus metrics of the agents in a process, and the port that shows them."""

import asyncio
import re
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from types import TracebackType
from typing import Self

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime.call import Method, ServerCall

_AGENT = re.compile(r"[a-z][a-z0-9_]*")
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STREAM = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0)


class Metrics:
    """The metrics of one process. Agents that share the process share it; labels tell them apart.

    Attributes:
        registry: Where the metrics are collected; another part of the process may add its own.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common = ("agent", "method")
        self.requests = Counter(
            "loremesh_requests", "Calls that have ended.", (*common, "code"), registry=self.registry
        )
        self.in_flight = Gauge(
            "loremesh_requests_in_flight",
            "Calls being served.",
            common,
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self.latency = Histogram(
            "loremesh_request_latency_seconds",
            "Duration of calls that have ended, streams included.",
            common,
            registry=self.registry,
            buckets=_LATENCY,
        )
        self.first_event = Histogram(
            "loremesh_first_event_seconds",
            "Time until the first message of a response stream.",
            common,
            registry=self.registry,
            buckets=_LATENCY,
        )
        self.stream_duration = Histogram(
            "loremesh_stream_duration_seconds",
            "Duration of streams that have ended.",
            common,
            registry=self.registry,
            buckets=_STREAM,
        )
        self.sent = Counter(
            "loremesh_messages_sent", "Messages sent by calls that have ended.", common, registry=self.registry
        )
        self.received = Counter(
            "loremesh_messages_received", "Messages received by calls that have ended.", common, registry=self.registry
        )
        self.dependency_up = Gauge(
            "loremesh_dependency_up",
            "Whether a dependency answers (1) or not (0).",
            ("agent", "dependency"),
            registry=self.registry,
            multiprocess_mode="livemin",
        )

    def for_agent(self, agent: str) -> "AgentMetrics":
        """The metrics of one agent; once for each agent of the process."""
        if not _AGENT.fullmatch(agent):
            raise ValueError(f"an agent's name must match {_AGENT.pattern}, not {agent!r}")
        return AgentMetrics(self, agent)


@dataclass(frozen=True, slots=True)
class _MethodMetrics:
    """The metrics of one method with their labels filled in: looking them up costs more than counting."""

    in_flight: Gauge
    latency: Histogram
    agent_latency: Histogram
    first_event: Histogram | None
    stream_duration: Histogram | None
    sent: Counter
    received: Counter


class AgentMetrics:
    """The metrics of one agent's calls."""

    def __init__(self, metrics: Metrics, agent: str) -> None:
        self._metrics = metrics
        self._agent = agent
        self._latency = Histogram(
            f"{agent}_request_latency_seconds",
            f"Duration of calls of the {agent} agent, streams included.",
            ("method",),
            registry=metrics.registry,
            buckets=_LATENCY,
        )
        self._errors = Counter(
            f"{agent}_errors",
            f"Calls of the {agent} agent that have ended with an error.",
            ("method", "code"),
            registry=metrics.registry,
        )
        self._methods: dict[str, _MethodMetrics] = {}

    def dependency(self, name: str, *, up: bool) -> None:
        """Notes whether a dependency answers."""
        self._metrics.dependency_up.labels(self._agent, name).set(up)

    @contextmanager
    def observe(self, call: ServerCall) -> Generator[None]:
        """Measures a call from here to the end of the block, by which its final status must be known."""
        name = call.method.full_name
        metrics = self._methods.get(name)
        if metrics is None:
            metrics = self._methods[name] = self._for_method(call.method)
        metrics.in_flight.inc()
        try:
            yield
        finally:
            metrics.in_flight.dec()
            self._record(call, metrics)

    def _record(self, call: ServerCall, metrics: _MethodMetrics) -> None:
        seconds = time.monotonic() - call.started
        metrics.latency.observe(seconds)
        metrics.agent_latency.observe(seconds)
        metrics.sent.inc(call.sent)
        metrics.received.inc(call.received)
        if metrics.stream_duration is not None:
            metrics.stream_duration.observe(seconds)
        if metrics.first_event is not None and call.first_sent:
            metrics.first_event.observe(call.first_sent - call.started)
        code = call.final_code
        self._metrics.requests.labels(self._agent, call.method.full_name, code.name).inc()
        if code is not grpc.StatusCode.OK:
            self._errors.labels(call.method.full_name, code.name).inc()

    def _for_method(self, method: Method) -> _MethodMetrics:
        labels = (self._agent, method.full_name)
        metrics = self._metrics
        return _MethodMetrics(
            in_flight=metrics.in_flight.labels(*labels),
            latency=metrics.latency.labels(*labels),
            agent_latency=self._latency.labels(method.full_name),
            first_event=metrics.first_event.labels(*labels) if method.response_streaming else None,
            stream_duration=metrics.stream_duration.labels(*labels) if method.streaming else None,
            sent=metrics.sent.labels(*labels),
            received=metrics.received.labels(*labels),
        )


class MetricsServer:
    """Shows a registry at `/metrics` of an HTTP port of its own, from threads: the event loop never waits for it."""

    def __init__(self, registry: CollectorRegistry, host: str = "127.0.0.1", port: int = 0) -> None:
        """Opens the port.

        Args:
            registry: What to show.
            host: Address to listen on.
            port: Port to listen on, 0 for any free one.

        Raises:
            ConfigurationError: The port cannot be opened.
        """
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigurationError(f"metrics cannot be served on {host}:{port}: {error}") from error
        self._server = server
        self._thread: Thread = thread
        self.host = host
        self.port = server.server_port

    async def close(self) -> None:
        """Closes the port."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
