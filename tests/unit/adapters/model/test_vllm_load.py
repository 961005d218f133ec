"""What engines tell of their load: doubles of vLLM's gRPC contract and of its page of metrics."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from loremesh_agents.adapters.model.vllm_load import VllmGrpcLoad, VllmHttpLoad, load_of_page
from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.settings import LanguageModelSettings, StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable
from loremesh_agents.ports.engine_load import EngineLoad
from tests.documents import soon

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting{engine="1",model_name="tiny"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 70.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.75
vllm:kv_cache_usage_perc{engine="1",model_name="tiny"} 0.25
"""


class EngineDouble(vllm_engine_pb2_grpc.VllmEngineServicer):
    """Tells the loads that a test sets."""

    def __init__(self) -> None:
        self.loads: list[vllm_engine_pb2.SchedulerLoad] = []

    async def GetLoads(self, request, context):
        return vllm_engine_pb2.GetLoadsResponse(loads=self.loads, dp_rank_count=len(self.loads))


async def test_an_engine_over_grpc_tells_the_load_of_all_its_ranks() -> None:
    engine = EngineDouble()
    server = grpc.aio.server()
    vllm_engine_pb2_grpc.add_VllmEngineServicer_to_server(engine, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gauge = VllmGrpcLoad(f"127.0.0.1:{port}", idle_timeout=5)
    assert await gauge.load(deadline=soon()) is None
    engine.loads = [
        vllm_engine_pb2.SchedulerLoad(num_running_reqs=3, num_waiting_reqs=2, token_usage=0.75),
        vllm_engine_pb2.SchedulerLoad(num_running_reqs=1, token_usage=0.25),
    ]
    assert await gauge.load(deadline=soon()) == EngineLoad(4, 2, 0.75)
    await server.stop(None)
    with pytest.raises(BackendUnavailable):
        await gauge.load(deadline=Deadline.after(5))
    await gauge.close()


@asynccontextmanager
async def page_of(status: int, content: str) -> AsyncIterator[str]:
    """A server with one page; gives its address with `/v1`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        found = request.startswith("GET /metrics ")
        body = content.encode() if found else b""
        writer.write(f"HTTP/1.1 {status if found else 404} X\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@pytest.mark.parametrize(
    ("status", "content", "load"),
    [
        (200, PAGE, EngineLoad(4, 2, 0.75)),
        (404, PAGE, None),
        (200, "python_gc_objects_collected_total 1\n", None),
        (200, "x" * 5_000_000, None),
    ],
    ids=["vLLM", "no such page", "another server", "a page without end"],
)
async def test_an_engine_over_http_tells_its_load_by_its_metrics(
    status: int, content: str, load: EngineLoad | None
) -> None:
    async with page_of(status, content) as base:
        gauge = VllmHttpLoad(base)
        assert await gauge.load(deadline=soon()) == load
        await gauge.close()


async def test_an_engine_that_is_not_there_does_not_answer() -> None:
    async with page_of(200, PAGE) as base:
        pass
    gauge = VllmHttpLoad(base)
    with pytest.raises(BackendUnavailable):
        await gauge.load(deadline=soon())
    with pytest.raises(BackendUnavailable):
        await gauge.load(deadline=Deadline.after(0))
    await gauge.close()


async def test_an_engine_that_is_down_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    gauge = VllmGrpcLoad("127.0.0.1:1", idle_timeout=5)
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            await gauge.load(deadline=soon())
    await gauge.close()
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.parametrize(
    ("page", "load"),
    [
        ("vllm:num_requests_running 1\nvllm:num_requests_waiting 0\n", EngineLoad(1, 0)),
        ("vllm:num_requests_running 1\n", None),
        ("vllm:num_requests_running 1..0\nvllm:num_requests_waiting 0\n", None),
        ("vllm:num_requests_running 1e999\nvllm:num_requests_waiting 0\n", None),
        ("", None),
    ],
)
def test_what_a_page_does_not_tell_is_not_made_up(page: str, load: EngineLoad | None) -> None:
    assert load_of_page(page) == load


async def test_only_engines_that_tell_their_load_are_asked() -> None:
    urls = "vllm+grpc://127.0.0.1:1,openai+http://127.0.0.1:2/v1, trtllm+grpc://127.0.0.1:3,vllm+grpc://127.0.0.1:1"
    stores = StoreSettings(model=urls)
    gauges = backends.open_load_gauges(stores, LanguageModelSettings())
    assert [type(gauge) for gauge in gauges] == [VllmGrpcLoad, VllmHttpLoad]
    assert len(backends.engine_urls(stores)) == 3
    for gauge in gauges:
        await gauge.close()
