"""OpenTelemetry spans around calls, on both sides. Imported only when an endpoint is configured.

The spans are made here and not by opentelemetry-instrumentation-grpc. Its wrappers of streams are async generators: on
the server one that is cancelled while gRPC writes is left suspended, with its span and all that runs inside it, until
the garbage collector comes; on the client one whose consumer leaves never ends its span. And it knows the final status
only of calls that end by `context.abort`. With OpenTelemetry's own API all of that is right by construction.
"""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import grpc
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_NAMESPACE, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.context import Metadata, current_or_none
from loremesh_agents.runtime.tracing import ClientSpan, Tracing

_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that make a server's span an error by OpenTelemetry's conventions; the others are the caller's doing."""


class OpenTelemetry:
    """The way out for the spans of a process: one queue and one connection, however many agents it has."""

    def __init__(self, processor: SpanProcessor, *, sample_ratio: float = 1.0) -> None:
        """Sets up tracing.

        Args:
            processor: Takes the spans that have ended.
            sample_ratio: Share of the traces that begin here which is recorded; what began elsewhere follows its
                parent.
        """
        self._processor = processor
        self._sample_ratio = sample_ratio

    @classmethod
    def to_endpoint(cls, endpoint: str, *, sample_ratio: float = 1.0) -> Self:
        """Sends spans by OTLP over gRPC, in batches, from a thread.

        Args:
            endpoint: URL of a collector: `http://host:4317`, or `https://` for TLS.
            sample_ratio: As for the constructor.
        """
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
        return cls(BatchSpanProcessor(exporter), sample_ratio=sample_ratio)

    def for_agent(self, agent: str) -> Tracing:
        """The tracing of one agent, which its spans name as their service, `loremesh-<agent>`."""
        provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: f"loremesh-{agent}", SERVICE_NAMESPACE: "loremesh"}),
            sampler=ParentBased(TraceIdRatioBased(self._sample_ratio)),
            shutdown_on_exit=False,
        )
        provider.add_span_processor(self._processor)
        return _AgentTracing(provider)

    async def close(self) -> None:
        """Sends what is left and ends."""
        await asyncio.to_thread(self._processor.shutdown)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _AgentTracing:
    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("loremesh")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def server_span(self, call: ServerCall) -> Generator[None]:
        method = call.method
        carrier = {key: value for key, value in call.metadata.items() if isinstance(value, str)}
        # The block ends only when the call has, so that nothing but its final code has to be looked at; exceptions are
        # recorded in the log, under an incident id, and may hold what must not leave the process.
        with self._tracer.start_as_current_span(
            method.full_name,
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_attributes(method.service, method.name),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                context = call.request_context
                span.set_attributes({"loremesh.query_id": context.query_id, "loremesh.agent": context.agent})
                if call.reason:
                    span.set_attribute("loremesh.error_reason", call.reason)
                _set_code(span, call.final_code, is_error=call.final_code in _FAULTS)

    def client_span(self, peer: str, method: str) -> ClientSpan:
        service, _, name = method.rpartition("/")
        span = self._tracer.start_span(method, kind=SpanKind.CLIENT, attributes=_attributes(service, name))
        context = current_or_none()
        if context is not None:
            span.set_attribute("loremesh.query_id", context.query_id)
        span.set_attribute("loremesh.peer", peer)
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return _AgentClientSpan(span, tuple(carrier.items()))


class _AgentClientSpan:
    def __init__(self, span: Span, metadata: Metadata) -> None:
        self._span = span
        self._finished = False
        self.metadata = metadata

    def finish(self, code: grpc.StatusCode) -> None:
        if not self._finished:
            self._finished = True
            _set_code(self._span, code, is_error=code is not grpc.StatusCode.OK)
            self._span.end()


def _attributes(service: str, method: str) -> dict[str, str]:
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


def _set_code(span: Span, code: grpc.StatusCode, *, is_error: bool) -> None:

    number: int = code.value[0]
    span.set_attribute("rpc.grpc.status_code", number)
    if is_error:
        span.set_status(Status(StatusCode.ERROR, code.name))
