"""A retriever that always finds the same eight passages, at once; run as a program it serves them over gRPC."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import uvloop
from loremesh.v1 import retriever_service_pb2, retriever_service_pb2_grpc

from loremesh_agents.domain.answer import Completion, FinishReason, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.evidence import EdgeKind, Evidence, PathStep, Why
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.retriever.servicer import RetrieverServicer
from loremesh_agents.retriever.settings import RetrieverSettings
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service

_TOWNS = ("Lisbon", "Turin", "Bergen", "Ghent", "Split", "Tartu", "Cork", "Graz")


def evidence() -> tuple[Evidence, ...]:
    """Passages of some 600 characters, each from a document of its own."""
    return tuple(_piece(rank, town) for rank, town in enumerate(_TOWNS, start=1))


def _piece(rank: int, town: str) -> Evidence:
    text = " ".join(
        f"Record {rank}-{number} of the archive of {town} names the {number + 2} mills on the river and who owned each."
        for number in range(6)
    )
    passage = Passage(
        collection="archives",
        passage_id=f"{town.lower()}#0",
        document_id=town.lower(),
        title=f"Archive of {town}",
        headings=("Rivers", "Mills"),
        text=text,
        uri=f"https://archives.example/{town.lower()}",
        ordinal=0,
        start_byte=0,
        end_byte=len(text.encode()),
        metadata={"town": town},
    )
    path = (PathStep(EdgeKind.NAMED_IN_QUESTION, entity=town), PathStep(EdgeKind.TITLE, passage_id=passage.passage_id))
    return Evidence(f"E{rank}", passage, 1 / rank, rank, Why(0.5, 1 / rank, 0.25, path))


class CannedRetriever:
    """Stands in for the retriever's use case."""

    settings = RetrieverSettings()

    def __init__(self) -> None:
        self._evidence = evidence()

    async def retrieve(
        self, request: RetrievalRequest, *, principal: Principal, deadline: Deadline
    ) -> AsyncGenerator[Evidence | Completion]:
        for piece in self._evidence[: request.k]:
            yield piece
        yield Completion(FinishReason.STOP, Usage(candidate_count=100, evidence_count=len(self._evidence)))


async def _serve() -> None:
    service: Any = CannedRetriever()
    descriptor = retriever_service_pb2.DESCRIPTOR.services_by_name["RetrieverService"]
    add = retriever_service_pb2_grpc.add_RetrieverServiceServicer_to_server
    services = [Service.of(descriptor, add, RetrieverServicer(service))]
    async with AgentServer("retriever", services, ServerOptions()) as server:
        print("retriever", server.target, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
