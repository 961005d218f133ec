import asyncio
import socket

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from loremesh.v1 import retriever_service_pb2, retriever_service_pb2_grpc

from loremesh_agents.domain.errors import ConfigurationError, Draining, NotImplementedYet
from loremesh_agents.runtime.errors import from_rpc_error
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service, TransportOptions

from .support import AGENT, SERVICE, Stub, echo, echo_all, service, serving, text, until


async def test_all_four_shapes():
    async def stream(request, _):
        for number in range(3):
            yield text(f"{request.value}{number}")

    async def upload(requests, _):
        return text("".join([request.value async for request in requests]))

    async with serving(service(unary=echo, stream=stream, upload=upload, duplex=echo_all)) as running:
        stub = running.stub
        assert (await stub.Unary(text("a"))).value == "a"
        assert [message.value async for message in stub.Stream(text("a"))] == ["a0", "a1", "a2"]
        assert (await stub.Upload(iter([text("a"), text("b")]))).value == "ab"
        assert [message.value async for message in stub.Duplex(iter([text("a"), text("b")]))] == ["a", "b"]


async def test_a_server_is_a_block():
    async with AgentServer(AGENT, [service(unary=echo)]) as server, grpc.aio.insecure_channel(server.target) as channel:
        assert (await Stub(channel).Unary(text("a"))).value == "a"
    async with grpc.aio.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await Stub(channel).Unary(text("a"), timeout=5)


async def test_an_empty_stream_is_a_stream():
    async def stream(*_):
        return
        yield

    async with serving(service(stream=stream)) as running:
        call = running.stub.Stream(text())
        assert [message async for message in call] == []
        assert await call.code() is grpc.StatusCode.OK


async def test_unix_sockets(tmp_path):
    async with serving(service(unary=echo), ServerOptions(address=f"unix:{tmp_path}/agent")) as running:
        assert running.server.target == f"unix:{tmp_path}/agent"
        assert (await running.stub.Unary(text("a"))).value == "a"


async def test_a_taken_port_fails_when_it_is_bound():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigurationError, match=address):
            AgentServer(AGENT, [service(unary=echo)], ServerOptions(address=address)).bind()


async def test_two_agents_never_share_a_port_by_mistake():
    async with serving(service(unary=echo)) as running:
        with pytest.raises(ConfigurationError):
            AgentServer(AGENT, [service(unary=echo)], ServerOptions(address=running.server.target)).bind()


async def test_a_live_unix_socket_is_not_taken_over_and_a_dead_one_is(tmp_path):
    options = ServerOptions(address=f"unix:{tmp_path}/agent")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/agent")
    async with serving(service(unary=echo), options):
        with pytest.raises(ConfigurationError, match="another process"):
            AgentServer(AGENT, [service(unary=echo)], options).bind()


async def test_workers_may_share_a_port():
    async with serving(service(unary=echo), ServerOptions(reuse_port=True)) as first:
        options = ServerOptions(address=first.server.target, reuse_port=True)
        async with serving(service(unary=echo), options) as second:
            assert second.server.target == first.server.target


async def test_an_unbound_server_has_no_target():
    with pytest.raises(RuntimeError, match="not bound"):
        _ = AgentServer(AGENT, [service(unary=echo)]).target


async def test_several_servers_in_one_process():
    async def ask(request, _):
        return await second.stub.Unary(request)

    async with serving(service(unary=echo)) as second, serving(service(unary=ask)) as first:
        assert (await first.stub.Unary(text("a"))).value == "a"
        await second.settled()
        await first.settled()
        assert second.count("Unary", "OK") == first.count("Unary", "OK") == 1


