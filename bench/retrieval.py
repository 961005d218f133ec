"""Quality and time of the retriever, through gRPC, on a data set in BEIR layout.

The folder holds corpus.jsonl (`_id`, `title`, `text`), queries.jsonl (`_id`, `text`) and qrels/test.tsv (query, document, score; a header).
The knowledge agent and the retriever are a process each, as `loremesh serve` runs them. Each document is ingested through Ingest and each query asked
through Retrieve, one at a time.

Recall at n is the mean over queries of the share of their relevant documents among the first n documents; documents count once, at their best
passage. nDCG has gains 2^score - 1 and discounts log2(rank + 1).

Each query is asked twice: for 30 passages, which are scored, and as a caller asks who says nothing of how many (8), which is timed.

The corpus is ingested in streams of 1,024 documents, and after each the encoder by itself is measured on the first 256 of them, which is how many the agent
encodes at once.
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
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import uvloop
from loremesh.v1 import retriever_service_pb2
from loremesh.v1 import retriever_service_pb2_grpc as retriever_grpc

from bench import baselines, beir, processes
from bench.beir import Query
from loremesh_agents.bootstrap.backends import open_embedder
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document
from loremesh_agents.domain.passages import cut, full_text
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.logs import configure_logging

_PROFILES = {
    "fast": retriever_service_pb2.RETRIEVAL_PROFILE_FAST,
    "balanced": retriever_service_pb2.RETRIEVAL_PROFILE_BALANCED,
    "thorough": retriever_service_pb2.RETRIEVAL_PROFILE_THOROUGH,
}
_DEPTH = 30
"""Passages asked for: enough for ten documents even where some have several passages."""
_WARM = 10
_TOGETHER = 1024
"""Documents that are ingested in one stream."""
_BUDGET = 30.0
_ENCODE_BUDGET = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the retriever gave: documents by rank, seconds at the client, seconds of them in which the question was encoded."""

    documents: tuple[str, ...]
    seconds: float
    encoding: float


