"""Commands that write wait where another writer has the turn, as one does that was killed."""

from pathlib import Path

import pytest

from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import Vertex
from loremesh_agents.adapters.graph.versioned.identifiers import claim_id
from loremesh_agents.adapters.graph.versioned.states import ClaimRecord
from loremesh_agents.adapters.graph.versioned.timing import Timing
from loremesh_agents.adapters.text.postings import PostingsTextIndex
from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.settings import Settings, StoreSettings
from loremesh_agents.cli.reembedding import change_embedding
from loremesh_agents.domain.graph_schema import VertexLabel
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.text import TextIndex
from tests.conformance.memory_engine import Graph, MemoryEngine
from tests.documents import document, soon, writes
from tests.doubles.encoders import HashingEmbedder

# A turn lasts longer than the knowledge agent waits for one.
TIMING = Timing(write=1.0, lease=4.0)
WAITS = 0.5


async def die_in_the_turn(graph: Graph) -> None:
    """Leaves what a writer leaves that was killed."""
    engine = MemoryEngine(graph)
    store = VersionedGraphStore(engine)
    head = await store.head(deadline=soon())
    claim = ClaimRecord("killed", head.collections["docs"].uid, 0, 0.0, ())
    await engine.create(
        Vertex(VertexLabel.CLAIM, claim_id(head.version + 1), {"claim": claim.encoded()}), deadline=soon()
    )
    await store.close()


async def test_a_collection_is_embedded_anew_though_a_writer_was_killed_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Graph()
    found = writes(*(document(f"d{place}", f"Town {place}", f"Town {place} lies here.") for place in range(3)))
    store = VersionedGraphStore(MemoryEngine(graph))
    await store.write("docs", found, embedding_model="", deadline=soon())
    await die_in_the_turn(graph)

    def open_graph(stores: StoreSettings) -> tuple[GraphStore, TextIndex]:
        opened = VersionedGraphStore(MemoryEngine(graph), timing=TIMING)
        return opened, PostingsTextIndex(opened)

    monkeypatch.setattr(backends, "open_graph", open_graph)
    monkeypatch.setattr(backends, "open_embedder", lambda stores: HashingEmbedder("new", 16))
    settings = Settings(
        stores=StoreSettings(data=tmp_path, embedder="new"), knowledge=KnowledgeSettings(write_budget=WAITS)
    )
    assert await change_embedding("docs", "reembed", settings, None, as_json=False) == 0

    said = capsys.readouterr()
    assert said.out == "docs has vectors of new.\n"
    assert said.err.count("was killed while it wrote") == 1
    assert (await store.collection("docs", deadline=soon())).embedding_model == "new"
    await store.close()
