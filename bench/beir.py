"""Data sets in BEIR layout, and how their corpora get into a collection."""

import json
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from loremesh.v1 import document_pb2, knowledge_service_pb2
from loremesh.v1 import knowledge_service_pb2_grpc as knowledge_grpc

from loremesh_agents.domain.document import Document, Section
from loremesh_agents.runtime.channel import Peer

COLLECTION = "bench"


@dataclass(frozen=True, slots=True)
class Query:
    """A question, its relevant documents with their gains, and its kind where the data set has kinds."""

    text: str
    relevant: Mapping[str, int]
    kind: str


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def read_queries(data: Path) -> list[Query]:
    """The queries that have relevant documents."""
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with (data / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, document, score = line.split()
            if int(score) > 0:
                relevant[query][document] = int(score)
    return [
        Query(row["text"], relevant[row["_id"]], str(row.get("metadata", {}).get("type", "")))
        for row in rows(data / "queries.jsonl")
        if row["_id"] in relevant
    ]


def read_documents(corpus: Path, *, titles: bool = True) -> list[Document]:
    """The documents of a corpus.jsonl, each of one section."""
    return [
        Document(
            document_id=row["_id"],
            title=str(row.get("title", "")) if titles else "",
            sections=(Section(row["text"]),),
        )
        for row in rows(corpus)
    ]


async def ingest(channel: grpc.aio.Channel, documents: Iterable[Document]) -> int:
    """Ingests documents; gives the number of passages. A document that fails ends the program."""
    stub: knowledge_grpc.KnowledgeServiceAsyncStub = knowledge_grpc.KnowledgeServiceStub(channel)

    async def requests() -> AsyncGenerator[knowledge_service_pb2.IngestRequest]:
        start = knowledge_service_pb2.IngestStart(collection=COLLECTION)
        yield knowledge_service_pb2.IngestRequest(start=start)
        for document in documents:
            sections = [document_pb2.Section(text=section.text) for section in document.sections]
            message = document_pb2.Document(
                document_id=document.document_id,
                title=document.title,
                text=document_pb2.StructuredText(sections=sections),
            )
            yield knowledge_service_pb2.IngestRequest(document=message)

    passages = 0
    async with Peer("knowledge").duplex(stub.Ingest, requests(), None) as responses:
        async for response in responses:
            if not response.HasField("result"):
                continue
            if response.result.outcome == knowledge_service_pb2.DOCUMENT_OUTCOME_FAILED:
                sys.exit(f"document {response.result.document_id} failed: {response.result.error.message}")
            passages += response.result.passage_count
    return passages
