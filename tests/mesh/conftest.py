"""The real agents, on loopback, over stores of their own."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
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
    return Settings(stores=StoreSettings(data=folder, embedder="none"), **changes)  # type: ignore[arg-type]


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
    found: Client = await start()  # type: ignore[misc]
    await found.ingest(DOCUMENTS)
    return found
