import asyncio
import gc
import logging

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue
from loremesh.v1 import coordinator_service_pb2, generator_service_pb2, retriever_service_pb2

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    CollectionNotFound,
    InternalError,
    InvalidRequest,
    PeerUnavailable,
    StreamIdle,
)
from loremesh_agents.domain.principal import Principal
from loremesh_agents.runtime.channel import ChannelOptions, Peer, RetryOptions, open_channel, service_config
from loremesh_agents.runtime.context import (
    PRINCIPAL_KEY,
    QUERY_ID_KEY,
    RequestContext,
    activate,
    current,
    encode_principal,
)
from loremesh_agents.runtime.errors import from_rpc_error_for_user
from loremesh_agents.runtime.server import PeerTrust, ServerOptions

from .support import Stub, echo, echo_all, service, serving, soon, text, until


async def three(request, _):
    for number in range(3):
        yield text(f"{request.value}{number}")


async def forever(*_):
    yield text("first")
    await asyncio.Event().wait()


async def values(stream):
    async with stream:
        return [message.value async for message in stream]


async def test_unary_stream_and_duplex():
    async def requests():
        yield text("a")
        yield text("b")

    async with serving(service(unary=echo, stream=three, duplex=echo_all)) as running:
        peer = Peer("tester")
        assert (await peer.unary(running.stub.Unary, text("a"), soon())).value == "a"
        assert await values(peer.stream(running.stub.Stream, text("a"), soon())) == ["a0", "a1", "a2"]
        assert await values(peer.duplex(running.stub.Duplex, requests(), soon())) == ["a", "b"]
        stream = peer.stream(running.stub.Stream, text("a"), None)
        assert len(await values(stream)) == 3
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_the_context_goes_along(tmp_path):
    principal = Principal("ada", frozenset({"staff"}))

    async def unary(*_):
        context = current()
        return text(f"{context.query_id} {context.principal.subject} {sorted(context.principal.groups)}")

    async def relay(request, _):
        return await Peer("second").unary(second.stub.Unary, request, current().deadline)

    options = [ServerOptions(address=f"unix:{tmp_path}/{name}", trust=PeerTrust.SOCKET) for name in "ab"]
    async with serving(service(unary=unary), options[0]) as second, serving(service(unary=relay), options[1]) as first:
        metadata = ((QUERY_ID_KEY, "q1"), (PRINCIPAL_KEY, encode_principal(principal)))
        assert (await first.stub.Unary(text(), metadata=metadata)).value == "q1 ada ['staff']"
        with activate(RequestContext(query_id="q2")):
            assert (await Peer("first").unary(first.stub.Unary, text(), soon())).value == "q2  []"


async def test_metadata_for_routing_goes_along():
    async def unary(_, context):
        return text(dict(context.invocation_metadata())["loremesh-k"])

    async with serving(service(unary=unary)) as running:
        assert (await Peer("p").unary(running.stub.Unary, text(), soon(), (("loremesh-k", "3"),))).value == "3"


async def test_the_deadline_shrinks_from_hop_to_hop():
    async def remaining(*_):
        return text(str(current().deadline.remaining()))

    async def relay(request, _):
        inner = await Peer("second", reserve=2).unary(second.stub.Unary, request, current().deadline)
        return text(f"{current().deadline.remaining()} {inner.value}")

    async with serving(service(unary=remaining)) as second, serving(service(unary=relay)) as first:
        answer = await Peer("first", reserve=1).unary(first.stub.Unary, text(), Deadline.after(10))
        outer, inner = map(float, answer.value.split())
        assert 7 < outer <= 9.1
        assert 5 < inner <= outer - 1.8
        capped = await Peer("second", cap=3).unary(second.stub.Unary, text(), Deadline.after(10))
        assert 2 < float(capped.value) <= 3.1


