"""Three nodes of Cassandra under JanusGraph and the vectors: one is killed under load and comes back without what it has missed."""

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cassandra import ReadTimeout

from loremesh_agents.adapters.derived.cassandra import CassandraServers
from loremesh_agents.adapters.derived.keeping import shelf
from loremesh_agents.adapters.graph.gremlin.endpoint import janusgraph_endpoint
from loremesh_agents.adapters.graph.gremlin.janusgraph import JanusGraphEngine
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.schema import migrate
from loremesh_agents.adapters.text.postings import PostingsTextIndex
from loremesh_agents.adapters.vector.cassandra import CassandraVectorIndex
from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import LoremeshError
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.knowledge.upkeep import Upkeep
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings
from tests.documents import document
from tests.engines.search_indexes import define
from tests.engines.servers.cassandra import DATACENTER, Cassandra, asking, cluster
from tests.engines.servers.janusgraph import JanusGraph
from tests.term_vectors import MODEL, TermVectors, encoded

KEYSPACE = "vectors"
READERS = 2
PAUSE_S = 0.3
"""Of each client between two calls."""
TOGETHER = 2
"""Documents of a write."""
BUDGET_S = 30.0
"""Of a query: no more than the retriever's own 10 s is needed, but the machine may be busy. Figures say what a gap costs."""
WARM, ENOUGH = 10, 15
"""Writes and queries that do not count, and those of each phase."""
DETECTED_S = 20.0
"""After so long the other nodes have noticed that one is gone."""
PHASE_S = 120.0
MENDED_S = 60.0
"""A node that comes back lets clients wait for a minute until it learns of tables that were made meanwhile."""


@dataclass
class Timed:
    """What clients saw, by phase.

    Attributes:
        phase: The present one.
        queries: Seconds that each query took.
        writes: The same of writes.
        without_vectors: Queries answered without the vector index.
        failed_queries: What went wrong.
        failed_writes: Writes that were not acknowledged.
    """

    phase: str = "warming"
    queries: dict[str, list[float]] = field(default_factory=dict)
    writes: dict[str, list[float]] = field(default_factory=dict)
    without_vectors: dict[str, int] = field(default_factory=dict)
    failed_queries: list[str] = field(default_factory=list)
    failed_writes: list[str] = field(default_factory=list)

    async def until(self, count: int) -> None:
        """Returns when the present phase has seen so many writes and queries."""
        async with asyncio.timeout(PHASE_S):
            while any(len(times.get(self.phase, ())) < count for times in (self.queries, self.writes)):
                await asyncio.sleep(0.1)

    def figures(self) -> dict[str, object]:
        """In milliseconds."""

        def of(times: dict[str, list[float]]) -> dict[str, object]:
            return {
                phase: {
                    "count": len(each),
                    "p50_ms": round(1000 * statistics.median(each)),
                    "max_ms": round(1000 * max(each)),
                }
                for phase, each in times.items()
            }

        return {
            "queries": of(self.queries),
            "writes": of(self.writes),
            "without_vectors": self.without_vectors,
            "failed_writes": len(self.failed_writes),
        }


@dataclass(frozen=True)
class Process:
    """What one process has of the stores."""

    graph: VersionedGraphStore
    vectors: CassandraVectorIndex


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[tuple[Cassandra, ...]]:
    found = cluster(tmp_path / "cassandra")
    yield found
    for node in found:
        node.kill()


@pytest.fixture
def server(tmp_path: Path, nodes: tuple[Cassandra, ...]) -> Iterator[JanusGraph]:
    found = JanusGraph(tmp_path / "janusgraph", "cql", cassandra=nodes, replication=len(nodes))
    yield found
    found.kill()


@asynccontextmanager
async def process(server: JanusGraph) -> AsyncIterator[Process]:
    graph = VersionedGraphStore(JanusGraphEngine(janusgraph_endpoint("stores.graph", server.url, "")))
    hosts = tuple(node.address for node in server.cassandra)
    vectors = CassandraVectorIndex(graph, CassandraServers(hosts, server.cassandra[0].port, KEYSPACE))
    yield Process(graph, vectors)
    await vectors.close()
    await graph.close()


