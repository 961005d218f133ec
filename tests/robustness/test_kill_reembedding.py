"""A knowledge agent that is killed while it embeds a collection anew: every state has whole vectors of one model, and the end is reached."""

import asyncio
import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from loremesh.v1 import document_pb2, knowledge_service_pb2_grpc
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.domain.document import DocumentWrite, ReembeddingPhase
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.revision import LATEST
from tests.documents import document, soon, writes
from tests.robustness.reembedding_process import NEW, OLD

KILLS = 8
DOCUMENTS = 600
ENCODERS = {encoder.model: encoder for encoder in (OLD, NEW)}


async def filled(folder: Path) -> None:
    """A collection that the old encoder has embedded."""

    def embedded(write: DocumentWrite) -> DocumentWrite:
        texts = [(passage, full_text(write.document.title, (), passage.passage.text)) for passage in write.passages]
        return replace(write, passages=tuple(replace(passage, vector=OLD.vector(text)) for passage, text in texts))

    found = [document(f"d{place}", f"Town {place}", f"Town {place} lies on a river.") for place in range(DOCUMENTS)]
    store = SqliteGraphStore(folder / "graph.db")
    await store.write("c", [embedded(write) for write in writes(*found)], embedding_model=OLD.model, deadline=soon())
    await store.close()


async def seen(folder: Path) -> tuple[str, int]:
    """The model of the collection and its passages; each has its vector of that model, right."""
    store = SqliteGraphStore(folder / "graph.db")
    try:
        async with store.snapshot(
            ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
        ) as snapshot:
            model = snapshot.embedding_models["c"]
            changes = await store.vector_changes("c", model=model, after_revision=0, limit=10**6, deadline=soon())
            features = await snapshot.features(changes.added, (), deadline=soon())
            passages = await snapshot.fetch(changes.added, deadline=soon())
        collection = await store.collection("c", deadline=soon())
    finally:
        await store.close()
    assert collection.embedding_model == model
    assert len(changes.added) == len(passages) == collection.passage_count
    for ref, vector in zip(features.refs, features.vectors, strict=True):
        passage = passages[ref]
        expected = ENCODERS[model].vector(full_text(passage.title, passage.headings, passage.text))
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    np.testing.assert_array_equal(features.vectors, changes.vectors)
    return model, collection.passage_count


async def start(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.robustness.reembedding_process",
        json.dumps({"data": str(folder)}),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().strip()


def request(number: int) -> list[pb.IngestRequest]:
    sections = [document_pb2.Section(text=f"New town {number} lies on a river.")]
    content = document_pb2.StructuredText(sections=sections)
    found = document_pb2.Document(document_id=f"n{number}", title=f"New town {number}", text=content)
    return [pb.IngestRequest(start=pb.IngestStart(collection="c")), pb.IngestRequest(document=found)]


async def run_until_killed(folder: Path, number: int, delay: float) -> int:
    """Asks for the new model, writes a document, kills the process; gives how many documents were acknowledged."""
    process, address = await start(folder)
    acknowledged = 0
    async with grpc.aio.insecure_channel(address) as channel:
        stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
        await stub.Reembed(pb.ReembedRequest(collection="c"), timeout=20)
        killing = asyncio.get_running_loop().call_later(delay, process.kill)
        try:
            async for event in stub.Ingest(iter(request(number))):
                acknowledged += event.HasField("result")
        except grpc.aio.AioRpcError:
            pass
        await process.wait()
        killing.cancel()
    return acknowledged


@pytest.mark.timeout(240)
async def test_every_state_has_vectors_of_one_model_and_a_restart_goes_on(tmp_path: Path) -> None:
    chance = random.Random(11)
    await filled(tmp_path)
    passages = DOCUMENTS
    models: list[str] = []
    for number in range(KILLS):
        passages += await run_until_killed(tmp_path, number, chance.uniform(0.0, 0.15))
        model, found = await seen(tmp_path)
        models.append(model)
        assert found >= passages
        passages = found
    assert models[0] == OLD.model, "the first kill came too late to meet it at work"
    # Nobody asks any more: the process goes on by itself.
    process, address = await start(tmp_path)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = knowledge_service_pb2_grpc.KnowledgeServiceStub(channel)
        async for _ in stub.WatchRevisions(pb.WatchRevisionsRequest(collection="c"), timeout=60):
            got = await stub.GetCollection(pb.GetCollectionRequest(collection="c"), timeout=20)
            if got.collection.embedding_model == NEW.model:
                break
    process.kill()
    await process.wait()
    assert await seen(tmp_path) == (NEW.model, passages)
    store = SqliteGraphStore(tmp_path / "graph.db")
    try:
        kept = (await store.collection("c", deadline=soon())).reembedding
        assert kept is not None
        assert (kept.model, kept.phase, kept.passage_count) == (OLD.model, ReembeddingPhase.KEPT, passages)
    finally:
        await store.close()
