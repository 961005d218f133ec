"""The real agents, on loopback, over stores of their own."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from google.rpc import status_pb2
from loremesh.v1 import (
    coordinator_service_pb2_grpc,
    document_pb2,
    generator_service_pb2_grpc,
    knowledge_service_pb2_grpc,
    retriever_service_pb2_grpc,
    synthesizer_service_pb2_grpc,
)
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb

from loremesh_agents.bootstrap.serve import Mesh, running
from loremesh_agents.bootstrap.settings import Settings, StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import LoremeshError
from loremesh_agents.runtime.channel import Peer
from loremesh_agents.runtime.errors import from_rpc_error_for_user

DOCUMENTS = {
    "acme": ("Acme Corporation", "Acme Corporation makes anvils. Jane Doe has led Acme Corporation since 2019."),
    "jane": ("Jane Doe", "Jane Doe was born in Lisbon in 1975. She studied chemistry."),
    "lisbon": ("Lisbon", "Lisbon is the capital of Portugal."),
    "anvil": ("Anvil", "An anvil is a block of steel on which metal is shaped."),
}


class Client:
    """Stubs to all agents of a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._channels = {server.agent: grpc.aio.insecure_channel(server.target) for server in mesh.servers}
        self.coordinator = coordinator_service_pb2_grpc.CoordinatorServiceStub(self._channels["coordinator"])
        self.retriever = retriever_service_pb2_grpc.RetrieverServiceStub(self._channels["retriever"])
        self.synthesizer = synthesizer_service_pb2_grpc.SynthesizerServiceStub(self._channels["synthesizer"])
        self.generator = generator_service_pb2_grpc.GeneratorServiceStub(self._channels["generator"])
        self.knowledge = knowledge_service_pb2_grpc.KnowledgeServiceStub(self._channels["knowledge"])

    async def ingest(
        self, documents: dict[str, tuple[str, str]], collection: str = "docs"
    ) -> list[knowledge_pb.DocumentResult]:
        requests = [knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection=collection))]
        for document_id, (title, text) in documents.items():
            sections = [document_pb2.Section(text=text)]
            content = document_pb2.StructuredText(sections=sections)
            found = document_pb2.Document(document_id=document_id, title=title, text=content)
            requests.append(knowledge_pb.IngestRequest(document=found))
        return [event.result async for event in self.knowledge.Ingest(iter(requests)) if event.HasField("result")]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


def settings_for(folder: Path, **changes: object) -> Settings:
    return Settings(stores=StoreSettings(data=folder, embedder="none"), **changes)


@asynccontextmanager
async def served(folder: Path, **changes: object) -> AsyncIterator[Client]:
    """A mesh over a folder, within the block."""
    async with running(("all",), settings_for(folder, **changes)) as mesh:
        client = Client(mesh)
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Starts a mesh over a folder of its own and gives its client."""
    async with AsyncExitStack() as stack:

        async def begin(**changes: object) -> Client:
            mesh = await stack.enter_async_context(running(("all",), settings_for(tmp_path, **changes)))
            client = Client(mesh)
            stack.push_async_callback(client.close)
            return client

        yield begin


@pytest.fixture
async def client(start: Callable[..., object]) -> Client:
    """A mesh with the documents above."""
    found: Client = await start()
    await found.ingest(DOCUMENTS)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """One mesh with the documents above for all tests of a module; they leave these as they are, and run in the module's loop."""
    async with served(tmp_path_factory.mktemp("shared")) as found:
        await found.ingest(DOCUMENTS)
        yield found


_PEER = Peer("agent", decode=from_rpc_error_for_user)


async def answers(
    method: object, *requests: Message, metadata: tuple[tuple[str, bytes], ...] = ()
) -> AsyncGenerator[Message]:
    """What a method of whatever shape answers, through the call layer of the agents: errors come as domain errors."""

    async def sent() -> AsyncGenerator[Message]:
        for request in requests:
            yield request

    match method:
        case grpc.aio.UnaryUnaryMultiCallable():
            yield await _PEER.unary(method, requests[0], Deadline.after(20), metadata)
            return
        case grpc.aio.UnaryStreamMultiCallable():
            stream = _PEER.stream(method, requests[0], None, metadata)
        case _:
            stream = _PEER.duplex(method, sent(), None, metadata)
    async with stream:
        async for answer in stream:
            yield answer


def status_of(error: LoremeshError) -> status_pb2.Status:
    """The details from which an error of `answers` was decoded; they agree with the status of the call."""
    cause = error.__cause__
    assert isinstance(cause, grpc.aio.AioRpcError)
    (details,) = [value for key, value in cause.trailing_metadata() if key == "grpc-status-details-bin"]
    assert len(details) <= 4096
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (cause.code().value[0], cause.details())
    return status
