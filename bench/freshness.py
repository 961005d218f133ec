"""How soon, and how surely, an acknowledged document is found by another process.

The knowledge agent and the retriever are a process each over one embedded store. One client ingests documents one by one while others ask 50 questions a
second. After one acknowledgement, plain requests are made, one after the other, until one finds the document: that time, of one request at the least, is
`visible_ms`. After the next one, a single request with `min_revision` must find it, else it counts as `lost`; no other request has asked for it before.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import grpc
import uvloop
from loremesh.v1 import collection_pb2, document_pb2
from loremesh.v1 import knowledge_service_pb2 as knowledge_pb
from loremesh.v1 import knowledge_service_pb2_grpc as knowledge_grpc
from loremesh.v1 import retriever_service_pb2 as pb
from loremesh.v1 import retriever_service_pb2_grpc as retriever_grpc

from bench import beir, processes

_QUESTIONS_PER_SECOND = 50
_PATIENCE = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--documents", type=int, default=400, help="Documents that are ingested one by one.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    if arguments.data is None:
        sys.exit("freshness needs --data DIR, a folder with corpus.jsonl, for a collection of some size")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.data, arguments.documents))


async def _measure(data: Path, documents: int) -> dict[str, Any]:
    serve = ("loremesh_agents.cli", "serve")
    with tempfile.TemporaryDirectory() as folder:
        stores = {"LOREMESH_STORES__DATA": folder, "LOREMESH_STORES__EMBEDDER": "none"}
        async with (
            processes.running(*serve, "knowledge", "--free-ports", **stores) as knowledge,
            processes.running(*serve, "retriever", "--free-ports", **stores) as retriever,
            grpc.aio.insecure_channel(knowledge.target) as writing,
            grpc.aio.insecure_channel(retriever.target) as reading,
        ):
            passages = await beir.ingest(writing, beir.read_documents(data / "corpus.jsonl"))
            found = _Finder(reading)
            async with asyncio.TaskGroup() as group:
                load = group.create_task(_load(found))
                visible, lost = await _write(writing, found, documents)
                load.cancel()
    visible.sort()
    return {
        "benchmark": "freshness",
        "passages": passages,
        "documents": documents,
        "lost": lost,
        "visible_ms_p50": round(1e3 * statistics.median(visible), 2),
        "visible_ms_p99": round(1e3 * visible[int(0.99 * (len(visible) - 1))], 2),
        "questions_per_s": round(found.asked / found.seconds, 1),
    }


class _Finder:
    """Asks the retriever."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = retriever_grpc.RetrieverServiceStub(channel)
        self.asked = 0
        self.seconds = 0.0

    async def finds(self, word: str, revision: collection_pb2.CollectionRevision | None = None) -> bool:
        """Whether the word's document is among the evidence; at a revision or later, if one is given."""
        consistency = (
            None
            if revision is None
            else collection_pb2.Consistency(min_revision=collection_pb2.Consistency.MinRevision(revisions=[revision]))
        )
        request = pb.RetrieveRequest(
            question=f"Where is {word}?", collections=[beir.COLLECTION], consistency=consistency
        )
        events = [event async for event in self._stub.Retrieve(request, timeout=_PATIENCE)]
        return any(event.evidence.passage.document_id == word for event in events)


async def _load(found: _Finder) -> None:
    """Fifty questions a second, whether or not those before them are answered."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(found.finds("the director of a film"))
            found.asked += 1
            found.seconds = time.monotonic() - began
            due = began + found.asked / _QUESTIONS_PER_SECOND
            await asyncio.sleep(max(0.0, due - time.monotonic()))


async def _write(channel: grpc.aio.Channel, found: _Finder, documents: int) -> tuple[list[float], int]:
    """Seconds from acknowledgements until the document is found, and how many were not found at their revision."""
    written: asyncio.Queue[str | None] = asyncio.Queue(1)

    async def requests() -> AsyncGenerator[knowledge_pb.IngestRequest]:
        yield knowledge_pb.IngestRequest(start=knowledge_pb.IngestStart(collection=beir.COLLECTION))
        while (word := await written.get()) is not None:
            section = document_pb2.Section(text=f"The {word} is in the {word} cupboard.")
            text = document_pb2.StructuredText(sections=[section])
            yield knowledge_pb.IngestRequest(document=document_pb2.Document(document_id=word, title=word, text=text))

    visible: list[float] = []
    lost = 0
    count = 0
    await written.put("zyzzyva0")
    async for event in knowledge_grpc.KnowledgeServiceStub(channel).Ingest(requests()):
        if not event.HasField("result"):
            continue
        acknowledged = time.monotonic()
        word = event.result.document_id
        count += 1
        if count % 2:
            while not await found.finds(word):
                if time.monotonic() - acknowledged > _PATIENCE:
                    sys.exit(f"{word} was acknowledged and is not found after {_PATIENCE:g} s")
            visible.append(time.monotonic() - acknowledged)
        else:
            lost += not await found.finds(word, event.result.revision)
        await written.put(f"zyzzyva{count}" if count < documents else None)
    return visible, lost
