"""Quality and time of the retriever, through gRPC, on a data set in BEIR layout.

The folder holds corpus.jsonl (`_id`, `title`, `text`), queries.jsonl (`_id`, `text`) and qrels/test.tsv (query, document, score; a header).
Each document is ingested through the knowledge agent's Ingest and each query asked through the retriever's Retrieve, one at a time, both served in
this process on loopback as `loremesh serve` does it.

Recall at n is the mean over queries of the share of their relevant documents among the first n documents; documents count once, at their best
passage. nDCG has gains 2^score - 1 and discounts log2(rank + 1).
"""

import argparse
import asyncio
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import uvloop
from loremesh.v1 import document_pb2, knowledge_service_pb2, retriever_service_pb2
from loremesh.v1 import knowledge_service_pb2_grpc as knowledge_grpc
from loremesh.v1 import retriever_service_pb2_grpc as retriever_grpc

from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import load
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.logs import configure_logging

_COLLECTION = "bench"
_DEPTH = 30
"""Passages asked for: enough for ten documents even where some have several passages."""
_BUDGET = 30.0


@dataclass(frozen=True, slots=True)
class Query:
    """A question, its relevant documents with their gains, and its kind where the data set has kinds."""

    text: str
    relevant: Mapping[str, int]
    kind: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What the retriever gave: documents by rank, seconds at the client, seconds that the retriever itself counted."""

    documents: tuple[str, ...]
    seconds: float
    inside: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", choices=("minilm", "none"), default="minilm")
    parser.add_argument("--queries", type=int, default=0, help="Only the first so many queries; 0 for all.")
    parser.add_argument("--failures", type=Path, help="JSONL file for the queries with less than all at 5.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.data is None:
        sys.exit("retrieval needs --data DIR, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    configure_logging("ERROR", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments))


def read_queries(data: Path) -> list[Query]:
    relevant: dict[str, dict[str, int]] = defaultdict(dict)
    with (data / "qrels" / "test.tsv").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            query, document, score = line.split()
            if int(score) > 0:
                relevant[query][document] = int(score)
    return [
        Query(row["text"], relevant[row["_id"]], str(row.get("metadata", {}).get("type", "")))
        for row in _rows(data / "queries.jsonl")
        if relevant[row["_id"]]
    ]


def quality(queries: Sequence[Query], found: Sequence[Sequence[str]]) -> dict[str, float]:
    """Recalls, the share of queries with all their documents among the first five, and nDCG; in per cent."""
    figures: dict[str, list[float]] = defaultdict(list)
    for query, documents in zip(queries, found, strict=True):
        for depth in (2, 5, 10):
            hits = sum(document in query.relevant for document in documents[:depth])
            figures[f"recall_at_{depth}"].append(hits / len(query.relevant))
        figures["all_gold_at_5"].append(float(set(query.relevant) <= set(documents[:5])))
        gain = sum(
            (2 ** query.relevant.get(document, 0) - 1) / math.log2(rank + 1)
            for rank, document in enumerate(documents[:10], start=1)
        )
        best = sorted(query.relevant.values(), reverse=True)[:10]
        ideal = sum((2**score - 1) / math.log2(rank + 1) for rank, score in enumerate(best, start=1))
        figures["ndcg_at_10"].append(gain / ideal)
    return {name: round(100 * statistics.fmean(values), 2) for name, values in figures.items()}


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    queries = read_queries(arguments.data)
    queries = queries[: arguments.queries] if arguments.queries else queries
    with tempfile.TemporaryDirectory() as folder:
        stores = {"data": folder, "embedder": "none" if arguments.encoder == "none" else "minilm://"}
        settings = load(None, {"stores": stores}).settings
        async with running(("knowledge", "retriever"), settings) as mesh:
            knowledge = open_channel(mesh.targets["knowledge"])
            retriever = open_channel(mesh.targets["retriever"])
            try:
                began = time.perf_counter()
                passages = await _ingest(knowledge, arguments.data / "corpus.jsonl")
                index_s = time.perf_counter() - began
                for query in queries[:5]:
                    await _ask(retriever, query.text)
                answers = [await _ask(retriever, query.text) for query in queries]
            finally:
                await retriever.close(None)
                await knowledge.close(None)
    if arguments.failures is not None:
        _write_failures(arguments.failures, queries, answers)
    times = sorted(answer.seconds for answer in answers)
    return {
        "benchmark": "retrieval",
        "data": arguments.data.name,
        "encoder": arguments.encoder,
        "queries": len(queries),
        "passages": passages,
        **quality(queries, [answer.documents for answer in answers]),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p95_ms": round(1000 * times[min(len(times) - 1, math.ceil(0.95 * len(times)) - 1)], 2),
        "overhead_p50_ms": round(1000 * statistics.median(answer.seconds - answer.inside for answer in answers), 2),
        "index_s": round(index_s, 2),
        "passages_per_s": round(passages / index_s, 1),
    }


async def _ingest(channel: grpc.aio.Channel, corpus: Path) -> int:
    stub: knowledge_grpc.KnowledgeServiceAsyncStub = knowledge_grpc.KnowledgeServiceStub(channel)

    async def requests() -> AsyncGenerator[knowledge_service_pb2.IngestRequest]:
        start = knowledge_service_pb2.IngestStart(collection=_COLLECTION)
        yield knowledge_service_pb2.IngestRequest(start=start)
        for row in _rows(corpus):
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


async def _ask(channel: grpc.aio.Channel, question: str) -> Answer:
    stub: retriever_grpc.RetrieverServiceAsyncStub = retriever_grpc.RetrieverServiceStub(channel)
    request = retriever_service_pb2.RetrieveRequest(
        question=question, collections=[_COLLECTION], options=retriever_service_pb2.RetrievalOptions(k=_DEPTH)
    )
    documents: dict[str, None] = {}
    inside = 0.0
    began = time.perf_counter()
    async with Peer("retriever").stream(stub.Retrieve, request, Deadline.after(_BUDGET)) as responses:
        async for response in responses:
            if response.HasField("evidence"):
                documents.setdefault(response.evidence.passage.document_id)
            else:
                inside = next(
                    timing.duration.ToNanoseconds() / 1e9
                    for timing in response.completion.timings
                    if timing.stage == "total"
                )
    return Answer(tuple(documents), time.perf_counter() - began, inside)


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _write_failures(path: Path, queries: Sequence[Query], answers: Sequence[Answer]) -> None:
    with path.open("w", encoding="utf-8") as out:
        for query, answer in zip(queries, answers, strict=True):
            missing = [document for document in query.relevant if document not in answer.documents[:5]]
            if missing:
                ranks = {
                    document: answer.documents.index(document) + 1
                    for document in missing
                    if document in answer.documents
                }
                row = {
                    "question": query.text,
                    "kind": query.kind,
                    "missing": missing,
                    "ranks": ranks,
                    "first": answer.documents[:5],
                }
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
