import asyncio

import grpc
import pytest

from loremesh_agents.runtime.interceptors.chain import compose

from ..support import echo, service, serving, text, until


async def test_the_first_interceptor_is_the_outermost():
    seen = []

    class Noting:
        def __init__(self, name):
            self.name = name

        async def intercept(self, call, proceed):
            seen.append(f"+{self.name}")
            try:
                await proceed(call)
            finally:
                seen.append(f"-{self.name}")

    async def last(_):
        seen.append("servicer")
        raise ValueError

    with pytest.raises(ValueError):
        await compose([Noting("a"), Noting("b")], last)(None)
    assert seen == ["+a", "+b", "servicer", "-b", "-a"]


async def test_a_cancel_closes_the_servicers_generator_in_the_task_of_the_call():
    begun, closed = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def stream(*_):
        task = asyncio.current_task()
        try:
            begun.set()
            while True:
                yield text("x" * 10_000)
        finally:
            # With a generator that is left to the garbage collector this would be another task.
            closed.set_result(asyncio.current_task() is task)

    async with serving(service(stream=stream)) as running:
        # Nobody reads, so that the server soon waits in a write, with the generator suspended.
        call = running.stub.Stream(text())
        await begun.wait()
        await until(lambda: running.server.in_flight == 1)
        call.cancel()
        assert await asyncio.wait_for(closed, 10)
        await until(lambda: running.server.in_flight == 0)
        await running.settled()
        assert running.in_flight("Stream") == 0
        assert running.count("Stream", "CANCELLED") == 1


async def test_a_caller_that_vanishes_in_mid_stream_is_a_cancel(caplog):
    async def stream(*_):
        while True:
            yield text("x" * 1000)

    async with serving(service(stream=stream)) as running:
        for _ in range(20):
            async with grpc.aio.insecure_channel(running.server.target) as channel:
                call = channel.unary_stream("/test.v1.TestService/Stream")(text().SerializeToString())
                await anext(aiter(call))
        await until(lambda: running.server.in_flight == 0)
        await running.settled()
        assert running.count("Stream", "CANCELLED") == 20
        assert running.in_flight("Stream") == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_back_pressure_reaches_the_servicer():
    produced = 0

    async def stream(*_):
        nonlocal produced
        for _ in range(10_000):
            produced += 1
            yield text("x" * 10_000)

    async with serving(service(stream=stream, unary=echo)) as running:
        call = running.stub.Stream(text())
        await anext(aiter(call))
        for _ in range(50):
            await running.stub.Unary(text())
        assert produced < 1000
        call.cancel()


async def test_no_initial_metadata_before_the_first_message():
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def stream(*_):
        begun.set()
        await go_on.wait()
        yield text()

    async with serving(service(stream=stream)) as running:
        call = running.stub.Stream(text())
        metadata = asyncio.create_task(call.initial_metadata())
        await begun.wait()
        assert not metadata.done()
        go_on.set()
        await anext(aiter(call))
        assert "loremesh-query-id" in await metadata
