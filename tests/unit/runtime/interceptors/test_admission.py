import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loremesh_agents.domain.errors import Draining, Overloaded
from loremesh_agents.runtime.errors import from_rpc_error
from loremesh_agents.runtime.server import ServerOptions

from ..support import AGENT, SERVICE, service, serving, text, until


async def test_a_full_agent_refuses_at_once_and_says_when_to_come_back():
    gate = asyncio.Event()

    async def unary(request, _):
        await gate.wait()
        return request

    options = ServerOptions(max_in_flight=2, overload_retry_after=0.5)
    async with serving(service(unary=unary), options) as running:
        calls = [running.stub.Unary(text()) for _ in range(2)]
        await until(lambda: running.server.in_flight == 2)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Unary(text())
        error = from_rpc_error(refused.value, AGENT)
        assert isinstance(error, Overloaded)
        assert error.retry_after == 0.5
        assert error.metadata == {"agent": AGENT, "limit": "2"}
        # Whoever asks for the health of a full agent gets an answer.
        health = health_pb2_grpc.HealthStub(running.channel)
        status = (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))).status
        assert status == health_pb2.HealthCheckResponse.SERVING
        gate.set()
        await asyncio.gather(*calls)
        await running.stub.Unary(text())
        await running.settled()
        assert running.server.in_flight == 0


async def test_a_cancelled_call_gives_its_place_back():
    async def stream(*_):
        yield text()
        await asyncio.Event().wait()

    async with serving(service(stream=stream), ServerOptions(max_in_flight=1)) as running:
        for _ in range(5):
            call = running.stub.Stream(text())
            await anext(aiter(call))
            assert running.server.in_flight == 1
            call.cancel()
            await until(lambda: running.server.in_flight == 0)


async def test_a_draining_agent_takes_no_new_calls():
    async def unary(request, _):
        return request

    async with serving(service(unary=unary)) as running:
        running.server._admission.drain()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Unary(text())
    assert isinstance(from_rpc_error(refused.value, AGENT), Draining)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_caller_that_never_sends_its_request_counts_and_runs_into_its_deadline():
    async def unary(request, _):
        return request

    async with serving(service(unary=unary), ServerOptions(max_in_flight=1)) as running:
        call = running.channel.stream_unary(f"/{SERVICE}/Unary")(timeout=0.2)
        await until(lambda: running.server.in_flight == 1)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.server.in_flight == 0)
