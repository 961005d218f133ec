"""A tiny service on real gRPC servers, with messages that protobuf itself brings."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.metrics import Metrics
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service
from loremesh_agents.runtime.tracing import NO_TRACING, Tracing

AGENT = "tester"
SERVICE = "test.v1.TestService"
CODEC = {"request_serializer": StringValue.SerializeToString, "response_deserializer": StringValue.FromString}
_HANDLER = {"request_deserializer": StringValue.FromString, "response_serializer": StringValue.SerializeToString}


def text(value: str = "") -> StringValue:
    return StringValue(value=value)


def service(
    *,
    unary: Callable[..., Any] | None = None,
    stream: Callable[..., Any] | None = None,
    upload: Callable[..., Any] | None = None,
    duplex: Callable[..., Any] | None = None,
    name: str = SERVICE,
) -> Service:
    """A service with a method of each shape for which there is a behaviour: Unary, Stream, Upload, Duplex."""
    handlers = {}
    if unary is not None:
        handlers["Unary"] = grpc.unary_unary_rpc_method_handler(unary, **_HANDLER)
    if stream is not None:
        handlers["Stream"] = grpc.unary_stream_rpc_method_handler(stream, **_HANDLER)
    if upload is not None:
        handlers["Upload"] = grpc.stream_unary_rpc_method_handler(upload, **_HANDLER)
    if duplex is not None:
        handlers["Duplex"] = grpc.stream_stream_rpc_method_handler(duplex, **_HANDLER)

    def register(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))

    return Service(name, register, (StringValue,))


class Stub:
    """What generated code would give for the service."""

    def __init__(self, channel: grpc.aio.Channel, name: str = SERVICE) -> None:
        self.Unary = channel.unary_unary(f"/{name}/Unary", **CODEC)
        self.Stream = channel.unary_stream(f"/{name}/Stream", **CODEC)
        self.Upload = channel.stream_unary(f"/{name}/Upload", **CODEC)
        self.Duplex = channel.stream_stream(f"/{name}/Duplex", **CODEC)
        self.Missing = channel.unary_unary(f"/{name}/Missing", **CODEC)


@dataclass
class Running:
    server: AgentServer
    channel: grpc.aio.Channel
    stub: Stub
    metrics: Metrics

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def in_flight(self, method: str) -> float:
        return self.sample("loremesh_requests_in_flight", agent=AGENT, method=f"{SERVICE}/{method}")

    async def settled(self) -> None:
        """Waits until the server has done with all calls: a client may have its status before they are counted."""
        await until(
            lambda: (
                not any(
                    sample.value
                    for family in self.metrics.registry.collect()
                    for sample in family.samples
                    if sample.name == "loremesh_requests_in_flight"
                )
            )
        )

    def count(self, method: str, code: str) -> float:
        return self.sample("loremesh_requests_total", agent=AGENT, method=f"{SERVICE}/{method}", code=code)


@asynccontextmanager
async def serving(
    served: Service, options: ServerOptions | None = None, *, tracing: Tracing = NO_TRACING, **more: Any
) -> AsyncIterator[Running]:
    """The service on a free port, and a channel to it."""
    metrics = Metrics()
    server = AgentServer(
        AGENT, [served], options or ServerOptions(), metrics=metrics.for_agent(AGENT), tracing=tracing, **more
    )
    await server.start()
    channel = grpc.aio.insecure_channel(server.target)
    try:
        yield Running(server, channel, Stub(channel, served.name), metrics)
    finally:
        await channel.close()
        await server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that happens without our doing; the test's timeout is the limit."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def soon(seconds: float = 10.0) -> Deadline:
    return Deadline.after(seconds)


async def echo(request: StringValue, _: Any) -> StringValue:
    return request


async def echo_all(requests: AsyncIterator[StringValue], _: Any) -> AsyncIterator[StringValue]:
    async for request in requests:
        yield request


async def collect(messages: AsyncIterator[StringValue]) -> list[str]:
    return [message.value async for message in messages]


async def trailing(call: Any) -> dict[str, Any]:
    return dict(await call.trailing_metadata())
