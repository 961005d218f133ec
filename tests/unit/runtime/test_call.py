import asyncio

import grpc
import pytest

from .support import echo, echo_all, service, serving, text


async def test_bytes_that_are_no_message_are_an_invalid_request():
    async with serving(service(unary=echo, duplex=echo_all)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as one:
            await running.channel.unary_unary("/test.v1.TestService/Unary")(b"\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as many:
            await anext(aiter(running.channel.stream_stream("/test.v1.TestService/Duplex")(iter([b"\xff\xff"]))))
    assert one.value.code() is many.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_call_without_its_request_message_is_an_invalid_request():
    async with serving(service(unary=echo)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as empty:
            await running.channel.stream_unary("/test.v1.TestService/Unary")(iter([]))
    assert empty.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_cancelled_read_is_not_forgotten():
    async def duplex(requests, _):
        reading = asyncio.create_task(anext(requests))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        with pytest.raises(RuntimeError, match="cancelled"):
            await anext(requests)
        yield text("noticed")

    async with serving(service(duplex=duplex)) as running:
        call = running.stub.Duplex()
        assert (await call.read()).value == "noticed"
        call.cancel()


async def test_a_stream_that_has_ended_stays_ended():
    async def upload(requests, _):
        first = [request.value async for request in requests]
        return text(f"{first} {[request.value async for request in requests]}")

    async with serving(service(upload=upload)) as running:
        assert (await running.stub.Upload(iter([text("a")]))).value == "['a'] []"
