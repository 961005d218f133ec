"""Processes that embed a collection anew, write to it, die anywhere and come late, and readers in between: every snapshot has whole vectors of one model."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.vector_sets import VersionedVectorSets
from loremesh_agents.domain.document import DocumentWrite, ReembeddingPhase
from loremesh_agents.domain.errors import EmbeddingMismatch, LoremeshError, ReembeddingRefused
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import LATEST
from tests.conformance.simulation import IDS, TEXTS, Operation, Simulation, Try, patiently
from tests.documents import document, writes
from tests.doubles.encoders import HashingEmbedder

ENCODERS = {model: HashingEmbedder(model, 8) for model in ("a", "b", "c")}
FIRST = PassageRef(0)


@dataclass(frozen=True)
class Step(Operation):
    """Something that a knowledge agent does."""

    work: Callable[[VersionedGraphStore], Awaitable[None]] | None = None

    async def run(self, store: VersionedGraphStore) -> None:
        assert self.work is not None
        await self.work(store)


def written(name: str, text: str, first: str, *further: str) -> list[DocumentWrite]:
    def embedded(write: DocumentWrite) -> DocumentWrite:
        texts = [(passage, full_text(write.document.title, (), passage.passage.text)) for passage in write.passages]
        passages = tuple(
            replace(
                passage,
                vector=ENCODERS[first].vector(embedded_text),
                further_vectors={model: ENCODERS[model].vector(embedded_text) for model in further},
            )
            for passage, embedded_text in texts
        )
        return replace(write, passages=passages)

    return [embedded(write) for write in writes(document(name, "Title", text))]


async def put(store: VersionedGraphStore, name: str, text: str, *, both: bool) -> None:
    """Writes a document as an agent does that knows of one or two models, and encodes it once more where that was wrong."""
    for _ in range(3):
        found = await store.vectors("c", deadline=patiently())
        others = [found.reembedding.model] if found.reembedding is not None and both else []
        try:
            await store.write(
                "c",
                written(name, text, found.model or "a", *others),
                embedding_model=found.model or "a",
                deadline=patiently(),
            )
        except EmbeddingMismatch:
            continue
        return


async def embed(store: VersionedGraphStore, model: str, *, rounds: int = 1) -> None:
    """Brings the collection to a model, as far as a few rounds do."""
    sets = VersionedVectorSets(store)
    try:
        await sets.begin("c", model, deadline=patiently())
    except ReembeddingRefused:
        return
    for _ in range(rounds):
        last: PassageRef | None = FIRST
        while last is not None:
            page = await sets.unembedded("c", model, after=last, limit=2, deadline=patiently())
            vectors = {ref: ENCODERS[model].vector(text) for ref, text in page.texts.items()}
            await sets.add("c", model, vectors, deadline=patiently())
            last = page.last
        if await sets.switch("c", model, deadline=patiently()):
            return


async def drop(store: VersionedGraphStore) -> None:
    await VersionedVectorSets(store).drop("c", after=FIRST, limit=1, deadline=patiently())


async def look(store: VersionedGraphStore) -> None:
    """Asserts that a snapshot shows vectors of its model, of every passage, and of no other."""
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=patiently()
    ) as snapshot:
        model = snapshot.embedding_models["c"]
        places = (await snapshot.enter(passages=[("c", f"{name}#0") for name in IDS], deadline=patiently())).passages
        features = await snapshot.features(places.values(), (), deadline=patiently())
        shown = await snapshot.fetch(list(places.values()), deadline=patiently())
    for ref, vector, has in zip(features.refs, features.vectors, features.has_vector, strict=True):
        assert has, "every passage has a vector of the model"
        expected = ENCODERS[model].vector(full_text("Title", (), shown[ref].text))
        np.testing.assert_allclose(vector, expected, atol=1e-6)
    try:
        changes = await store.vector_changes("c", model=model, after_revision=0, limit=100, deadline=patiently())
    except LoremeshError:
        # It has switched, and let go of that model.
        return
    assert len(set(changes.added)) == len(changes.added)


class Watched(Simulation):
    """A simulation whose readers look at vectors."""

    async def reader(self, count: int) -> None:
        while count > 0:
            async with self.process(lambda: None) as store:
                while count > 0 and not store.engine.dead:
                    count -= 1
                    try:
                        await look(store)
                    except LoremeshError:
                        continue

    def steps(self, count: int) -> list[Operation]:
        """Random work of an agent."""

        def step() -> Callable[[VersionedGraphStore], Awaitable[None]]:
            kind, model = self.random.random(), self.random.choice("ab" if self.random.random() < 0.8 else "abc")
            name, text = self.random.choice(IDS), f"{self.random.choice(TEXTS)} {self.random.randint(0, 3)}"
            known = self.random.random() < 0.7
            if kind < 0.35:
                return lambda store: put(store, name, text, both=known)
            if kind < 0.45:
                return lambda store: delete(store, name)
            if kind < 0.9:
                return lambda store: embed(store, model)
            return drop

        return [Step(work=step()) for _ in range(count)]

    async def settle(self) -> None:
        """What an agent does at the end, without faults: it reaches the model that it wants, and all is counted right."""
        while self.zombies:
            self.zombies.pop().release()

        async def finish() -> None:
            async with self.process(lambda: None) as store:
                await drop(store)
                await embed(store, "b", rounds=2)
                await look(store)
                found = await store.collection("c", deadline=patiently())
                assert found.embedding_model == "b"
                if found.reembedding is not None:
                    assert found.reembedding.phase is ReembeddingPhase.KEPT
                    assert found.reembedding.passage_count == found.passage_count
                    changes = await store.vector_changes(
                        "c", model=found.reembedding.model, after_revision=0, limit=100, deadline=patiently()
                    )
                    assert len(changes.added) == found.passage_count
                changes = await store.vector_changes("c", model="b", after_revision=0, limit=100, deadline=patiently())
                assert len(changes.added) == found.passage_count

        self.faults = False
        await self.run(finish())


async def delete(store: VersionedGraphStore, name: str) -> None:
    await store.delete_documents("c", [name], deadline=patiently())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("transactions", [False, True])
@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 32), count=st.sampled_from([4, 8]))
async def test_every_snapshot_has_whole_vectors_of_one_model(seed: int, count: int, transactions: bool) -> None:
    simulation = Watched(seed, transactions=transactions)
    await simulation.begin()
    attempts: list[Try] = simulation.tries
    await simulation.run(
        simulation.writer(simulation.steps(count)),
        simulation.writer(simulation.steps(count)),
        simulation.reader(count),
        simulation.reader(count),
    )
    assert len(attempts) == 2 * count
    await simulation.settle()