async def test_no_call_is_made_without_time_for_it():
    calls = []

    async def unary(request, _):
        calls.append(request)
        return request

    async with serving(service(unary=unary, stream=three)) as running:
        peer = Peer("tester", reserve=1)
        with pytest.raises(BudgetExhausted) as error:
            await peer.unary(running.stub.Unary, text(), Deadline.after(0.5))
        assert error.value.metadata == {"agent": "tester", "stage": "Unary"}
        with pytest.raises(BudgetExhausted):
            peer.stream(running.stub.Stream, text(), Deadline.after(0.5))
        with pytest.raises(BudgetExhausted):
            peer.duplex(running.stub.Duplex, echo_all(None, None), Deadline.after(0.5))
    assert not calls


async def test_errors_come_as_domain_errors():
    async def unary(*_):
        raise CollectionNotFound("docs")

    async def stream(*_):
        yield text("first")
        raise BackendUnavailable("neo4j", retry_after=2)

    async with serving(service(unary=unary, stream=stream)) as running:
        peer = Peer("tester")
        with pytest.raises(CollectionNotFound) as missing:
            await peer.unary(running.stub.Unary, text(), soon())
        assert isinstance(missing.value.__cause__, grpc.aio.AioRpcError)
        messages = peer.stream(running.stub.Stream, text(), soon())
        assert (await anext(messages)).value == "first"
        with pytest.raises(BackendUnavailable) as broken:
            await anext(messages)
        assert broken.value.retry_after == 2
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_an_invalid_request_is_our_fault_unless_an_end_user_made_it(caplog):
    async def unary(*_):
        raise InvalidRequest.of("k", "must be positive")

    async with serving(service(unary=unary)) as running:
        with pytest.raises(InternalError), caplog.at_level(logging.ERROR):
            await Peer("tester").unary(running.stub.Unary, text(), soon())
        assert "must be positive" in caplog.text
        with pytest.raises(InvalidRequest):
            await Peer("tester", decode=from_rpc_error_for_user).unary(running.stub.Unary, text(), soon())


async def test_a_peer_that_is_not_there(unused_tcp_port):
    async with open_channel(f"127.0.0.1:{unused_tcp_port}") as channel:
        peer = Peer("tester")
        with pytest.raises(PeerUnavailable):
            await peer.unary(Stub(channel).Unary, text(), soon())
        with pytest.raises(PeerUnavailable):
            await values(peer.stream(Stub(channel).Stream, text(), soon()))


async def test_a_peer_that_was_away_is_looked_for_again_soon():
    asked = asyncio.Semaphore(0)

    def away(_, writer):
        asked.release()
        writer.transport.abort()

    listener = await asyncio.start_server(away, "127.0.0.1", 0)
    target = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, open_channel(target) as channel:

        async def ask_again_and_again():
            while True:
                with pytest.raises(PeerUnavailable):
                    await Peer("tester").unary(Stub(channel).Unary, text(), soon())
                await asyncio.sleep(0.01)

        asking = asyncio.create_task(ask_again_and_again())
        # By gRPC's own pauses, the sixth attempt would come after 8 to 12 seconds.
        async with asyncio.timeout(6):
            for _ in range(6):
                await asked.acquire()
        asking.cancel()
        await asyncio.wait([asking])


async def test_a_deadline_that_passes_in_mid_stream():
    async with serving(service(stream=forever)) as running:
        messages = Peer("tester").stream(running.stub.Stream, text(), Deadline.after(0.2))
        assert (await anext(messages)).value == "first"
        with pytest.raises(BudgetExhausted):
            await anext(messages)


async def test_leaving_the_block_ends_the_call():
    async with serving(service(stream=forever)) as running:
        async with Peer("tester").stream(running.stub.Stream, text(), soon()) as messages:
            await anext(messages)
            assert running.server.in_flight == 1
        await until(lambda: running.count("Stream", "CANCELLED") == 1)
        await running.settled()
        assert running.in_flight("Stream") == 0


