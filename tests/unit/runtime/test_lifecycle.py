import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loremesh_agents.domain.errors import ConfigurationError, Draining
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.errors import from_rpc_error
from loremesh_agents.runtime.lifecycle import DrainOptions, StopSignals, run
from loremesh_agents.runtime.server import AgentServer, ServerOptions

from .support import SERVICE, Stub, echo, service, soon, text, until


class Process:
    """Servers run as a process would run them."""

    def __init__(self, servers, drain=None, resources=None):
        self.signals = StopSignals()
        self.ready = asyncio.Event()
        self.servers = servers
        self.running = asyncio.create_task(
            run(
                servers,
                resources or AsyncExitStack(),
                drain or DrainOptions(0, 30),
                signals=self.signals,
                ready=self.ready,
            )
        )

    async def started(self):
        await asyncio.wait_for(self.ready.wait(), 10)
        return self


def server(agent, **methods):
    return AgentServer(agent, [service(**methods)])


class Slow:
    """A stream that ends when it is told to."""

    def __init__(self):
        self.begun, self.go_on = asyncio.Event(), asyncio.Event()

    async def stream(self, *_):
        yield text("first")
        self.begun.set()
        await self.go_on.wait()
        yield text("last")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains(number):
    slow = Slow()
    process = await Process([server("one", stream=slow.stream)]).started()
    async with open_channel(process.servers[0].target) as channel:
        call = Stub(channel).Stream(text())
        await slow.begun.wait()
        os.kill(os.getpid(), number)
        await process.signals.drain.wait()
        await until(lambda: channel.get_state() is not None)
        assert not process.running.done()
        slow.go_on.set()
        assert [message.value async for message in call] == ["first", "last"]
    await asyncio.wait_for(process.running, 10)


async def test_a_second_signal_ends_everything_at_once():
    slow = Slow()
    process = await Process([server("one", stream=slow.stream)], DrainOptions(3600, 3600)).started()
    async with open_channel(process.servers[0].target) as channel:
        call = Stub(channel).Stream(text())
        await slow.begun.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await process.signals.drain.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(process.running, 10)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in call:
                pass
    assert isinstance(from_rpc_error(ended.value, "one"), Draining)


async def test_a_second_signal_during_the_grace():
    slow = Slow()
    process = await Process([server("one", stream=slow.stream)], DrainOptions(0, 3600)).started()
    async with open_channel(process.servers[0].target) as channel:
        call = Stub(channel).Stream(text())
        await slow.begun.wait()
        process.signals.receive()
        await until(lambda: process.servers[0]._admission._draining)
        process.signals.receive()
        await asyncio.wait_for(process.running, 10)
        call.cancel()


async def test_calls_are_served_until_load_balancers_have_looked_away():
    process = await Process([server("one", unary=echo)], DrainOptions(0.5, 10)).started()
    async with open_channel(process.servers[0].target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = aiter(stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE)))
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.SERVING
        process.signals.receive()
        assert (await anext(watch)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await Stub(channel).Unary(text("a"))).value == "a"
        await asyncio.wait_for(process.running, 10)


async def test_those_that_need_others_end_first_and_resources_last():
    slow, events = Slow(), []
    inner = server("inner", unary=echo, stream=slow.stream)

    async def relay(request, _):
        async with (
            open_channel(inner.target) as channel,
            Peer("inner").stream(Stub(channel).Stream, request, soon()) as messages,
        ):
            async for message in messages:
                yield message
            # A call that only begins while the process drains.
            yield await Peer("inner").unary(Stub(channel).Unary, text("more"), soon())
        events.append("call")

    resources = AsyncExitStack()
    resources.callback(events.append, "telemetry")
    resources.callback(events.append, "database")
    process = await Process([inner, server("outer", stream=relay)], resources=resources).started()
    async with open_channel(process.servers[1].target) as channel:
        call = Stub(channel).Stream(text())
        await slow.begun.wait()
        process.signals.receive()
        await until(lambda: process.servers[1]._admission._draining)
        slow.go_on.set()
        assert [message.value async for message in call] == ["first", "last", "more"]
    await asyncio.wait_for(process.running, 10)
    assert events == ["call", "database", "telemetry"]


async def test_a_server_that_cannot_start_takes_the_others_down_with_it():
    events = []
    resources = AsyncExitStack()
    resources.callback(events.append, "database")
    first = server("one", unary=echo)
    second = AgentServer("two", [service(unary=echo)], ServerOptions(address="256.0.0.1:99999"))
    with pytest.raises(ConfigurationError):
        await run([first, second], resources)
    assert events == ["database"]
    async with open_channel(first.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await Stub(channel).Unary(text(), timeout=5)
    assert gone.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_signals_are_left_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    process = await Process([server("one", unary=echo)]).started()
    process.signals.receive()
    await process.running
    assert signal.getsignal(signal.SIGTERM) == before


COLLECTING = """
import gc, time
from loremesh_agents.runtime.lifecycle import exempt_from_collection

def seconds():
    began = time.process_time()
    gc.collect()
    return time.process_time() - began

made = [[number] for number in range(300_000)]
before = min(seconds() for _ in range(3))
exempt_from_collection()
print(before / min(seconds() for _ in range(3)))
"""


async def test_what_a_process_has_made_at_its_start_costs_collections_nothing():
    # In a process of its own: in this one the exemption would hold for all tests.
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", COLLECTING, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    assert float(told) > 5
