"""What a real vLLM tells of its load while it writes."""

import asyncio

import pytest

from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.settings import LanguageModelSettings, StoreSettings
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.ports.language_model import GenerationRequest, SamplingOptions
from tests.engines.servers.vllm import vllm_server

SETTINGS = LanguageModelSettings()
REQUEST = GenerationRequest(
    (Message(Role.USER, "Count."),), "Count.", options=SamplingOptions(max_tokens=2000, temperature=0.7, seed=1)
)


@pytest.mark.parametrize(("kind", "url"), [("grpc", "vllm+grpc://{}"), ("http", "openai+http://{}/v1")])
async def test_it_tells_what_it_is_at_work_on(kind: str, url: str) -> None:
    stores = StoreSettings(model=url.format(vllm_server(kind).target))
    (gauge,) = backends.open_load_gauges(stores, SETTINGS)
    model = backends.open_model(stores, SETTINGS)
    deadline = Deadline.after(60)

    async def running(wanted: int) -> None:
        async with asyncio.timeout(30):
            while True:
                load = await gauge.load(deadline=deadline)
                assert load is not None
                assert load.free is not None
                assert 0 <= load.free <= 1
                if load.running == wanted:
                    assert not load.saturated
                    return
                await asyncio.sleep(0.05)  # its figures are those of its last step

    streams = [model.generate(REQUEST, deadline=deadline) for _ in range(2)]
    for stream in streams:
        await anext(stream)
    reading = asyncio.create_task(running(2))
    for stream in streams:
        async for _ in stream:
            if reading.done():
                break
    await reading
    for stream in streams:
        await stream.aclose()
    await running(0)
    await model.close()
    await gauge.close()