@dataclass
class Load:
    """One who writes and several who ask for what was acknowledged, until they are told to stop."""

    timed: Timed
    acknowledged: list[int] = field(default_factory=list)
    reached: CollectionRevision | None = None
    stopping: bool = False

    async def write(self, graph: VersionedGraphStore, upkeep: Upkeep) -> None:
        number = 0
        while not self.stopping:
            numbers = range(number, number + TOGETHER)
            number += TOGETHER
            documents = [
                encoded(document(f"d{each}", f"Report {each}", f"The word{each} is kept in drawer{each}."))
                for each in numbers
            ]
            began = time.monotonic()
            phase = self.timed.phase
            try:
                self.reached, _ = await graph.write(
                    "c", documents, embedding_model=MODEL, deadline=Deadline.after(2 * BUDGET_S)
                )
            except LoremeshError as error:
                self.timed.failed_writes.append(f"{phase}: {error!r}")
                continue
            self.timed.writes.setdefault(phase, []).append(time.monotonic() - began)
            self.acknowledged += numbers
            upkeep.written("c")
            await asyncio.sleep(PAUSE_S)

    async def ask(self, reader: Process, seed: int) -> None:
        chance = random.Random(seed)
        service = RetrieverService(
            reader.graph, PostingsTextIndex(reader.graph), reader.vectors, TermVectors(), RetrieverSettings()
        )
        while not self.stopping:
            if self.reached is None:
                await asyncio.sleep(0.05)
                continue
            # Mostly something new.
            number = self.acknowledged[-chance.choice([1, 1, chance.randint(1, len(self.acknowledged))])]
            request = RetrievalRequest(
                f"Where is word{number} kept?", ("c",), consistency=Consistency({"c": self.reached})
            )
            phase = self.timed.phase
            began = time.monotonic()
            try:
                events = [
                    event
                    async for event in service.retrieve(request, principal=ANONYMOUS, deadline=Deadline.after(BUDGET_S))
                ]
            except LoremeshError as error:
                # A server that has just started compiles its code.
                if phase == "warming":
                    continue
                self.timed.failed_queries.append(f"{phase}, after {time.monotonic() - began:.1f} s: {error!r}")
                continue
            self.timed.queries.setdefault(phase, []).append(time.monotonic() - began)
            found = {event.source.document_id for event in events if isinstance(event, Evidence)}
            if f"d{number}" not in found:
                self.timed.failed_queries.append(f"{phase}: d{number} is not among {sorted(found)}")
            await asyncio.sleep(PAUSE_S)
            (completion,) = (event for event in events if isinstance(event, Completion))
            if any(degradation.stage == "vectors" for degradation in completion.degradations):
                self.timed.without_vectors[phase] = self.timed.without_vectors.get(phase, 0) + 1


def stored_on(node: Cassandra, refs: int) -> tuple[set[int], set[int]]:
    """The passages that a node knows vectors of by itself, and those that it finds."""
    with asking(node) as session:
        session.set_keyspace(KEYSPACE)
        assert session.cluster is not None
        (table,) = (name for name in session.cluster.metadata.keyspaces[KEYSPACE].tables if name.startswith("vectors_"))
        vector = TermVectors.dimension * [0.125]
        search = f"SELECT ref FROM {table} ORDER BY vector ANN OF {vector} LIMIT {min(refs, 1000)}"
        noticed = time.monotonic() + PHASE_S
        while True:
            try:
                stored = {row.ref for row in session.execute(f"SELECT ref FROM {table}")}
                return stored, {row.ref for row in session.execute(search)}
            except ReadTimeout:
                # It asks the others for a part as long as it has not noticed that they are gone.
                if time.monotonic() > noticed:
                    raise


@pytest.mark.timeout(590)
async def test_a_node_is_lost_under_load_and_comes_back(
    server: JanusGraph, nodes: tuple[Cassandra, ...], record_property: Callable[[str, object], None]
) -> None:
    replication = f"{{'class': 'NetworkTopologyStrategy', '{DATACENTER}': {len(nodes)}}}"
    await asyncio.to_thread(define, nodes[0], f"CREATE KEYSPACE {KEYSPACE} WITH replication = {replication}")
    timed = Timed()
    load = Load(timed)
    async with process(server) as writer, process(server) as reader:
        await migrate(writer.graph.engine, deadline=Deadline.after(60))
        upkeep = Upkeep({"vector": writer.vectors})
        tasks = [asyncio.create_task(load.write(writer.graph, upkeep))]
        tasks += [asyncio.create_task(load.ask(reader, seed)) for seed in range(READERS)]
        try:
            await timed.until(WARM)
            timed.phase = "calm"
            await timed.until(ENOUGH)
            timed.phase = "gap"
            # The one that all know first.
            await asyncio.to_thread(nodes[0].kill)
            await asyncio.sleep(DETECTED_S)
            await timed.until(ENOUGH)
            timed.phase = "return"
            await asyncio.to_thread(nodes[0].restart)
            timed.phase = "back"
            await timed.until(ENOUGH)
        finally:
            load.stopping = True
            await asyncio.gather(*tasks)
            print(json.dumps(timed.figures()))
        record_property("figures", json.dumps(timed.figures()))
        assert timed.failed_queries == []

        # Nothing acknowledged is lost.
        _, changes = await writer.graph.changes("c", after_revision=0, limit=10**6, deadline=Deadline.after(60))
        assert {f"d{number}" for number in load.acknowledged} <= {change.document_id for change in changes}

        # The one that was away has been given all that it missed, which nobody kept for it.
        reached = load.reached
        assert reached is not None
        mended = Deadline.after(MENDED_S)
        name = shelf(reached.collection_uid, MODEL)
        while await writer.vectors._vectors.gap(name, deadline=mended) is not None:
            await asyncio.sleep(0.2)
        page = await writer.graph.vector_changes("c", after_revision=0, limit=10**6, deadline=Deadline.after(60))
        await upkeep.close()
    for node in nodes[1:]:
        node.kill()
    refs = {int(ref) for ref in page.added}
    assert await asyncio.to_thread(stored_on, nodes[0], len(refs)) == (refs, refs)
