"""The adapters of each port, opened for a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.graph.sqlite.vector_sets import SqliteVectorSets
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine
from loremesh_agents.adapters.graph.versioned.vector_sets import VersionedVectorSets
from loremesh_agents.adapters.text.memory import MemoryTextIndex
from loremesh_agents.adapters.text.postings import PostingsTextIndex
from loremesh_agents.adapters.text.sqlite import SqliteTextIndex
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.text import TextIndex
from loremesh_agents.ports.vector_sets import VectorSets
from tests.conformance.memory_engine import Graph, MemoryEngine
from tests.conformance.small_graphs import woven
from tests.engines.graph_engines import ENGINES, text_index
from tests.engines.search_indexes import KeptGraph

GRAPHS = ("sqlite", "memory", "versioned")
DIVIDED_GRAPHS = ("sqlite", "memory")
"""Those that keep statistics per set of readers."""
SERVED_GRAPHS = tuple(pytest.param(name, marks=(pytest.mark.engines, pytest.mark.timeout(240))) for name in ENGINES)
"""Those that need a server."""


@dataclass(frozen=True)
class Stores:
    """A graph store and the text index that belongs to it."""

    graph: GraphStore
    text: TextIndex


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Stores]:
    """The stores of a kind, empty."""
    if kind == "memory":
        memory = MemoryGraphStore()
        stores = Stores(memory, MemoryTextIndex(memory))
    elif kind == "versioned":
        versioned = VersionedGraphStore(MemoryEngine(Graph(), shuffle=1))
        stores = Stores(versioned, PostingsTextIndex(versioned))
    elif kind in ENGINES:
        async with ENGINES[kind]() as engine:
            served = VersionedGraphStore(engine)
            yield Stores(served, text_index(engine, served))
            await served.close()
        return
    else:
        sqlite = SqliteGraphStore(folder / "graph.db")
        stores = Stores(sqlite, SqliteTextIndex(sqlite))
    yield stores
    await stores.graph.close()


def vector_sets(graph: GraphStore) -> VectorSets:
    """Where a store keeps vectors of two models."""
    if isinstance(graph, KeptGraph):
        return vector_sets(graph.graph)
    if isinstance(graph, SqliteGraphStore):
        return SqliteVectorSets(graph.connections)
    assert isinstance(graph, VersionedGraphStore)
    return VersionedVectorSets(graph)


@pytest.fixture(params=(*GRAPHS, *SERVED_GRAPHS))
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    async with opened(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def store(stores: Stores) -> GraphStore:
    return stores.graph


@pytest.fixture(params=DIVIDED_GRAPHS)
async def divided_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GraphStore]:
    """A store that keeps statistics per set of readers."""
    async with opened(request.param, tmp_path) as found:
        yield found.graph


@pytest.fixture(params=(*sorted(set(GRAPHS) - set(DIVIDED_GRAPHS)), *SERVED_GRAPHS))
async def undivided_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[GraphStore]:
    """A store that keeps none."""
    async with opened(request.param, tmp_path) as found:
        yield found.graph


@pytest.fixture(params=SERVED_GRAPHS)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[GraphEngine]:
    async with ENGINES[request.param]() as opened:
        yield opened


@pytest.fixture
async def web(engine: GraphEngine) -> GraphEngine:
    """A graph with a neighbourhood of every kind."""
    return await woven(engine)
