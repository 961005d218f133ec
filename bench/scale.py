"""What grows with a collection: time of a query, memory, time of ingestion, time of opening.

The corpus is synthetic. Its words and the entities that its passages mention follow Zipf's law, each document is titled by an entity of its own,
and the encoder is a double: unit vectors around one centroid a topic, which the title's last word names. Documents go through the knowledge
agent's service into the embedded stores; a second process opens these and is asked through gRPC, one question at a time, so that its memory is
that of a reader alone. Files are in the system's cache when they are opened.

Memory beyond vectors is what the reader has grown by since before it opened the stores, less the vectors: 4 bytes a dimension while a collection is searched
exactly, else the index file, which is mapped. `private` figures leave out all that is mapped.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import uvloop
from loremesh.v1 import retriever_service_pb2
from loremesh.v1 import retriever_service_pb2_grpc as retriever_grpc
from numpy.typing import NDArray

from loremesh_agents.adapters.parsing.parser import FileParser
from loremesh_agents.bootstrap.backends import open_graph, open_vectors
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, Section
from loremesh_agents.knowledge.ingestion import Result
from loremesh_agents.knowledge.service import KnowledgeService
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.servicer import RetrieverServicer
from loremesh_agents.retriever.settings import RetrieverSettings
from loremesh_agents.runtime.channel import Peer, open_channel
from loremesh_agents.runtime.logs import configure_logging
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service

_COLLECTION = "bench"
_SEED = 20_24
_DIMENSION = 384
_TOPICS = 256
_NOISE = 0.9
_VOCABULARY = 50_000
_WORDS = 60
_SENTENCE_WORDS = 12
_MENTIONS = 4
_WORD_EXPONENT = 1.0
_ENTITY_EXPONENT = 0.8
"""Flatter than words: the commonest of 100,000 entities is in about 3 passages of a hundred."""
_CHUNK = 1000
_WARM = 20
_BUDGET = 60.0
_SYLLABLES = [a + b for a in ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z") for b in "aeiou"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", default="10000,100000", help="Passages, ascending, parted by commas.")
    parser.add_argument("--queries", type=int, default=200, help="Questions of each size.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = [int(size) for size in arguments.sizes.split(",")]
    by_size: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for size in sizes:
            with tempfile.TemporaryDirectory() as folder:
                written = processes.submit(_in_loop, _index, folder, size).result()
                read = processes.submit(_in_loop, _read, folder, size, arguments.queries).result()
            by_size[str(size)] = {**written, **read}
            print(json.dumps({"size": size, **by_size[str(size)]}), file=sys.stderr, flush=True)
    first, last = by_size[str(sizes[0])], by_size[str(sizes[-1])]
    return {
        "benchmark": "scale",
        "sizes": sizes,
        "by_size": by_size,
        "p50_growth": round(last["p50_ms"] / first["p50_ms"], 2),
    }


def _word(number: int) -> str:
    """A pronounceable word a number."""
    word = ""
    number += len(_SYLLABLES)
    while number:
        number, place = divmod(number, len(_SYLLABLES))
        word += _SYLLABLES[place]
    return word


def _name(number: int) -> str:
    """A name an entity; its last word names the topic."""
    return f"{_word(number * 7 + 3).title()} {_word(zlib.crc32(str(number).encode()) % _TOPICS).title()}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus of so many documents, each of one passage; the first documents do not depend on how many follow in their kind, but their mentions do."""

    size: int

    def texts(self) -> Iterator[tuple[str, str]]:
        """Titles and texts."""
        word_shares = _cumulated(_VOCABULARY, _WORD_EXPONENT)
        entity_shares = _cumulated(self.size, _ENTITY_EXPONENT)
        for start in range(0, self.size, _CHUNK):
            draw = np.random.default_rng((_SEED, start))
            count = min(_CHUNK, self.size - start)
            word_ids = np.searchsorted(word_shares, draw.random((count, _WORDS)))
            mentioned = np.searchsorted(entity_shares, draw.random((count, _MENTIONS)))
            for row in range(count):
                title = _name(start + row)
                yield title, _text(title, word_ids[row].tolist(), [_name(entity) for entity in mentioned[row].tolist()])

    def questions(self, count: int) -> list[str]:
        """Questions that name an entity and a few words of its passage."""
        places = set(np.random.default_rng(_SEED).choice(self.size, min(count, self.size), replace=False).tolist())
        found: list[str] = []
        for place, (title, text) in enumerate(self.texts()):
            if place in places:
                words = [word for word in text.replace(".", "").split()[3:] if word.islower()]
                found.append(f"what is the {words[0]} {words[5]} of the {words[9]} that {words[14]} {title}?")
        return found


def _cumulated(count: int, exponent: float) -> NDArray[np.float64]:
    shares = np.cumsum(np.arange(1, count + 1, dtype=np.float64) ** -exponent)
    return np.asarray(shares / shares[-1], dtype=np.float64)


def _text(title: str, word_ids: Sequence[int], mentioned: Sequence[str]) -> str:
    sentences: list[str] = []
    for start, name in zip(itertools.count(0, _SENTENCE_WORDS), [title, *mentioned], strict=False):
        words = [_word(number) for number in word_ids[start : start + _SENTENCE_WORDS]]
        sentences.append(f"{name} {' '.join(words)}.")
    return " ".join(sentences)