@dataclass(slots=True)
class Indexing:
    """What the ingestion took, and its speed over that of the encoder by itself, stream by stream."""

    passages: int = 0
    seconds: float = 0.0
    ratios: list[float] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--encoder", choices=("minilm", "none"), default="minilm")
    parser.add_argument("--profile", choices=tuple(_PROFILES), default="balanced")
    parser.add_argument("--no-titles", action="store_true", help="Ingest the texts alone.")
    parser.add_argument("--queries", type=int, default=0, help="Only the first so many queries; 0 for all.")
    parser.add_argument("--failures", type=Path, help="JSONL file for the queries with less than all at 5.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    if arguments.data is None:
        sys.exit("retrieval needs --data DIR, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    configure_logging("ERROR", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments))


def quality(queries: Sequence[Query], found: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Recalls, the share of queries with all their documents among the first five, nDCG, and a standard error (None of one query); in per cent."""
    columns: dict[str, list[float]] = defaultdict(list)
    for query, documents in zip(queries, found, strict=True):
        for depth in (2, 5, 10):
            hits = sum(document in query.relevant for document in documents[:depth])
            columns[f"recall_at_{depth}"].append(hits / len(query.relevant))
        columns["all_gold_at_5"].append(float(set(query.relevant) <= set(documents[:5])))
        gain = sum(
            (2 ** query.relevant.get(document, 0) - 1) / math.log2(rank + 1)
            for rank, document in enumerate(documents[:10], start=1)
        )
        best = sorted(query.relevant.values(), reverse=True)[:10]
        ideal = sum((2**score - 1) / math.log2(rank + 1) for rank, score in enumerate(best, start=1))
        columns["ndcg_at_10"].append(gain / ideal)
    figures = {name: round(100 * statistics.fmean(values), 2) for name, values in columns.items()}
    recalls = columns["recall_at_5"]
    error = statistics.stdev(recalls) / math.sqrt(len(recalls)) if len(recalls) > 1 else None
    return {**figures, "se_recall_at_5": None if error is None else round(100 * error, 2)}


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    queries = beir.read_queries(arguments.data)
    queries = queries[: arguments.queries] if arguments.queries else queries
    documents = beir.read_documents(arguments.data / "corpus.jsonl", titles=not arguments.no_titles)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url = "none" if arguments.encoder == "none" else "minilm://"
        environment = {"LOREMESH_STORES__DATA": folder, "LOREMESH_STORES__EMBEDDER": url}
        serve = ("loremesh_agents.cli", "serve")
        knowledge, retriever = [
            await stack.enter_async_context(processes.running(*serve, agent, "--free-ports", **environment))
            for agent in ("knowledge", "retriever")
        ]
        stores = StoreSettings(data=Path(folder), embedder=url)
        embedder = open_embedder(stores)
        if embedder is not None:
            stack.push_async_callback(embedder.close)
        channels = [open_channel(program.target) for program in (knowledge, retriever)]
        for channel in channels:
            stack.push_async_callback(channel.close, None)

        indexing = await _index(documents, channels[0], embedder)
        profile = _PROFILES[arguments.profile]
        for query in queries[:_WARM]:
            await _ask(channels[1], query.text, profile)
        answers = [await _ask(channels[1], query.text, profile, k=_DEPTH) for query in queries]
        timed = [await _ask(channels[1], query.text, profile) for query in queries]
        memory = sum(process.memory_info().rss for process in retriever.processes())
        others = await baselines.rankings(stores, embedder, [query.text for query in queries])
    if arguments.failures is not None:
        _write_failures(arguments.failures, queries, answers)
    times = sorted(answer.seconds for answer in timed)
    return {
        "benchmark": "retrieval",
        "data": arguments.data.name,
        "encoder": arguments.encoder if embedder is not None else "none",
        "profile": arguments.profile,
        "titles": not arguments.no_titles,
        "queries": len(queries),
        "passages": indexing.passages,
        **quality(queries, [answer.documents for answer in answers]),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p95_ms": round(1000 * times[math.ceil(0.95 * len(times)) - 1], 2),
        "overhead_p50_ms": round(1000 * statistics.median(answer.seconds - answer.encoding for answer in timed), 2),
        "index_s": round(indexing.seconds, 2),
        "passages_per_s": round(indexing.passages / indexing.seconds, 1),
        "encoder_ratio": round(statistics.median(indexing.ratios), 3) if indexing.ratios else None,
        "rss_mb": round(memory / 2**20, 1),
        **{name: quality(queries, others[name]) if name in others else None for name in baselines.NAMES},
    }


async def _index(documents: Sequence[Document], channel: grpc.aio.Channel, embedder: Embedder | None) -> Indexing:
    """Ingests, and measures the encoder in between: so whatever else the machine does meets both."""
    batch = KnowledgeSettings().batch_documents
    indexing = Indexing()
    if embedder is not None:
        await _encoding_speed(embedder, _texts(documents[:_WARM]))
    for start in range(0, len(documents), _TOGETHER):
        stream = documents[start : start + _TOGETHER]
        began = time.perf_counter()
        indexing.passages += await beir.ingest(channel, stream)
        seconds = time.perf_counter() - began
        indexing.seconds += seconds
        if embedder is not None:
            speed = sum(map(len, _texts(stream))) / seconds
            indexing.ratios.append(speed / await _encoding_speed(embedder, _texts(stream[:batch])))
    return indexing


async def _encoding_speed(embedder: Embedder, texts: Sequence[str]) -> float:
    """Characters a second."""
    began = time.perf_counter()
    await embedder.embed(texts, deadline=Deadline.after(_ENCODE_BUDGET))
    return sum(map(len, texts)) / (time.perf_counter() - began)


def _texts(documents: Sequence[Document]) -> list[str]:
    """What the knowledge agent encodes of documents."""
    return [
        full_text(document.title, passage.headings, passage.text) for document in documents for passage in cut(document)
    ]


async def _ask(channel: grpc.aio.Channel, question: str, profile: Any, *, k: int = 0) -> Answer:
    stub: retriever_grpc.RetrieverServiceAsyncStub = retriever_grpc.RetrieverServiceStub(channel)
    options = retriever_service_pb2.RetrievalOptions(k=k, profile=profile)
    request = retriever_service_pb2.RetrieveRequest(question=question, collections=[beir.COLLECTION], options=options)
    documents: dict[str, None] = {}
    stages: Mapping[str, float] = {}
    began = time.perf_counter()
    async with Peer("retriever").stream(stub.Retrieve, request, Deadline.after(_BUDGET)) as responses:
        async for response in responses:
            if response.HasField("evidence"):
                documents.setdefault(response.evidence.passage.document_id)
            else:
                timings = response.completion.timings
                stages = {timing.stage: timing.duration.ToNanoseconds() / 1e9 for timing in timings}
    return Answer(tuple(documents), time.perf_counter() - began, stages.get("encode", 0.0))


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
