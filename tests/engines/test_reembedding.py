"""Knowledge agents on real graph engines that embed a collection anew, are killed, and begin again, two at once; readers see one model's vectors."""

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from loremesh.v1 import collection_pb2, document_pb2, knowledge_service_pb2_grpc
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import DocumentWrite, Reembedding, ReembeddingPhase
from loremesh_agents.domain.errors import LoremeshError
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.revision import LATEST
from tests.documents import document, writes
from tests.engines.graph_engines import ENGINES, STORAGES
from tests.engines.servers import gremlin_server, janusgraph, neo4j
from tests.engines.signing_proxy import front_door
from tests.robustness.reembedding_process import NEW, OLD

DOCUMENTS = 480
KILLS = 3
PACE = 0.3
LONGEST_LIFE = 1.2
"""Seconds: too short for all batches even if every process that is killed lives as long."""
ENCODERS = {encoder.model: encoder for encoder in (OLD, NEW)}
KEPT = collection_pb2.REEMBEDDING_PHASE_KEPT


def patiently() -> Deadline:
    return Deadline.after(60)


@asynccontextmanager
async def stores_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[dict[str, str]]:
    """Settings of the graph that an engine of `ENGINES` holds."""
    if name == "neo4j":
        yield {"graph": neo4j.shared().url(), "graph_password": neo4j.Neo4jServer.password}
    elif name == "neptune-stand-in":
        async with front_door(gremlin_server.shared().port, folder, monkeypatch) as door:
            yield {"graph": f"neptune+wss://127.0.0.1:{door.port}"}
    else:
        yield {"graph": janusgraph.shared(STORAGES[name]).url}


def embedded(write: DocumentWrite) -> DocumentWrite:
    texts = [(passage, full_text(write.document.title, (), passage.passage.text)) for passage in write.passages]
    return replace(write, passages=tuple(replace(passage, vector=OLD.vector(text)) for passage, text in texts))


async def fill(store: VersionedGraphStore, written: list[DocumentWrite]) -> None:
    """Writes documents; the first requests to a server that has just started may take longer than a write has."""
    for _ in range(5):
        try:
            await store.write("c", written, embedding_model=OLD.model, deadline=patiently())
        except LoremeshError:
            continue
        return
    raise AssertionError


async def look(store: VersionedGraphStore) -> tuple[str, int]:
    """The model of a snapshot and its passages: each has its vector of that model, right."""
    changes = await store.text_changes("c", after_revision=0, limit=10**6, deadline=patiently())
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=patiently()
    ) as snapshot:
        model = snapshot.embedding_models["c"]
        refs = [entry.ref for entry in changes.added]
        features = await snapshot.features(refs, (), deadline=patiently())
        shown = await snapshot.fetch(features.refs, deadline=patiently())
    assert set(refs) <= set(features.refs)
    assert features.has_vector.all()
    for ref, vector in zip(features.refs, features.vectors, strict=True):
        text = full_text(shown[ref].title, shown[ref].headings, shown[ref].text)
        np.testing.assert_allclose(vector, ENCODERS[model].vector(text), atol=1e-6)
    return model, len(refs)


@asynccontextmanager
async def agent(
    stores: Mapping[str, str], folder: Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, grpc.aio.Channel]]:
    """A knowledge agent in a process of its own."""
    settings = json.dumps({**stores, "data": str(folder)})
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.robustness.reembedding_process",
        settings,
        f"{PACE}",
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    address = (await process.stdout.readline()).decode().strip()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield process, channel
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def requests(number: int) -> Iterator[pb.IngestRequest]:
    content = document_pb2.StructuredText(sections=[document_pb2.Section(text=f"New town {number} lies on a river.")])
    yield pb.IngestRequest(start=pb.IngestStart(collection="c"))
    yield pb.IngestRequest(
        document=document_pb2.Document(document_id=f"n{number}", title=f"New town {number}", text=content)
    )


async def reembed(channel: grpc.aio.Channel, model: str = "") -> collection_pb2.Collection:
    """Asks until it is heard: an agent that was killed in the middle of a write keeps the others waiting until it is given up."""
    stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
    async with asyncio.timeout(150):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                return (await stub.Reembed(pb.ReembedRequest(collection="c", model=model), timeout=60)).collection


async def collection(channel: grpc.aio.Channel) -> collection_pb2.Collection:
    stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
    return (await stub.GetCollection(pb.GetCollectionRequest(collection="c"), timeout=60)).collection


async def switched(channel: grpc.aio.Channel, model: str) -> collection_pb2.Collection:
    stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
    async for _ in stub.WatchRevisions(pb.WatchRevisionsRequest(collection="c"), timeout=240):
        found = await collection(channel)
        if found.embedding_model == model:
            return found
    raise AssertionError


async def ingest(channel: grpc.aio.Channel, number: int) -> int:
    """Writes a document; gives how many were acknowledged."""
    stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
    acknowledged = 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for event in stub.Ingest(requests(number), timeout=60):
            acknowledged += event.HasField("result")
    return acknowledged


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["neo4j", "janusgraph", "neptune-stand-in"])
async def test_kills_two_agents_and_readers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(5)
    async with ENGINES[name]() as engine, stores_of(name, tmp_path, monkeypatch) as stores:
        store = VersionedGraphStore(engine)
        found = [document(f"d{place}", f"Town {place}", f"Town {place} lies on a river.") for place in range(DOCUMENTS)]
        await fill(store, [embedded(write) for write in writes(*found)])
        seen: list[str] = []
        stopped = asyncio.Event()

        async def read() -> None:
            while not stopped.is_set():
                with contextlib.suppress(LoremeshError):
                    seen.append((await look(store))[0])

        reading = asyncio.create_task(read())
        try:
            passages = DOCUMENTS
            for number in range(KILLS):
                async with agent(stores, tmp_path) as (process, channel):
                    if not number:
                        await reembed(channel)
                    asyncio.get_running_loop().call_later(chance.uniform(0.2, LONGEST_LIFE), process.kill)
                    passages += await ingest(channel, number)
                    await process.wait()
                model, count = await look(store)
                assert (model, passages <= count) == (OLD.model, True), "the kill came too late to meet it at work"
                passages = count
            # Nobody asks any more: they go on by themselves, two that know nothing of one another.
            async with (
                agent(stores, tmp_path) as (_, first),
                agent(stores, tmp_path / "2") as (_, second),
            ):
                after = await switched(first, NEW.model)
                assert (await switched(second, NEW.model)).revision == after.revision
                assert (after.reembedding.model, after.reembedding.phase) == (OLD.model, KEPT)
                passages += await ingest(second, KILLS)
                assert await look(store) == (NEW.model, passages)
                # Back at once, with what has been written since.
                back = await reembed(second, OLD.model)
                assert back.embedding_model == OLD.model
                assert await look(store) == (OLD.model, passages)
                assert (await reembed(first)).embedding_model == NEW.model
                assert await look(store) == (NEW.model, passages)
                stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(first)
                assert (await store.collection("c", deadline=patiently())).reembedding == Reembedding(
                    OLD.model, ReembeddingPhase.KEPT, passages
                )
                await stub.FinishReembedding(pb.FinishReembeddingRequest(collection="c"), timeout=60)
                assert not (await collection(second)).HasField("reembedding")
                assert await look(store) == (NEW.model, passages)
        finally:
            stopped.set()
            await reading
        assert set(seen) == {OLD.model, NEW.model}
        await store.close()
