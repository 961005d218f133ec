import asyncio
import gc

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, CollectionNotFound, InternalError
from loremesh_agents.runtime.channel import Peer
from loremesh_agents.runtime.context import QUERY_ID_KEY, RequestContext, activate, current
from loremesh_agents.runtime.otel import OpenTelemetry

from .support import SERVICE, collect, echo, service, serving, soon, text, until


class Traced:
    """Tracing of a client and a server, and the spans that have ended."""

    def __init__(self):
        self.exporter = InMemorySpanExporter()
        self.telemetry = OpenTelemetry(SimpleSpanProcessor(self.exporter))
        self.server = self.telemetry.for_agent("tester")
        self.client = self.telemetry.for_agent("caller")
        self.peer = Peer("tester", tracing=self.client)

    def ended(self, kind):
        return [span for span in self.exporter.get_finished_spans() if span.kind is kind]

    async def one(self, kind):
        await until(lambda: self.ended(kind))
        (span,) = self.ended(kind)
        return span


@pytest.fixture
def traced():
    return Traced()


def code(span):
    return span.attributes["rpc.grpc.status_code"]


async def forever(*_):
    yield text("first")
    await asyncio.Event().wait()


async def test_ok(traced):
    async with serving(service(unary=echo), tracing=traced.server) as running:
        with activate(RequestContext(query_id="q1")):
            await traced.peer.unary(running.stub.Unary, text(), soon())
    server, client = await traced.one(SpanKind.SERVER), await traced.one(SpanKind.CLIENT)
    assert server.parent.span_id == client.context.span_id
    assert server.context.trace_id == client.context.trace_id
    assert server.resource.attributes["service.name"] == "loremesh-tester"
    assert client.resource.attributes["service.name"] == "loremesh-caller"
    for span in (server, client):
        assert span.name == f"{SERVICE}/Unary"
        assert span.attributes["rpc.service"] == SERVICE
        assert span.attributes["rpc.method"] == "Unary"
        assert span.attributes["loremesh.query_id"] == "q1"
        assert code(span) == 0
        assert span.status.status_code is StatusCode.UNSET


async def test_a_span_covers_the_whole_stream_and_is_the_parent_of_what_happens_in_it(traced):
    inner = traced.server

    async def stream(request, _):
        yield text("first")
        yield await Peer("second", tracing=inner).unary(second.stub.Unary, request, current().deadline)

    async with (
        serving(service(unary=echo), tracing=traced.server) as second,
        serving(service(stream=stream), tracing=traced.server) as first,
    ):
        async with traced.peer.stream(first.stub.Stream, text(), soon()) as messages:
            await anext(messages)
            assert traced.ended(SpanKind.SERVER) == []
            assert len([message async for message in messages]) == 1
        await until(lambda: len(traced.exporter.get_finished_spans()) == 4)
    spans = {span.context.span_id: span for span in traced.exporter.get_finished_spans()}
    assert len({span.context.trace_id for span in spans.values()}) == 1
    (last,) = [span for span in traced.ended(SpanKind.SERVER) if span.name.endswith("Unary")]
    chain = []
    while last is not None:
        chain.append((last.kind, last.name.rpartition("/")[2]))
        last = spans[last.parent.span_id] if last.parent else None
    assert chain == [
        (SpanKind.SERVER, "Unary"),
        (SpanKind.CLIENT, "Unary"),
        (SpanKind.SERVER, "Stream"),
        (SpanKind.CLIENT, "Stream"),
    ]


async def test_an_error_of_the_callers_making(traced):
    async def unary(*_):
        raise CollectionNotFound("docs")

    async with serving(service(unary=unary), tracing=traced.server) as running:
        with pytest.raises(CollectionNotFound):
            await traced.peer.unary(running.stub.Unary, text(), soon())
    server, client = await traced.one(SpanKind.SERVER), await traced.one(SpanKind.CLIENT)
    assert (code(server), code(client)) == (5, 5)
    assert server.attributes["loremesh.error_reason"] == "COLLECTION_NOT_FOUND"
    assert server.status.status_code is StatusCode.UNSET
    assert client.status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("shape", ["unary", "stream"])