async def test_reflection_names_the_services():
    async with serving(service(unary=echo)) as running:
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for response in stub.ServerReflectionInfo(iter([request])):
            names = {found.name for found in response.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_reflection_can_be_off():
    async with serving(service(unary=echo), ServerOptions(reflection=False)) as running:
        stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            async for _ in stub.ServerReflectionInfo(iter([request])):
                pass
        assert missing.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_generated_servicers_and_the_methods_that_they_lack():
    descriptor = retriever_service_pb2.DESCRIPTOR.services_by_name["RetrieverService"]
    served = Service.of(
        descriptor,
        retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server,
        retriever_service_pb2_grpc.RetrieverServiceServicer(),
    )
    assert served.name == "loremesh.v1.RetrieverService"
    assert {kind.DESCRIPTOR.full_name for kind in served.request_types} == {
        method.input_type.full_name for method in descriptor.methods
    }
    async with serving(served) as running:
        stub = retriever_service_pb2_grpc.RetrieverServiceStub(running.channel)
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            async for _ in stub.Retrieve(retriever_service_pb2.RetrieveRequest()):
                pass
    assert missing.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT)


async def test_messages_above_the_limit_are_refused():
    options = ServerOptions(transport=TransportOptions(max_receive_bytes=1000))
    async with serving(service(unary=echo), options) as running:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Unary(text("x" * 2000))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await running.stub.Unary(text("x"))).value == "x"
    await running.settled()
    assert running.in_flight("Unary") == 0


async def test_an_old_connection_is_closed_without_harm():
    options = ServerOptions(transport=TransportOptions(max_connection_age=0.2, max_connection_age_grace=5))
    async with serving(service(unary=echo), options) as running:
        connected = grpc.ChannelConnectivity.READY
        assert (await running.stub.Unary(text("a"))).value == "a"
        assert running.channel.get_state() is connected
        await asyncio.wait_for(running.channel.wait_for_state_change(connected), 10)
        assert (await running.stub.Unary(text("b"), wait_for_ready=True)).value == "b"


async def test_stop_lets_a_stream_end_and_takes_no_new_calls():
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def stream(*_):
        yield text("first")
        begun.set()
        await go_on.wait()
        yield text("last")

    async with serving(service(stream=stream, unary=echo)) as running:
        call = running.stub.Stream(text())
        messages = [(await anext(aiter(call))).value]
        await begun.wait()
        stopping = asyncio.create_task(running.server.stop(grace=30))
        await until(lambda: running.server._admission._draining)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await running.stub.Unary(text("new"), timeout=5)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not stopping.done()
        go_on.set()
        messages += [message.value async for message in call]
        await stopping
    assert messages == ["first", "last"]
    assert await call.code() is grpc.StatusCode.OK
    await running.settled()
    assert running.count("Stream", "OK") == 1


async def test_calls_that_outlast_the_grace_end_with_an_error_that_says_where_to_go_on():
    async def stream(*_):
        yield text("first")
        await asyncio.Event().wait()

    async with serving(service(stream=stream)) as running:
        call = running.stub.Stream(text())
        assert (await anext(aiter(call))).value == "first"
        await running.server.stop(grace=0.05)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await anext(aiter(call))
    assert isinstance(from_rpc_error(ended.value, AGENT), Draining)
    await running.settled()
    assert running.in_flight("Stream") == 0
    assert running.count("Stream", "UNAVAILABLE") == 1


async def test_a_second_stop_hurries():
    async def stream(*_):
        yield text("first")
        await asyncio.Event().wait()

    async with serving(service(stream=stream)) as running:
        call = running.stub.Stream(text())
        await anext(aiter(call))
        stopping = asyncio.create_task(running.server.stop(grace=3600))
        await until(lambda: running.server._admission._draining)
        await running.server.stop(grace=0)
        await stopping
    assert running.server.in_flight == 0


async def test_a_watcher_of_health_does_not_hold_up_the_stop():
    async with serving(service(unary=echo)) as running:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        await anext(aiter(watch))
        await asyncio.wait_for(running.server.stop(grace=3600), 10)


async def test_a_server_that_never_started_stops():
    server = AgentServer(AGENT, [service(unary=echo)])
    server.bind()
    await server.stop(grace=1)


async def test_stub_of_a_method_that_does_not_exist():
    async with serving(service(unary=echo)) as running:
        with pytest.raises(grpc.aio.AioRpcError) as missing:
            await running.stub.Missing(text())
    assert isinstance(from_rpc_error(missing.value, AGENT), NotImplementedYet)
    await running.settled()
    assert running.sample("loremesh_requests_total", agent=AGENT, method="unknown", code="UNIMPLEMENTED") == 1
