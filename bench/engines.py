"""Graph engines side by side: how fast documents get in, and how fast questions are answered, without an encoder.

The servers are the tests' own (`tests/engines/servers`): installed and started when their engine's turn comes. Each engine gets the first documents of a data
set in batches through the graph store, and the first questions through the retriever's service. Two loaders that know nothing of documents stand beside it: the
bare one sends exactly the changes that the store sent, batch by batch, to the emptied engine; the other merges a sample of their rows into that, one by one.
"""

import argparse
import asyncio
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop

from bench import beir
from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import Changes, GraphEngine
from loremesh_agents.adapters.text.sqlite import SqliteTextIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.passages import analyse, cut
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import Profile, RetrievalRequest
from loremesh_agents.knowledge.ingestion import content_hash
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.text import TextIndex
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings
from loremesh_agents.runtime.logs import configure_logging
from tests.engines.graph_engines import ENGINES, text_index

_NAMES = ("sqlite", "neo4j", "janusgraph", "janusgraph-cassandra", "neptune-stand-in")
_COLLECTION = "bench"
_TOGETHER = 256
"""Documents of a batch, as the knowledge agent writes them."""
_WARMING = 1024
_ROWS = 400
"""Rows that are merged one by one."""
_WARM = 5
_SECONDS = 600.0


class _Recorded:
    """An engine that remembers the changes that it was sent."""

    def __init__(self, engine: GraphEngine) -> None:
        self._engine = engine
        self.sent: list[Changes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        self.sent.append(changes)
        await self._engine.apply(changes, unless=unless, deadline=deadline)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--engines", default=",".join(_NAMES), help="Engines, parted by commas.")
    parser.add_argument("--documents", type=int, default=6000, help="Only the first so many documents.")
    parser.add_argument("--queries", type=int, default=50, help="Only the first so many questions.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    if arguments.data is None:
        sys.exit("engines needs --data DIR, a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv")
    configure_logging("ERROR", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments))


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    documents = beir.read_documents(arguments.data / "corpus.jsonl")[: arguments.documents]
    writes = [_write(document) for document in documents]
    questions = [query.text for query in beir.read_queries(arguments.data)[: arguments.queries]]
    found: dict[str, Any] = {}
    for name in arguments.engines.split(","):
        found[name] = await (_sqlite(writes, questions) if name == "sqlite" else _served(name, writes, questions))
        print(json.dumps({name: found[name]}), file=sys.stderr, flush=True)
    passages = sum(len(write.passages) for write in writes)
    return {"benchmark": "engines", "data": arguments.data.name, "passages": passages, "engines": found}


def _write(document: Document) -> DocumentWrite:
    hashed = dataclasses.replace(document, content_hash=content_hash(document))
    return DocumentWrite(hashed, tuple(analyse(hashed, passage) for passage in cut(hashed)))


async def _sqlite(writes: Sequence[DocumentWrite], questions: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteGraphStore(Path(folder) / "graph.db")
        speed = await _ingest(store, writes)
        asked = await _retrieve(store, SqliteTextIndex(store), questions)
        await store.close()
    return {"ingest_per_s": speed, "bare_ratio": None, "row_ratio": None, **asked, "round_trips": None}


async def _served(name: str, writes: Sequence[DocumentWrite], questions: Sequence[str]) -> dict[str, Any]:
    async with ENGINES[name]() as engine:
        # A server that has just started compiles its code: that is nobody's speed.
        warming = VersionedGraphStore(engine)
        await _ingest(warming, writes[:_WARMING])
        await _retrieve(warming, text_index(engine, warming), questions, strict=False)
    async with ENGINES[name]() as engine:
        recorded = _Recorded(engine)
        store = VersionedGraphStore(recorded)
        speed = await _ingest(store, writes)
        before = engine.requests
        asked = await _retrieve(store, text_index(engine, store), questions)
        trips = (engine.requests - before) / (len(questions) + min(_WARM, len(questions)))
    passages = sum(len(write.passages) for write in writes)
    rows = [row for changes in recorded.sent for row in _one_by_one(changes)]
    sample = rows[:: max(len(rows) // _ROWS, 1)]
    async with ENGINES[name]() as engine:
        bare = passages / await _timed(engine, recorded.sent)
        singly = passages / (await _timed(engine, sample) * len(rows) / len(sample))
    return {
        "ingest_per_s": speed,
        "bare_ratio": round(speed / bare, 3),
        "row_ratio": round(speed / singly, 1),
        **asked,
        "round_trips": round(trips, 1),
    }


async def _ingest(store: GraphStore, writes: Sequence[DocumentWrite]) -> float:
    """Passages a second."""
    began = time.perf_counter()
    for start in range(0, len(writes), _TOGETHER):
        batch = writes[start : start + _TOGETHER]
        await store.write(_COLLECTION, batch, embedding_model="", deadline=Deadline.after(_SECONDS))
    return round(sum(len(write.passages) for write in writes) / (time.perf_counter() - began), 1)


async def _retrieve(
    store: GraphStore, text: TextIndex, questions: Sequence[str], *, strict: bool = True
) -> dict[str, float]:
    service = RetrieverService(store, text, None, None, RetrieverSettings())
    times: list[float] = []
    for question in [*questions[:_WARM], *questions]:
        request = RetrievalRequest(question, (_COLLECTION,), profile=Profile.FAST)
        began = time.perf_counter()
        events = service.retrieve(request, principal=ANONYMOUS, deadline=Deadline.after(_SECONDS))
        given = [event async for event in events if isinstance(event, Evidence)]
        times.append(1000 * (time.perf_counter() - began))
        if strict and not given:
            raise RuntimeError(f"no evidence for {question!r}")
    times = sorted(times[min(_WARM, len(questions)) :])
    return {
        "retrieve_p50_ms": round(statistics.median(times), 2),
        "retrieve_p95_ms": round(times[round(0.95 * (len(times) - 1))], 2),
    }


async def _timed(engine: GraphEngine, batches: Sequence[Changes]) -> float:
    """Seconds that an engine takes for changes."""
    began = time.perf_counter()
    for changes in batches:
        await engine.apply(changes, unless="none", deadline=Deadline.after(_SECONDS))
    return time.perf_counter() - began


def _one_by_one(changes: Changes) -> Iterator[Changes]:
    for vertex in changes.vertices:
        yield Changes(vertices=(vertex,))
    for edge in changes.edges:
        yield Changes(edges=(edge,))
    for cell in changes.cells:
        yield Changes(cells=(cell,))