class ClusteredEmbedder:
    """A double of an encoder: texts whose second word is the same lie around one centroid."""

    model = "clustered/1"
    dimension = _DIMENSION

    def __init__(self) -> None:
        centroids = np.random.default_rng(_SEED).standard_normal((_TOPICS, _DIMENSION)).astype(np.float32)
        self._centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        """See the port."""
        vectors = np.stack([self._one(text) for text in texts])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)

    async def close(self) -> None:
        """Holds nothing."""

    def _one(self, text: str) -> NDArray[np.float32]:
        # A passage begins with its title, a question ends with it.
        words = text.rstrip("?").split()
        topic = words[-1] if text.endswith("?") else words[1].rstrip(".")
        noise = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(_DIMENSION, dtype=np.float32)
        return np.asarray(
            self._centroids[zlib.crc32(topic.encode()) % _TOPICS] + _NOISE * noise / np.sqrt(_DIMENSION),
            dtype=np.float32,
        )


def _in_loop(work: Any, *arguments: Any) -> Any:
    configure_logging("ERROR", "text")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work(*arguments))


def _stores(folder: str) -> StoreSettings:
    return StoreSettings(data=Path(folder), embedder="none")


async def _index(folder: str, size: int) -> dict[str, Any]:
    """Ingests a corpus and makes the index file."""
    stores = _stores(folder)
    graph, _ = open_graph(stores)
    vectors = open_vectors(stores, graph)
    assert vectors is not None
    parser = FileParser()
    service = KnowledgeService(
        graph, {"vector": vectors}, parser, ClusteredEmbedder(), KnowledgeSettings(write_budget=600.0)
    )

    async def documents() -> AsyncIterator[Document]:
        for place, (title, text) in enumerate(Corpus(size).texts()):
            yield Document(document_id=f"d{place}", title=title, sections=(Section(text),))

    began = time.perf_counter()
    async for event in service.ingest(_COLLECTION, documents()):
        if isinstance(event, Result) and event.error is not None:
            sys.exit(f"document {event.document_id} failed: {event.error.message}")
    index_s = time.perf_counter() - began
    await vectors.maintain(_COLLECTION, deadline=Deadline.after(3600.0))
    took = time.perf_counter() - began
    await service.close()
    await parser.close()
    await vectors.close()
    await graph.close()
    return {
        "index_s": round(took, 2),
        "passages_per_s": round(size / index_s, 1),
        "index_rss_mb": round(psutil.Process().memory_info().rss / 2**20, 1),
        "disk_bytes_per_passage": round(sum(path.stat().st_size for path in Path(folder).rglob("*")) / size),
    }


async def _read(folder: str, size: int, count: int) -> dict[str, Any]:
    """Opens the stores and asks."""
    process = psutil.Process()
    embedder = ClusteredEmbedder()
    questions = Corpus(size).questions(count + _WARM + 1)
    before = process.memory_info()
    began = time.perf_counter()
    async with _served(folder, embedder) as channel:
        await _ask(channel, questions[0])
        reopen_s = time.perf_counter() - began
        for question in questions[1 : _WARM + 1]:
            await _ask(channel, question)
        asked = [await _ask(channel, question) for question in questions[_WARM + 1 :]]
        after = process.memory_info()
    index = sum(path.stat().st_size for path in (Path(folder) / "vectors").glob("*.faiss"))
    copied = 0 if index else 4 * _DIMENSION * size
    times = sorted(seconds for seconds, _ in asked)
    stages = {name: round(1000 * statistics.median(timings[name] for _, timings in asked), 2) for name in asked[0][1]}
    return {
        "reopen_s": round(reopen_s, 3),
        "p50_ms": round(1000 * times[len(times) // 2], 2),
        "p95_ms": round(1000 * times[int(0.95 * (len(times) - 1))], 2),
        "stages_p50_ms": stages,
        "rss_mb": round(after.rss / 2**20, 1),
        "private_mb": round(_private(after) / 2**20, 1),
        "beyond_vectors_bytes_per_passage": round((after.rss - before.rss - copied - index) / size),
        "private_beyond_vectors_bytes_per_passage": round((_private(after) - _private(before) - copied) / size),
    }


def _private(memory: Any) -> int:
    """Resident bytes that belong to no mapped file."""
    private: int = memory.rss - memory.shared
    return private


@contextlib.asynccontextmanager
async def _served(folder: str, embedder: ClusteredEmbedder) -> AsyncGenerator[grpc.aio.Channel]:
    """A retriever over the stores of a folder."""
    stores = _stores(folder)
    graph, text = open_graph(stores)
    vectors = open_vectors(stores, graph)
    assert vectors is not None
    servicer = RetrieverServicer(RetrieverService(graph, text, vectors, embedder, RetrieverSettings()))
    descriptor = retriever_service_pb2.DESCRIPTOR.services_by_name["RetrieverService"]
    add = retriever_grpc.add_RetrieverServiceServicer_to_server
    try:
        async with AgentServer("retriever", [Service.of(descriptor, add, servicer)], ServerOptions()) as server:
            channel = open_channel(server.target)
            try:
                yield channel
            finally:
                await channel.close(None)
    finally:
        await vectors.close()
        await graph.close()


async def _ask(channel: grpc.aio.Channel, question: str) -> tuple[float, dict[str, float]]:
    """Seconds at the client, and those of the retriever's stages."""
    stub: retriever_grpc.RetrieverServiceAsyncStub = retriever_grpc.RetrieverServiceStub(channel)
    request = retriever_service_pb2.RetrieveRequest(question=question, collections=[_COLLECTION])
    timings: dict[str, float] = {}
    began = time.perf_counter()
    async with Peer("retriever").stream(stub.Retrieve, request, Deadline.after(_BUDGET)) as responses:
        async for response in responses:
            if response.HasField("completion"):
                timings = {
                    timing.stage: timing.duration.ToNanoseconds() / 1e9 for timing in response.completion.timings
                }
    return time.perf_counter() - began, timings
