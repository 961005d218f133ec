import asyncio
import time

import grpc
import pytest

from loremesh_agents.domain.errors import BudgetExhausted, StreamIdle
from loremesh_agents.runtime.context import current
from loremesh_agents.runtime.errors import from_rpc_error
from loremesh_agents.runtime.server import DeadlineOptions, MethodTimes, ServerOptions

from ..support import AGENT, SERVICE, collect, echo_all, service, serving, text, until


def times(**default):
    return ServerOptions(deadlines=DeadlineOptions(default=MethodTimes(**default)))


async def forever(*_):
    yield text("first")
    await asyncio.Event().wait()


async def remaining(*_):
    deadline = current().deadline
    return text("" if deadline is None else str(deadline.remaining()))


async def test_the_callers_deadline_counts():
    async with serving(service(unary=remaining), times(default_deadline=5)) as running:
        assert 20 < float((await running.stub.Unary(text(), timeout=30)).value) <= 30.5


@pytest.mark.parametrize("late", [0.0, 0.2])
async def test_a_deadline_is_not_later_than_the_callers_however_late_we_come_to_it(late):
    transit, timeout = 0.05, 10.01  # gRPC sends 10.1 s, of which 9.9 s are left to one who comes late
    deadlines = []

    async def unary(request, _):
        deadlines.append(current().deadline)
        return request

    async with serving(service(unary=unary)) as running:
        await running.stub.Unary(text())
        call = running.stub.Unary(text(), timeout=timeout)
        latest = time.monotonic() + timeout
        await asyncio.sleep(0)
        # Waits for nothing: a loop that is held up is what is tested, while gRPC's own thread takes the call in.
        time.sleep(late)
        await call
    assert latest - 0.3 < deadlines[-1].at <= latest + transit


async def test_without_one_the_methods_default_counts():
    methods = {f"{SERVICE}/Unary": MethodTimes(default_deadline=7)}
    options = ServerOptions(deadlines=DeadlineOptions(methods=methods))
    async with serving(service(unary=remaining), options) as running:
        assert 6 < float((await running.stub.Unary(text())).value) <= 7


async def test_a_method_may_have_none():
    async with serving(service(unary=remaining), times(default_deadline=None)) as running:
        assert (await running.stub.Unary(text())).value == ""


async def test_the_default_ends_a_call_in_mid_stream():
    async with serving(service(stream=forever), times(default_deadline=0.1)) as running:
        call = running.stub.Stream(text())
        assert (await anext(aiter(call))).value == "first"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(aiter(call))
        error = from_rpc_error(ended.value, AGENT)
        assert isinstance(error, BudgetExhausted)
        assert error.metadata == {"agent": AGENT, "stage": "Stream"}
        await running.settled()
        assert running.count("Stream", "DEADLINE_EXCEEDED") == 1
        assert running.in_flight("Stream") == 0


@pytest.mark.parametrize("timeout", [0.1, 1.001])
async def test_the_callers_deadline_in_mid_stream_is_counted_as_such(timeout):
    async with serving(service(stream=forever)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await collect(running.stub.Stream(text(), timeout=timeout))
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: running.in_flight("Stream") == 0)
        assert running.count("Stream", "DEADLINE_EXCEEDED") == 1
        assert running.count("Stream", "CANCELLED") == 0


async def test_a_cancel_is_not_a_deadline():
    async with serving(service(stream=forever)) as running:
        call = running.stub.Stream(text(), timeout=30)
        await anext(aiter(call))
        call.cancel()
        await until(lambda: running.count("Stream", "CANCELLED") == 1)
        assert running.count("Stream", "DEADLINE_EXCEEDED") == 0


async def test_too_little_time_is_refused_before_work_begins():
    asked = []

    async def unary(request, _):
        asked.append(request)
        return request

    options = ServerOptions(deadlines=DeadlineOptions(floor=5.0))
    async with serving(service(unary=unary), options) as running:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Unary(text(), timeout=2)
    error = from_rpc_error(refused.value, AGENT)
    assert isinstance(error, BudgetExhausted)
    assert error.metadata["stage"] == "admission"
    assert not asked


async def test_a_timeout_of_the_servicers_own_is_not_the_deadline():
    async def unary(*_):
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()

    async with serving(service(unary=unary)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await running.stub.Unary(text(), timeout=30)
    assert ended.value.code() is grpc.StatusCode.INTERNAL


async def test_a_stream_whose_requests_stop_coming_is_idle():
    async with serving(service(duplex=echo_all), times(default_deadline=None, idle_timeout=0.1)) as running:
        call = running.stub.Duplex()
        await call.write(text("a"))
        assert (await call.read()).value == "a"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
        error = from_rpc_error(ended.value, AGENT)
        assert isinstance(error, StreamIdle)
        assert error.metadata == {"agent": AGENT, "idleSeconds": "0.1"}
        await running.settled()
        assert running.in_flight("Duplex") == 0


async def test_a_stream_whose_reader_has_stopped_is_idle():
    async def stream(*_):
        while True:
            yield text("x" * 100_000)

    async with serving(service(stream=stream), times(default_deadline=None, idle_timeout=0.1)) as running:
        call = running.stub.Stream(text())
        await until(lambda: running.server.in_flight == 1)
        # The servicer is not kept waiting, but the status has to wait until there is room for it.
        await until(lambda: running.server.in_flight == 0)
        assert running.in_flight("Stream") == 1
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await collect(call)
        assert isinstance(from_rpc_error(ended.value, AGENT), StreamIdle)
        await until(lambda: running.in_flight("Stream") == 0)
        assert running.count("Stream", "DEADLINE_EXCEEDED") == 1


async def test_a_reader_that_has_stopped_and_then_leaves_is_forgotten():
    async def stream(*_):
        while True:
            yield text("x" * 100_000)

    async with serving(service(stream=stream), times(default_deadline=None, idle_timeout=0.1)) as running:
        call = running.stub.Stream(text())
        await until(lambda: running.server.in_flight == 1)
        await until(lambda: running.server.in_flight == 0)
        call.cancel()
        await until(lambda: running.in_flight("Stream") == 0)


async def test_messages_in_either_direction_keep_a_stream_alive():
    async def duplex(requests, _):
        number = 0
        async for request in requests:
            yield request
            # Longer than the idle timeout in all, but never silent for as long.
            for _ in range(5):
                await asyncio.sleep(0.1)
                number += 1
                yield text(str(number))

    async with serving(service(duplex=duplex), times(default_deadline=None, idle_timeout=0.3)) as running:
        call = running.stub.Duplex()
        began = time.monotonic()
        for _ in range(2):
            await call.write(text("a"))
            for _ in range(6):
                await call.read()
        assert time.monotonic() - began > 0.9
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_method_with_one_message_each_way_is_never_idle():
    async def unary(request, _):
        await asyncio.sleep(0.1)
        return request

    async with serving(service(unary=unary), times(idle_timeout=0.02)) as running:
        assert (await running.stub.Unary(text("a"))).value == "a"
