"""A collection is embedded with another model while questions and writes go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from loremesh.v1 import collection_pb2, document_pb2, retriever_service_pb2
from loremesh.v1 import knowledge_service_pb2 as pb

from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.text.postings import PostingsTextIndex
from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.serve import running
from loremesh_agents.bootstrap.settings import Settings, StoreSettings
from loremesh_agents.domain.errors import EmbeddingMismatch, LoremeshError, ReembeddingRefused
from loremesh_agents.domain.passages import full_text
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.text import TextIndex
from tests.conformance.memory_engine import Graph, MemoryEngine
from tests.doubles.encoders import HashingEmbedder
from tests.mesh.conftest import Client, answers

QUESTION = "Which town lies on the river?"
TOWNS = {f"t{place}": (f"Town {place}", f"Town {place} lies on the river number {place % 7}.") for place in range(150)}
KEPT, LAPSED = collection_pb2.REEMBEDDING_PHASE_KEPT, collection_pb2.REEMBEDDING_PHASE_LAPSED
MAKING = collection_pb2.REEMBEDDING_PHASE_MAKING

Encoders = dict[str, HashingEmbedder]


@pytest.fixture
def encoders(monkeypatch: pytest.MonkeyPatch) -> Encoders:
    """Those that settings may name."""
    found = {name: HashingEmbedder(f"model {name}", 16 + 8 * place) for place, name in enumerate(("a", "b", "c"))}
    monkeypatch.setattr(backends, "open_embedder", lambda stores: found.get(stores.embedder))
    monkeypatch.setattr(backends, "open_previous_embedder", lambda stores: found.get(stores.previous_embedder))
    return found


@pytest.fixture(params=["sqlite", "versioned"], autouse=True)
def graph_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph store where settings name none: what is in it outlives the mesh."""
    if request.param == "sqlite":
        return
    graph, known = Graph(), backends.open_graph

    def open_graph(stores: StoreSettings) -> tuple[GraphStore, TextIndex]:
        if stores.graph:
            return known(stores)
        store = VersionedGraphStore(MemoryEngine(graph))
        return store, PostingsTextIndex(store)

    monkeypatch.setattr(backends, "open_graph", open_graph)


@asynccontextmanager
async def mesh(folder: Path, embedder: str, previous: str = "", **stores: str) -> AsyncIterator[Client]:
    settings = Settings(stores=StoreSettings(data=folder, embedder=embedder, previous_embedder=previous, **stores))
    async with running(("all",), settings) as served:
        client = Client(served)
        try:
            yield client
        finally:
            await client.close()


async def collection(client: Client) -> collection_pb2.Collection:
    return (await client.knowledge.GetCollection(pb.GetCollectionRequest(collection="docs"), timeout=20)).collection


async def reembed(client: Client, model: str = "") -> collection_pb2.Collection:
    """Raises domain errors."""
    request = pb.ReembedRequest(collection="docs", model=model)
    (response,) = [answer async for answer in answers(client.knowledge.Reembed, request)]
    return response.collection


async def finish(client: Client) -> None:
    await client.knowledge.FinishReembedding(pb.FinishReembeddingRequest(collection="docs"), timeout=20)
    async with asyncio.timeout(30):
        while (await collection(client)).HasField("reembedding"):
            await asyncio.sleep(0.01)  # the removal runs in the background, and nobody is told of its end


async def switched_to(client: Client, model: str) -> collection_pb2.Collection:
    """The collection as soon as it has switched."""
    watched = client.knowledge.WatchRevisions(pb.WatchRevisionsRequest(collection="docs"), timeout=40)
    async for _ in watched:
        found = await collection(client)
        if found.embedding_model == model:
            watched.cancel()
            return found
    raise AssertionError


async def models_of_an_answer(client: Client, encoders: Encoders, k: int = 20) -> set[str]:
    """The encoders whose vectors the cosines of an answer's evidence are of: exactly one, unless it is wrong."""
    request = retriever_service_pb2.RetrieveRequest(
        question=QUESTION,
        collections=["docs"],
        options=retriever_service_pb2.RetrievalOptions(k=k),
    )
    names: list[set[str]] = []
    async for event in client.retriever.Retrieve(request, timeout=30):
        assert not event.completion.degradations
        if event.HasField("evidence"):
            passage, why = event.evidence.passage, event.evidence.why
            text = full_text(passage.title, passage.headings, passage.text)
            asked = {name: encoder.vector(QUESTION) @ encoder.vector(text) for name, encoder in encoders.items()}
            names.append({name for name, cosine in asked.items() if abs(cosine - why.cosine) < 1e-4})
    assert names
    return set.intersection(*names)


async def test_questions_and_writes_go_on_and_the_collection_switches_at_once(
    tmp_path: Path, encoders: Encoders
) -> None:
    async with mesh(tmp_path, "a") as client:
        await client.ingest(TOWNS)
        assert await models_of_an_answer(client, encoders) == {"a"}
    async with mesh(tmp_path, "b", "a") as client:
        new = encoders["b"]
        new.gate.clear()
        before = await reembed(client)
        assert (before.embedding_model, before.reembedding.phase) == ("model a", MAKING)
        await asyncio.wait_for(new.reached.wait(), 20)
        assert await models_of_an_answer(client, encoders) == {"a"}

        new.gate.set()
        seen: list[set[str]] = []

        async def ask() -> None:
            while not seen or seen[-1] == {"a"}:
                seen.append(await models_of_an_answer(client, encoders))

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(ask())
            more = {f"n{place}": (f"New town {place}", f"New town {place} lies on the river.") for place in range(40)}
            results = await client.ingest(more)
            assert {result.outcome for result in results} == {pb.DOCUMENT_OUTCOME_CREATED}
        after = await switched_to(client, "model b")
        assert {frozenset(found) for found in seen} <= {frozenset("a"), frozenset("b")}
        assert await models_of_an_answer(client, encoders, k=100) == {"b"}
        # What was written meanwhile is in both.
        assert (after.reembedding.model, after.reembedding.phase) == ("model a", KEPT)
        assert after.reembedding.passage_count == after.passage_count == len(TOWNS) + len(more)


