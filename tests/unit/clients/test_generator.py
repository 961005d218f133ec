"""How a stream of the generator ends for who reads it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from loremesh.v1 import answer_pb2, generator_service_pb2, generator_service_pb2_grpc

from loremesh_agents.clients.generator import GeneratorClient
from loremesh_agents.domain.answer import Completion, FinishReason, TokenDelta
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.errors import PeerUnavailable
from loremesh_agents.ports.language_model import GenerationRequest
from loremesh_agents.runtime.channel import Peer, open_channel
from tests.documents import soon

ASKED = GenerationRequest((Message(Role.USER, "Well?"),), "Well?")
DELTA = generator_service_pb2.GenerateResponse(delta=answer_pb2.TokenDelta(text="Yes.", token_count=1))
END = generator_service_pb2.GenerateResponse(
    completion=answer_pb2.Completion(finish_reason=answer_pb2.FINISH_REASON_STOP)
)


class GeneratorDouble(generator_service_pb2_grpc.GeneratorServiceServicer):
    """Gives a token, and perhaps a completion; then takes its time, and ends as it is told to."""

    def __init__(self, *, completes: bool, code: grpc.StatusCode) -> None:
        self._completes = completes
        self._code = code
        self.ended = asyncio.Event()

    async def Generate(self, request, context):
        yield DELTA
        if self._completes:
            yield END
        await asyncio.sleep(0.02)  # in which a caller that leaves would be noticed
        self.ended.set()
        if self._code is not grpc.StatusCode.OK:
            await context.abort(self._code, "")


@asynccontextmanager
async def generating(double: GeneratorDouble) -> AsyncIterator[GeneratorClient]:
    server = grpc.aio.server()
    generator_service_pb2_grpc.add_GeneratorServiceServicer_to_server(double, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield GeneratorClient(channel, Peer("generator"))
    finally:
        await server.stop(0)


async def test_who_has_read_the_completion_does_not_cancel_what_is_done() -> None:
    double = GeneratorDouble(completes=True, code=grpc.StatusCode.OK)
    async with generating(double) as client:
        async for event in client.generate(ASKED, deadline=soon()):
            if isinstance(event, Completion):
                break
        assert double.ended.is_set()


async def test_a_generator_that_goes_after_its_completion_has_answered() -> None:
    async with generating(GeneratorDouble(completes=True, code=grpc.StatusCode.UNAVAILABLE)) as client:
        delta, end = [event async for event in client.generate(ASKED, deadline=soon())]
    assert isinstance(delta, TokenDelta)
    assert isinstance(end, Completion)
    assert end.finish_reason is FinishReason.STOP


async def test_a_generator_that_goes_before_its_completion_has_not() -> None:
    async with generating(GeneratorDouble(completes=False, code=grpc.StatusCode.UNAVAILABLE)) as client:
        events = client.generate(ASKED, deadline=soon())
        assert isinstance(await anext(events), TokenDelta)
        with pytest.raises(PeerUnavailable):
            await anext(events)