async def test_breaking_out_ends_the_call():
    async with serving(service(stream=forever)) as running:
        async for _ in Peer("tester").stream(running.stub.Stream, text(), soon()):
            break
        gc.collect()
        await until(lambda: running.count("Stream", "CANCELLED") == 1)


async def test_cancelling_the_task_ends_the_call():
    async def unary(*_):
        await asyncio.Event().wait()

    async with serving(service(unary=unary, stream=forever)) as running:
        peer = Peer("tester")
        for call, method in (
            (lambda: peer.unary(running.stub.Unary, text(), soon()), "Unary"),
            (lambda: values(peer.stream(running.stub.Stream, text(), soon())), "Stream"),
        ):
            task = asyncio.create_task(call())
            await until(lambda: running.server.in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda name=method: running.count(name, "CANCELLED") == 1)


async def test_a_cancel_travels_through_the_mesh():
    closed = asyncio.Event()

    async def last(*_):
        try:
            yield text("first")
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def relay(request, _):
        async with Peer("second").stream(second.stub.Stream, request, current().deadline) as messages:
            async for message in messages:
                yield message

    async with serving(service(stream=last)) as second, serving(service(stream=relay)) as first:
        async with Peer("first").stream(first.stub.Stream, text(), soon()) as messages:
            assert (await anext(messages)).value == "first"
        await asyncio.wait_for(closed.wait(), 10)
        await until(lambda: first.count("Stream", "CANCELLED") == second.count("Stream", "CANCELLED") == 1)


async def test_a_silent_peer_is_idle():
    async with serving(service(stream=forever)) as running:
        messages = Peer("tester", idle_timeout=0.1).stream(running.stub.Stream, text(), soon())
        assert (await anext(messages)).value == "first"
        with pytest.raises(StreamIdle) as error:
            await anext(messages)
        assert error.value.metadata == {"agent": "tester", "idleSeconds": "0.1"}
        await until(lambda: running.server.in_flight == 0)


async def test_a_slow_consumer_is_not_the_peers_silence():
    async with serving(service(stream=three)) as running:
        seen = []
        async for message in Peer("tester", idle_timeout=0.5).stream(running.stub.Stream, text(), soon()):
            seen.append(message.value)
            await asyncio.sleep(0.7)
    assert seen == ["0", "1", "2"]


async def test_what_the_requests_raise_comes_out_of_the_stream():
    async def requests():
        yield text("a")
        raise CollectionNotFound("docs")

    async with serving(service(duplex=echo_all)) as running:
        with pytest.raises(CollectionNotFound):
            await values(Peer("tester").duplex(running.stub.Duplex, requests(), soon()))
        await until(lambda: running.server.in_flight == 0)


async def test_the_requests_are_closed_with_the_call():
    closed = asyncio.Event()

    async def requests():
        try:
            while True:
                yield text("a")
        finally:
            closed.set()

    async def one(requests, _):
        async for request in requests:
            yield request
            return

    async with serving(service(duplex=one)) as running:
        assert await values(Peer("tester").duplex(running.stub.Duplex, requests(), soon())) == ["a"]
        assert closed.is_set()


@pytest.mark.parametrize("fails", [True, False])
async def test_a_peer_that_ends_a_call_while_we_send_is_heard(fails):
    async def requests():
        while True:
            yield text("x" * 1000)

    async def duplex(requests, _):
        async for request in requests:
            yield request
            break
        if fails:
            raise CollectionNotFound("docs")

    async with serving(service(duplex=duplex)) as running:

        async def ask():
            try:
                return len(await values(Peer("tester").duplex(running.stub.Duplex, requests(), soon())))
            except CollectionNotFound:
                return "failed"

        outcomes = [await ask() for _ in range(100)]
        outcomes += await asyncio.gather(*(ask() for _ in range(20)))
    assert set(outcomes) == ({"failed"} if fails else {1})


