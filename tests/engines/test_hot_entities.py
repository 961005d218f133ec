"""What an entity that very many passages mention costs on each engine."""

import statistics
import time

import pytest

from loremesh_agents.adapters.graph.versioned.engine import Access, Changes, Edge, Neighbourhood, Vertex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel
from tests.engines.graph_engines import ENGINES

pytestmark = pytest.mark.timeout(240)

MENTIONS = 10_000
TOGETHER = 2_000
ACCESS = Access(("u1",), 1 << 40, ("*",))


@pytest.mark.parametrize("name", ENGINES)
async def test_an_entity_with_very_many_mentions_costs_a_bounded_read(name: str) -> None:
    async with ENGINES[name]() as engine:
        hub = Vertex(VertexLabel.ENTITY, "e1", {"entity_key": "hub", "uid": "u1", "size": MENTIONS})
        await engine.apply(Changes(vertices=[hub]), unless="d1", deadline=Deadline.after(60))
        for start in range(0, MENTIONS, TOGETHER):
            refs = range(start, start + TOGETHER)
            passages = [
                Vertex(VertexLabel.PASSAGE, f"p{ref}", {"ref": ref, "uid": "u1"}, {"readers": ["*"]}) for ref in refs
            ]
            edges = [Edge(EdgeLabel.MENTIONS, f"p{ref}", "e1", {"kind": 1}) for ref in refs]
            bears = [Edge(EdgeLabel.BEARS, "p0", "e1", {"weight": 1.0, "title": "Hub"})] if not start else []
            changes = Changes(vertices=passages, edges=[*edges, *bears])
            await engine.apply(changes, unless="d1", deadline=Deadline.after(60))

        async def read(mention_limit: int) -> tuple[Neighbourhood, float]:
            began = time.perf_counter()
            found = await engine.neighbourhood(
                [7], [], ACCESS, title_limit=5, mention_limit=mention_limit, deadline=Deadline.after(60)
            )
            return found, time.perf_counter() - began

        bounded, whole = [], []
        for _ in range(5):
            found, seconds = await read(50)
            assert [row.passage.ref for row in found.titles] == [0]
            assert (list(found.mentions), found.entities["e1"].properties["size"]) == ([], MENTIONS)
            bounded.append(seconds)
            found, seconds = await read(MENTIONS)
            assert len(found.mentions) == MENTIONS
            whole.append(seconds)
        # The measure sees it when the mentions are read.
        assert statistics.median(bounded) < statistics.median(whole) / 3
