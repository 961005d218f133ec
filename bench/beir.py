"""Data sets in BEIR layout, and how their corpora get into a collection."""

import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
from loremesh.v1 import document_pb2, knowledge_service_pb2
from loremesh.v1 import knowledge_service_pb2_grpc as knowledge_grpc

from loremesh_agents.runtime.channel import Peer

COLLECTION = "bench"


def rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


async def ingest(channel: grpc.aio.Channel, corpus: Path) -> int:
    """Ingests a corpus.jsonl; gives the number of passages. A document that fails ends the program."""
    stub: knowledge_grpc.KnowledgeServiceAsyncStub = knowledge_grpc.KnowledgeServiceStub(channel)

    async def requests() -> AsyncGenerator[knowledge_service_pb2.IngestRequest]:
        start = knowledge_service_pb2.IngestStart(collection=COLLECTION)
        yield knowledge_service_pb2.IngestRequest(start=start)
        for row in rows(corpus):
            text = document_pb2.StructuredText(sections=[document_pb2.Section(text=row["text"])])
            document = document_pb2.Document(document_id=row["_id"], title=row["title"], text=text)
            yield knowledge_service_pb2.IngestRequest(document=document)

    passages = 0
    async with Peer("knowledge").duplex(stub.Ingest, requests(), None) as responses:
        async for response in responses:
            if not response.HasField("result"):
                continue
            if response.result.outcome == knowledge_service_pb2.DOCUMENT_OUTCOME_FAILED:
                sys.exit(f"document {response.result.document_id} failed: {response.result.error.message}")
            passages += response.result.passage_count
    return passages