async def test_a_rollback_is_at_once_and_knows_what_was_written_since(tmp_path: Path, encoders: Encoders) -> None:
    async with mesh(tmp_path, "a") as client:
        await client.ingest(TOWNS)
    async with mesh(tmp_path, "b", "a") as client:
        await reembed(client)
        await switched_to(client, "model b")
        await client.ingest({"t3": ("Town 3", "Town 3 lies on the river again."), "t0": ("Town 0", "Which river?")})
        encoders["a"].gate.clear()
        back = await reembed(client, "model a")
        encoders["a"].gate.set()
        assert (back.embedding_model, back.reembedding.model) == ("model a", "model b")
        assert await models_of_an_answer(client, encoders, k=100) == {"a"}
        # Again, as after a lost answer: it changes nothing.
        assert (await reembed(client, "model a")).revision == back.revision
        await finish(client)
        assert (await collection(client)).embedding_model == "model a"
        assert await models_of_an_answer(client, encoders, k=100) == {"a"}
    async with mesh(tmp_path, "a") as client:
        assert await models_of_an_answer(client, encoders) == {"a"}


async def test_a_writer_without_the_old_encoder_lets_its_vectors_lapse_and_a_rollback_mends_them(
    tmp_path: Path, encoders: Encoders
) -> None:
    async with mesh(tmp_path, "a") as client:
        await client.ingest(TOWNS)
    async with mesh(tmp_path, "b", "a") as client:
        await reembed(client)
        await switched_to(client, "model b")
    async with mesh(tmp_path, "b") as client:
        await client.ingest({"late": ("Late town", "A late town lies on the river.")})
        found = await collection(client)
        assert (found.reembedding.phase, found.reembedding.passage_count) == (LAPSED, len(TOWNS))
    async with mesh(tmp_path, "b", "a") as client:
        encoders["a"].texts.clear()
        await reembed(client, "model a")
        await switched_to(client, "model a")
        assert encoders["a"].texts == ["Late town. A late town lies on the river."]
        assert await models_of_an_answer(client, encoders, k=100) == {"a"}


async def test_a_collection_without_vectors_gets_some(tmp_path: Path, encoders: Encoders) -> None:
    async with mesh(tmp_path, "none") as client:
        await client.ingest(TOWNS)
    async with mesh(tmp_path, "b") as client:
        with pytest.raises(EmbeddingMismatch, match="--reembed"):
            async for _ in answers(client.knowledge.Ingest, *_one_document()):
                pass
        await reembed(client)
        found = await switched_to(client, "model b")
        assert not found.HasField("reembedding")
        assert await models_of_an_answer(client, encoders) == {"b"}
        (result,) = await client.ingest({"x": ("X", "X lies on the river.")})
        assert result.outcome == pb.DOCUMENT_OUTCOME_CREATED


async def test_an_unfinished_one_is_given_up(tmp_path: Path, encoders: Encoders) -> None:
    async with mesh(tmp_path, "a") as client:
        await client.ingest(TOWNS)
    async with mesh(tmp_path, "b", "a") as client:
        encoders["b"].gate.clear()
        before = await reembed(client)
        await asyncio.wait_for(encoders["b"].reached.wait(), 20)
        await client.knowledge.FinishReembedding(pb.FinishReembeddingRequest(collection="docs"), timeout=20)
        encoders["b"].gate.set()
        await finish(client)
        found = await collection(client)
        assert (found.embedding_model, found.revision) == ("model a", before.revision)
        assert await models_of_an_answer(client, encoders) == {"a"}


async def _refused(client: Client, model: str = "") -> LoremeshError:
    with pytest.raises(ReembeddingRefused) as refusal:
        await reembed(client, model)
    return refusal.value


async def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, encoders: Encoders) -> None:
    async with mesh(tmp_path, "a") as client:
        await client.ingest(TOWNS)
        assert "no encoder of model b; stores.embedder and stores.previous_embedder have model a" in str(
            await _refused(client, "model b")
        )
        # There already.
        assert not (await reembed(client)).HasField("reembedding")
    async with mesh(tmp_path, "b", "a") as client:
        await reembed(client)
        await switched_to(client, "model b")
    async with mesh(tmp_path, "c", "b") as client:
        assert "it still has vectors of model a beside those of model b" in str(await _refused(client))
    async with mesh(tmp_path, "c", "b", graph="memory://") as client:
        await client.ingest({"x": ("X", "X lies on the river.")})
        assert "holds vectors of one model alone, as memory:// does" in str(await _refused(client, "model b"))


def _one_document() -> list[pb.IngestRequest]:
    content = document_pb2.StructuredText(sections=[document_pb2.Section(text="X.")])
    found = document_pb2.Document(document_id="x", title="X", text=content)
    return [
        pb.IngestRequest(start=pb.IngestStart(collection="docs")),
        pb.IngestRequest(document=found),
    ]