async def test_an_exception(traced, shape):
    async def unary(*_):
        raise ValueError("hunter2")

    async def stream(*_):
        yield text("first")
        raise ValueError("hunter2")

    async with serving(service(unary=unary, stream=stream), tracing=traced.server) as running:
        with pytest.raises(InternalError):
            await (
                traced.peer.unary(running.stub.Unary, text(), soon())
                if shape == "unary"
                else collect(traced.peer.stream(running.stub.Stream, text(), soon()))
            )
    server, client = await traced.one(SpanKind.SERVER), await traced.one(SpanKind.CLIENT)
    assert (code(server), code(client)) == (13, 13)
    assert server.status.status_code is client.status.status_code is StatusCode.ERROR
    assert "hunter2" not in server.to_json()


async def test_a_cancel_in_mid_stream(traced):
    async with serving(service(stream=forever), tracing=traced.server) as running:
        call = running.stub.Stream(text(), metadata=((QUERY_ID_KEY, "q1"),))
        await anext(aiter(call))
        call.cancel()
        server = await traced.one(SpanKind.SERVER)
    assert code(server) == 1
    assert server.attributes["loremesh.query_id"] == "q1"


async def test_a_deadline_in_mid_stream(traced):
    async with serving(service(stream=forever), tracing=traced.server) as running:
        with pytest.raises(BudgetExhausted):
            await collect(traced.peer.stream(running.stub.Stream, text(), Deadline.after(0.2)))
        server, client = await traced.one(SpanKind.SERVER), await traced.one(SpanKind.CLIENT)
    assert (code(server), code(client)) == (4, 4)
    assert server.status.status_code is client.status.status_code is StatusCode.ERROR


async def test_a_client_that_breaks_out_ends_its_span(traced):
    async with serving(service(stream=forever), tracing=traced.server) as running:
        async for _ in traced.peer.stream(running.stub.Stream, text(), soon()):
            break
        gc.collect()
        server, client = await traced.one(SpanKind.SERVER), await traced.one(SpanKind.CLIENT)
    assert (code(server), code(client)) == (1, 1)


async def test_a_task_that_is_cancelled_ends_its_span(traced):
    async def unary(*_):
        await asyncio.Event().wait()

    async with serving(service(unary=unary), tracing=traced.server) as running:
        task = asyncio.create_task(traced.peer.unary(running.stub.Unary, text(), soon()))
        await until(lambda: running.server.in_flight == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server, client = await traced.one(SpanKind.SERVER), await traced.one(SpanKind.CLIENT)
    assert (code(server), code(client)) == (1, 1)


async def test_health_checks_leave_no_spans(traced):
    async with serving(service(unary=echo), tracing=traced.server) as running:
        await running.channel.unary_unary("/grpc.health.v1.Health/Check")(b"")
    assert traced.exporter.get_finished_spans() == ()


async def test_a_damaged_trace_parent_begins_a_new_trace(traced):
    async with serving(service(unary=echo), tracing=traced.server) as running:
        await running.stub.Unary(text(), metadata=(("traceparent", "nonsense"),))
    assert (await traced.one(SpanKind.SERVER)).parent is None


async def test_what_is_not_sampled_is_not_recorded():
    exporter = InMemorySpanExporter()
    telemetry = OpenTelemetry(SimpleSpanProcessor(exporter), sample_ratio=0.0)
    async with serving(service(unary=echo), tracing=telemetry.for_agent("tester")) as running:
        await running.stub.Unary(text())
    assert exporter.get_finished_spans() == ()


async def test_closing_sends_what_is_left():
    received = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def export(request, _):
        loop.call_soon(received.put_nowait, request)
        return b""

    handler = grpc.method_handlers_generic_handler(
        "opentelemetry.proto.collector.trace.v1.TraceService", {"Export": grpc.unary_unary_rpc_method_handler(export)}
    )
    collector = grpc.aio.server()
    collector.add_generic_rpc_handlers((handler,))
    port = collector.add_insecure_port("127.0.0.1:0")
    await collector.start()
    try:
        async with (
            OpenTelemetry.to_endpoint(f"http://127.0.0.1:{port}") as telemetry,
            serving(service(unary=echo), tracing=telemetry.for_agent("tester")) as running,
        ):
            await running.stub.Unary(text())
        assert b"loremesh-tester" in await asyncio.wait_for(received.get(), 10)
    finally:
        await collector.stop(0)
