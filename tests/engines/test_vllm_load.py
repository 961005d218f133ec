"""What a real vLLM tells of its load while it writes."""

import asyncio
from contextlib import aclosing

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

    async def write_again_and_again() -> None:
        # How long an answer gets is the model's affair, and how soon the gauge is read that of the machine.
        while True:
            async with aclosing(model.generate(REQUEST, deadline=deadline)) as events:
                async for _ in events:
                    pass

    writers = [asyncio.create_task(write_again_and_again()) for _ in range(2)]
    await running(2)
    for writer in writers:
        writer.cancel()
    await asyncio.wait(writers)
    assert all(writer.cancelled() for writer in writers)
    await running(0)
    await model.close()
    await gauge.close()