async def test_a_closed_channel_is_no_cancel_of_ours():
    async with serving(service(stream=forever)) as running:
        channel = open_channel(running.server.target)
        messages = Peer("tester").stream(Stub(channel).Stream, text(), soon())
        await anext(messages)
        waiting = asyncio.create_task(anext(messages))
        await asyncio.sleep(0)
        await channel.close()
        with pytest.raises(PeerUnavailable):
            await waiting


async def test_bytes_that_are_no_message_are_an_incident(caplog):
    async with serving(service(unary=echo, stream=three)) as running:

        def broken(_):
            raise ValueError("cannot be decoded")

        unary = running.channel.unary_unary("/test.v1.TestService/Unary", StringValue.SerializeToString, broken)
        stream = running.channel.unary_stream("/test.v1.TestService/Stream", StringValue.SerializeToString, broken)
        with pytest.raises(InternalError):
            await Peer("tester").unary(unary, text(), soon())
        with pytest.raises(InternalError):
            await values(Peer("tester").stream(stream, text(), soon()))
        await until(lambda: running.server.in_flight == 0)


def test_only_methods_without_side_effects_are_retried():
    services = [
        module.DESCRIPTOR.services_by_name[name]
        for module, name in (
            (coordinator_service_pb2, "CoordinatorService"),
            (generator_service_pb2, "GeneratorService"),
            (retriever_service_pb2, "RetrieverService"),
        )
    ]
    (policy,) = service_config(services, RetryOptions())["methodConfig"]
    retried = {f"{name['service']}/{name['method']}" for name in policy["name"]}
    safe = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    assert retried == {
        f"{found.full_name}/{method.name}"
        for found in services
        for method in found.methods
        if method.GetOptions().idempotency_level == safe
    }
    assert "loremesh.v1.CoordinatorService/Ask" not in retried
    assert "loremesh.v1.GeneratorService/Generate" not in retried
    assert "loremesh.v1.RetrieverService/Retrieve" in retried
    assert policy["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert "methodConfig" not in service_config(services, None)


async def test_retries_happen_as_configured():
    file = descriptor_pb2.FileDescriptorProto(name="test/retries.proto", package="test.v1", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    declared = file.service.add(name="TestService")
    for name, streaming, safe in (("Unary", False, True), ("Stream", True, True), ("Duplex", True, False)):
        method = declared.method.add(name=name, server_streaming=streaming)
        method.input_type = method.output_type = ".google.protobuf.StringValue"
        if safe:
            method.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(descriptor_pool.Default().FindFileByName("google/protobuf/wrappers.proto").serialized_pb)
    pool.Add(file)
    attempts = {"Unary": 0, "Stream": 0, "Duplex": 0}

    def fail_twice(name):
        attempts[name] += 1
        if attempts[name] < 3:
            raise BackendUnavailable("neo4j")

    async def unary(request, _):
        fail_twice("Unary")
        return request

    async def stream(request, _):
        fail_twice("Stream")
        yield request
        raise BackendUnavailable("neo4j")

    async def duplex(requests, _):
        fail_twice("Duplex")
        async for request in requests:
            yield request

    async def requests():
        yield text("a")

    options = ChannelOptions(retry=RetryOptions(attempts=3, initial_backoff=0.01))
    async with (
        serving(service(unary=unary, stream=stream, duplex=duplex)) as running,
        open_channel(running.server.target, options, [pool.FindServiceByName("test.v1.TestService")]) as channel,
    ):
        peer, stub = Peer("tester"), Stub(channel)
        assert (await peer.unary(stub.Unary, text("a"), soon())).value == "a"
        messages = peer.stream(stub.Stream, text("a"), soon())
        assert (await anext(messages)).value == "a"
        with pytest.raises(BackendUnavailable):
            await anext(messages)
        with pytest.raises(BackendUnavailable):
            await values(peer.duplex(stub.Duplex, requests(), soon()))
    # Three attempts before the first message, none after it, and one only where there may be side effects.
    assert attempts == {"Unary": 3, "Stream": 3, "Duplex": 1}
