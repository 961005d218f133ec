"""An index outside the graph holds the vectors of a collection's models apart; the server is a double."""

from collections.abc import Collection as Group
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from loremesh_agents.adapters.derived.keeping import IndexState, Keeping, VectorSource, shelf
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.vector_sets import VersionedVectorSets
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.ports.graph import VectorChanges
from tests.conformance.memory_engine import Graph, MemoryEngine
from tests.documents import document, soon, writes


class Shelves:
    """An `IndexStore` over dictionaries."""

    def __init__(self) -> None:
        self.noted: dict[str, IndexState] = {}
        self.vectors: dict[str, dict[PassageRef, float]] = {}

    name = "shelves"

    async def prepare(self, *, replacing: bool, deadline: Deadline) -> bool:
        return False

    async def states(self, shelves: Group[str] | None, *, deadline: Deadline) -> Mapping[str, IndexState]:
        return {name: state for name, state in self.noted.items() if shelves is None or name in shelves}

    async def apply(self, state: IndexState, page: VectorChanges, *, stamp: int, deadline: Deadline) -> IndexState:
        held = self.vectors.setdefault(state.shelf, {})
        for ref in page.removed:
            held.pop(ref, None)
        held.update(zip(page.added, page.vectors[:, 0].tolist() if page.added else [], strict=True))
        return replace(state, revision=page.revision, dimension=2)

    async def note(self, state: IndexState, *, deadline: Deadline) -> None:
        self.noted[state.shelf] = state

    async def remove(self, name: str, *, stamped_before: int | None = None, deadline: Deadline) -> None:
        if stamped_before is None:
            self.vectors.pop(name, None)
            self.noted.pop(name, None)


class Kept:
    """A graph, what keeps an index of its vectors, and the double that has it."""

    def __init__(self) -> None:
        self.graph = VersionedGraphStore(MemoryEngine(Graph()))
        self.sets = VersionedVectorSets(self.graph)
        self.server = Shelves()
        self.restart()

    def restart(self) -> None:
        """As a new process."""
        self.keeping = Keeping(self.graph, VectorSource(self.graph), self.server, page=2)

    async def put(self, *names: str, model: str, value: float, further: Mapping[str, float] | None = None) -> None:
        def vector(of: float) -> np.ndarray:
            return np.array([of, 0], dtype=np.float32)

        written = [
            replace(
                write,
                passages=tuple(
                    replace(
                        passage,
                        vector=vector(value),
                        further_vectors={model: vector(of) for model, of in (further or {}).items()},
                    )
                    for passage in write.passages
                ),
            )
            for write in writes(*(document(name, name, f"Text {value}.") for name in names))
        ]
        await self.graph.write("c", written, embedding_model=model, deadline=soon())
        await self.keeping.maintain("c", deadline=soon())

    async def embed(self, model: str, value: float) -> None:
        await self.sets.begin("c", model, deadline=soon())
        found = await self.sets.unembedded("c", model, after=PassageRef(0), limit=100, deadline=soon())
        vectors = {ref: np.array([value, 0], dtype=np.float32) for ref in found.texts}
        await self.sets.add("c", model, vectors, deadline=soon())

    async def drop(self) -> None:
        await self.sets.drop("c", after=PassageRef(0), limit=1, deadline=soon())

    async def held(self) -> dict[str, list[float]]:
        """The values on each shelf of the collection, by the models that the test knows."""
        uid = (await self.graph.revision("c", deadline=soon())).collection_uid
        names = {shelf(uid, model): model for model in ("a", "b")}
        return {names.get(name, name): sorted(held.values()) for name, held in self.server.vectors.items()}


@pytest.fixture
def kept() -> Kept:
    return Kept()


async def test_both_models_are_held_and_followed_until_one_is_let_go(kept: Kept) -> None:
    await kept.put("1", "2", "3", model="a", value=1)
    await kept.embed("b", 2)
    await kept.keeping.maintain("c", deadline=soon())
    assert await kept.held() == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert await kept.sets.switch("c", "b", deadline=soon())
    await kept.put("4", model="b", value=3, further={"a": 4})
    await kept.graph.delete_documents("c", ["1"], deadline=soon())
    current = await kept.graph.revision("c", deadline=soon())
    assert await kept.keeping.maintain("c", deadline=soon()) == current
    assert await kept.held() == {"a": [1, 1, 4], "b": [2, 2, 3]}
    assert len(await kept.keeping.reached((current,), "a", deadline=soon())) == 1
    await kept.drop()
    await kept.keeping.maintain("c", deadline=soon())
    assert await kept.held() == {"b": [2, 2, 3]}
    with pytest.raises(BackendUnavailable):
        await kept.keeping.reached((current,), "a", deadline=soon())


async def test_vectors_that_some_passages_lack_are_waited_for_and_not_taken_away(kept: Kept) -> None:
    await kept.put("1", "2", model="a", value=1)
    await kept.embed("b", 2)
    await kept.keeping.maintain("c", deadline=soon())
    await kept.put("3", model="a", value=1)
    assert await kept.held() == {"a": [1, 1, 1], "b": [2, 2]}
    current = await kept.graph.revision("c", deadline=soon())
    with pytest.raises(BudgetExhausted):
        await kept.keeping.reached((current,), "b", deadline=Deadline.after(0.05))
    await kept.embed("b", 5)
    await kept.keeping.maintain("c", deadline=soon())
    assert await kept.held() == {"a": [1, 1, 1], "b": [2, 2, 5]}


async def test_what_a_killed_process_has_left_behind_is_taken_away_by_the_next(kept: Kept) -> None:
    await kept.put("1", model="a", value=1)
    await kept.embed("b", 2)
    await kept.keeping.maintain("c", deadline=soon())
    uid = (await kept.graph.revision("c", deadline=soon())).collection_uid
    # As an index of before, which knew nothing of models.
    kept.server.vectors[uid] = {PassageRef(1): 9.0}
    kept.server.noted[uid] = IndexState(uid, "c", 1, 2)
    await kept.drop()
    kept.restart()
    await kept.keeping.recover(deadline=soon())
    assert await kept.held() == {"a": [1]}
    assert kept.server.noted.keys() == kept.server.vectors.keys()
    await kept.graph.delete_collection("c", deadline=soon())
    await kept.keeping.drop("c", deadline=soon())
    assert kept.server.noted == {}


async def test_both_models_are_rebuilt(kept: Kept) -> None:
    await kept.put("1", "2", "3", model="a", value=1)
    await kept.embed("b", 2)
    kept.server.vectors.clear()
    current = await kept.graph.revision("c", deadline=soon())
    assert await kept.keeping.rebuild("c", deadline=soon()) == current
    assert await kept.held() == {"a": [1, 1, 1], "b": [2, 2, 2]}
