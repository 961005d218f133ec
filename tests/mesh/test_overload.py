"""More generations than the engine can hold, over the wire."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from loremesh.v1 import answer_pb2, generator_service_pb2_grpc, message_pb2, principal_pb2
from loremesh.v1 import generator_service_pb2 as generator_pb

from loremesh_agents.domain.errors import Overloaded
from loremesh_agents.generator.admission import TokenAdmission
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.generator.servicer import GeneratorServicer
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.runtime.interceptors.authentication import PeerTrust
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service
from tests.mesh.conftest import answers, served
from tests.mesh.gates import ANSWER, Asking, GatedModel, Gates, install
from tests.mesh.test_error_reasons import details_of, refused
from tests.unit.runtime.support import until

QUESTION = generator_pb.GenerateRequest(
    messages=[message_pb2.Message(role=message_pb2.ROLE_USER, text="Well?")],
    options=answer_pb2.GenerationOptions(max_tokens=100),
)


def on_behalf_of(subject: str) -> tuple[tuple[str, bytes], ...]:
    return (("loremesh-principal-bin", principal_pb2.Principal(subject=subject).SerializeToString()),)


class Generator:
    """A generator behind a Unix socket, where principals are believed, with an engine that stops at gates."""

    def __init__(self, gates: Gates, admission: TokenAdmission, channel: grpc.aio.Channel) -> None:
        self.gates = gates
        self.admission = admission
        self.stub = generator_service_pb2_grpc.GeneratorServiceStub(channel)

    def generate(self, subject: str) -> asyncio.Task[str]:
        async def text() -> str:
            events = answers(self.stub.Generate, QUESTION, metadata=on_behalf_of(subject))
            return "".join([event.delta.text async for event in events])

        return asyncio.create_task(text())


@asynccontextmanager
async def generator(folder: Path, **settings: float) -> AsyncIterator[Generator]:
    gates = Gates()
    made = GeneratorSettings.model_validate(settings)
    admission = TokenAdmission(made)
    servicer = GeneratorServicer(GeneratorService(GatedModel(gates), made, admission))
    service = Service.of(
        generator_pb.DESCRIPTOR.services_by_name["GeneratorService"],
        generator_service_pb2_grpc.add_GeneratorServiceServicer_to_server,
        servicer,
    )
    options = ServerOptions(address=f"unix:{folder}/generator", trust=PeerTrust.SOCKET)
    async with (
        AgentServer("generator", [service], options) as server,
        grpc.aio.insecure_channel(server.target) as channel,
    ):
        yield Generator(gates, admission, channel)


async def test_who_floods_waits_and_another_is_served_at_once(tmp_path: Path) -> None:
    async with generator(tmp_path, tokens_in_flight=1100) as served_:
        served_.gates["second token"].close()
        flood = [served_.generate("flooder") for _ in range(40)]
        await until(lambda: served_.admission.waiting > 30)
        held = served_.gates["second token"]
        await until(lambda: held.waiting == 40 - served_.admission.waiting)
        before = held.waiting
        polite = served_.generate("polite")
        await until(lambda: held.waiting == before + 1)
        held.open()
        assert await polite == ANSWER
        assert set(await asyncio.gather(*flood)) == {ANSWER}
        assert (served_.admission.in_flight, served_.admission.principals) == (0, 0)


async def test_what_cannot_begin_in_time_is_refused_with_the_time_to_come_back(tmp_path: Path) -> None:
    async with generator(tmp_path, tokens_in_flight=110, queue_length=1, queue_seconds=0.2) as served_:
        served_.gates["first token"].close()
        running = served_.generate("polite")
        await until(lambda: served_.gates["first token"].waiting == 1)
        waiting = served_.generate("other")
        await until(lambda: served_.admission.waiting == 1)
        refusal = await refused(answers(served_.stub.Generate, QUESTION, metadata=on_behalf_of("other")))
        assert type(refusal.error) is Overloaded
        details = details_of(refusal.status)
        assert refusal.status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert details.keys() == {"ErrorInfo", "QuotaFailure", "RetryInfo"}
        assert details["ErrorInfo"].metadata == {"agent": "generator", "limit": "110"}
        assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
        with pytest.raises(Overloaded):
            await waiting
        served_.gates["first token"].open()
        assert await running == ANSWER


async def test_who_leaves_the_queue_makes_place_for_the_next(tmp_path: Path) -> None:
    async with generator(tmp_path, tokens_in_flight=110, queue_length=1) as served_:
        served_.gates["first token"].close()
        running = served_.generate("polite")
        await until(lambda: served_.gates["first token"].waiting == 1)
        waiting = served_.generate("other")
        await until(lambda: served_.admission.waiting == 1)
        waiting.cancel()
        await until(lambda: served_.admission.waiting == 0)
        following = served_.generate("other")
        await until(lambda: served_.admission.waiting == 1)
        served_.gates["first token"].open()
        assert await asyncio.gather(running, following) == [ANSWER, ANSWER]


async def test_the_coordinator_hands_the_refusal_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gates, _ = install(monkeypatch)
    gates["first token"].close()
    settings = GeneratorSettings(tokens_in_flight=100, queue_seconds=0.05)
    async with served(tmp_path, generator=settings) as client:
        target = client.mesh.targets["coordinator"]
        first = Asking(target, timeout=20, route="ROUTE_DIRECT")
        await until(lambda: gates["first token"].waiting == 1)
        second = Asking(target, timeout=20, route="ROUTE_DIRECT")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await second.ended()
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "tokens in flight" in (raised.value.details() or "")
        gates["first token"].open()
        await first.ended()
        assert first.text == ANSWER
