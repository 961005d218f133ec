"""What every store that keeps vectors of two models of a collection does with them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite, Reembedding, ReembeddingPhase
from loremesh_agents.domain.errors import BackendUnavailable, CollectionNotFound, EmbeddingMismatch, ReembeddingRefused
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import LATEST
from loremesh_agents.ports.graph import GraphSnapshot, GraphStore
from loremesh_agents.ports.vector_sets import VectorSets
from tests.conformance.conftest import SERVED_GRAPHS, opened, vector_sets
from tests.documents import document, soon, writes
from tests.doubles.encoders import HashingEmbedder

FIRST = PassageRef(0)
MAKING, KEPT, LAPSED = ReembeddingPhase.MAKING, ReembeddingPhase.KEPT, ReembeddingPhase.LAPSED
OLD, NEW, THIRD = (
    HashingEmbedder("old", 16),
    HashingEmbedder('new\'"$`\\ — v2 {"a":1}', 16),
    HashingEmbedder("third", 24),
)
TOWNS = [document(f"d{place}", f"Town {place}", f"Town {place} lies on river {place % 3}.") for place in range(7)]


@dataclass(frozen=True)
class Kept:
    """A store, and what it offers for two models."""

    graph: GraphStore
    sets: VectorSets


@pytest.fixture(params=("sqlite", "versioned", *SERVED_GRAPHS))
async def kept(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kept]:
    async with opened(request.param, tmp_path) as stores:
        yield Kept(stores.graph, vector_sets(stores.graph))


def embedded(found: Sequence[Document], encoder: HashingEmbedder, *further: HashingEmbedder) -> list[DocumentWrite]:
    """Documents with vectors of some encoders."""

    def with_vectors(write: DocumentWrite) -> DocumentWrite:
        def text(passage) -> str:
            return full_text(write.document.title, passage.passage.headings, passage.passage.text)

        passages = tuple(
            replace(
                passage,
                vector=encoder.vector(text(passage)),
                further_vectors={other.model: other.vector(text(passage)) for other in further},
            )
            for passage in write.passages
        )
        return replace(write, passages=passages)

    return [with_vectors(write) for write in writes(*found)]


async def put(
    kept: Kept, found: Sequence[Document], encoder: HashingEmbedder, *further: HashingEmbedder, collection: str = "c"
) -> None:
    await kept.graph.write(
        collection, embedded(found, encoder, *further), embedding_model=encoder.model, deadline=soon()
    )


async def make(kept: Kept, encoder: HashingEmbedder, collection: str = "c", *, page: int = 3) -> list[str]:
    """Gives each passage that lacks one a vector; gives their texts in the order in which they came."""
    texts: list[str] = []
    last: PassageRef | None = FIRST
    while last is not None:
        found = await kept.sets.unembedded(collection, encoder.model, after=last, limit=page, deadline=soon())
        assert found.last is None or found.last > last
        vectors = {ref: encoder.vector(text) for ref, text in found.texts.items()}
        await kept.sets.add(collection, encoder.model, vectors, deadline=soon())
        texts += found.texts.values()
        last = found.last
    return texts


async def switched(kept: Kept, encoder: HashingEmbedder, collection: str = "c") -> None:
    await kept.sets.begin(collection, encoder.model, deadline=soon())
    await make(kept, encoder, collection)
    assert await kept.sets.switch(collection, encoder.model, deadline=soon())


async def dropped(kept: Kept, collection: str = "c") -> None:
    last: PassageRef | None = FIRST
    while last is not None:
        last = await kept.sets.drop(collection, after=last, limit=3, deadline=soon())


async def other(kept: Kept, collection: str = "c") -> Reembedding | None:
    return (await kept.graph.collection(collection, deadline=soon())).reembedding


async def seen(kept: Kept, snapshot: GraphSnapshot, encoder: HashingEmbedder, *documents: str) -> None:
    """Asserts that the passages of documents have the vectors of an encoder."""
    for revision in snapshot.revisions:
        asked = [(revision.collection, f"{name}#0") for name in documents]
        refs = (await snapshot.enter(passages=asked, deadline=soon())).passages.values()
        features = await snapshot.features(refs, (), deadline=soon())
        shown = await snapshot.fetch(list(refs), deadline=soon())
        assert len(features.refs) == len(documents)
        for ref, vector, has in zip(features.refs, features.vectors, features.has_vector, strict=True):
            text = full_text(shown[ref].title, shown[ref].headings, shown[ref].text)
            assert has
            np.testing.assert_allclose(vector, encoder.vector(text), atol=1e-6)


async def right(kept: Kept, encoder: HashingEmbedder, *documents: str, collection: str = "c") -> None:
    """Asserts that an encoder's vectors count, and are those of the documents and of no other, for questions and for indexes."""
    async with kept.graph.snapshot(
        [collection], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        assert snapshot.embedding_models == {collection: encoder.model}
        await seen(kept, snapshot, encoder, *documents)
    await indexed(kept, encoder, len(documents), collection)


async def indexed(kept: Kept, encoder: HashingEmbedder, count: int, collection: str = "c") -> None:
    """Asserts what an index of an encoder's vectors is told."""
    changes = await kept.graph.vector_changes(
        collection, model=encoder.model, after_revision=0, limit=1000, deadline=soon()
    )
    assert len(changes.added) == count
    async with kept.graph.snapshot(
        [collection], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        shown = await snapshot.fetch(changes.added, deadline=soon())
    for ref, vector in zip(changes.added, changes.vectors, strict=True):
        text = full_text(shown[ref].title, shown[ref].headings, shown[ref].text)
        np.testing.assert_allclose(vector, encoder.vector(text), atol=1e-6)


IDS = [town.document_id for town in TOWNS]


async def test_every_passage_lacks_a_vector_until_it_has_one(kept: Kept) -> None:
    await put(kept, TOWNS[:4], OLD)
    await put(kept, TOWNS[4:], OLD)
    found = await kept.sets.begin("c", NEW.model, deadline=soon())
    assert found.reembedding == Reembedding(NEW.model, MAKING, 0)
    assert not await kept.sets.switch("c", NEW.model, deadline=soon())
    texts = await make(kept, NEW)
    assert sorted(texts) == sorted(full_text(town.title, (), town.sections[0].text) for town in TOWNS)
    assert await make(kept, NEW) == []
    assert await other(kept) == Reembedding(NEW.model, MAKING, len(TOWNS))
    # Nothing has changed for questions.
    assert (await kept.graph.revision("c", deadline=soon())).revision == 2
    await right(kept, OLD, *IDS)


async def test_a_switch_is_one_revision_and_earlier_snapshots_stay_as_they_are(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await kept.sets.begin("c", NEW.model, deadline=soon())
    await make(kept, NEW)
    await indexed(kept, NEW, len(TOWNS))
    async with kept.graph.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as before:
        assert await kept.sets.switch("c", NEW.model, deadline=soon())
        after = await kept.graph.collection("c", deadline=soon())
        assert (after.revision, after.embedding_model) == (2, NEW.model)
        assert after.reembedding == Reembedding(OLD.model, KEPT, len(TOWNS))
        await right(kept, NEW, *IDS)
        await seen(kept, before, OLD, *IDS)
    await indexed(kept, OLD, len(TOWNS))
    # What indexes are told leads to the new revision.
    changes = await kept.graph.vector_changes("c", after_revision=1, limit=10, deadline=soon())
    assert (changes.revision, changes.added, changes.removed, changes.more) == (2, (), (), False)
    # Once more, as after a lost answer.
    assert await kept.sets.switch("c", NEW.model, deadline=soon())
    assert (await kept.graph.revision("c", deadline=soon())).revision == 2


async def test_writes_meanwhile_give_both(kept: Kept) -> None:
    await put(kept, TOWNS[:3], OLD)
    await kept.sets.begin("c", NEW.model, deadline=soon())
    await make(kept, NEW)
    await put(kept, TOWNS[3:5], OLD, NEW)
    assert await other(kept) == Reembedding(NEW.model, MAKING, 5)
    # A writer that began before knew of one model alone.
    await put(kept, TOWNS[5:], OLD)
    assert not await kept.sets.switch("c", NEW.model, deadline=soon())
    assert await other(kept) == Reembedding(NEW.model, MAKING, 5)
    assert len(await make(kept, NEW)) == 2
    assert await kept.sets.switch("c", NEW.model, deadline=soon())
    await right(kept, NEW, *IDS)
    # Then the other way round, and the vectors that count come first or second.
    await put(kept, [document("d0", "Town 0", "Town 0 was flooded.")], NEW, OLD)
    await put(kept, [document("d1", "Town 1", "Town 1 was flooded.")], OLD, NEW)
    await right(kept, NEW, *IDS)
    assert await other(kept) == Reembedding(OLD.model, KEPT, len(TOWNS))
    await indexed(kept, OLD, len(TOWNS))


async def test_what_goes_takes_its_vectors_along(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await kept.sets.begin("c", NEW.model, deadline=soon())
    found = await kept.sets.unembedded("c", NEW.model, after=FIRST, limit=4, deadline=soon())
    vectors = {ref: NEW.vector(text) for ref, text in found.texts.items()}
    await kept.sets.add("c", NEW.model, vectors, deadline=soon())
    # Of those with a vector and of those without.
    await kept.graph.delete_documents("c", ["d0", "d6"], deadline=soon())
    assert await other(kept) == Reembedding(NEW.model, MAKING, 3)
    await put(kept, [document("d1", "Town 1", "Town 1 was flooded.")], OLD)
    assert await other(kept) == Reembedding(NEW.model, MAKING, 2)
    # Vectors that come too late, or twice, are left out.
    await kept.sets.add("c", NEW.model, vectors, deadline=soon())
    assert await other(kept) == Reembedding(NEW.model, MAKING, 2)
    assert len(await make(kept, NEW)) == 3
    assert await kept.sets.switch("c", NEW.model, deadline=soon())
    await right(kept, NEW, "d1", "d2", "d3", "d4", "d5")
    await kept.graph.delete_documents("c", ["d2"], deadline=soon())
    assert await other(kept) == Reembedding(OLD.model, KEPT, 4)
    await right(kept, NEW, "d1", "d3", "d4", "d5")


async def test_back_is_at_once_where_nothing_lacks(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await switched(kept, NEW)
    await put(kept, [document("late", "Late", "A late town.")], NEW, OLD)
    await kept.sets.begin("c", OLD.model, deadline=soon())
    assert await kept.sets.switch("c", OLD.model, deadline=soon())
    await right(kept, OLD, *IDS, "late")
    assert await other(kept) == Reembedding(NEW.model, KEPT, len(TOWNS) + 1)
    await kept.sets.begin("c", NEW.model, deadline=soon())
    assert await kept.sets.switch("c", NEW.model, deadline=soon())
    await right(kept, NEW, *IDS, "late")


async def test_what_lapsed_is_made_before_the_way_back(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await switched(kept, NEW)
    await put(kept, [document("late", "Late", "A late town.")], NEW)
    assert await other(kept) == Reembedding(OLD.model, LAPSED, len(TOWNS))
    with pytest.raises(BackendUnavailable):
        await indexed(kept, OLD, len(TOWNS))
    assert not await kept.sets.switch("c", OLD.model, deadline=soon())
    await kept.sets.begin("c", OLD.model, deadline=soon())
    assert await make(kept, OLD) == ["Late. A late town."]
    assert await kept.sets.switch("c", OLD.model, deadline=soon())
    await right(kept, OLD, *IDS, "late")
    # What is written and what goes afterwards is counted like the rest.
    await put(kept, [document("later", "Later", "A later town.")], OLD, NEW)
    await kept.graph.delete_documents("c", ["late", "d3"], deadline=soon())
    left = [name for name in IDS if name != "d3"]
    await right(kept, OLD, *left, "later")
    assert await other(kept) == Reembedding(NEW.model, KEPT, len(TOWNS))
    await dropped(kept)
    await switched(kept, THIRD)
    await right(kept, THIRD, *left, "later")


async def test_a_third_model_comes_after_the_first_is_gone(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await switched(kept, NEW)
    with pytest.raises(ReembeddingRefused, match="--finish"):
        await kept.sets.begin("c", THIRD.model, deadline=soon())
    await dropped(kept)
    found = await kept.graph.collection("c", deadline=soon())
    assert (found.embedding_model, found.reembedding) == (NEW.model, None)
    await dropped(kept)
    with pytest.raises(BackendUnavailable):
        await indexed(kept, OLD, len(TOWNS))
    await switched(kept, THIRD)
    await right(kept, THIRD, *IDS)
    assert await other(kept) == Reembedding(NEW.model, KEPT, len(TOWNS))
    # The same model again: nothing of its first vectors is left.
    await dropped(kept)
    await kept.sets.begin("c", OLD.model, deadline=soon())
    assert len(await make(kept, OLD)) == len(TOWNS)


async def test_what_is_given_up_is_gone_and_comes_late_in_vain(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await kept.sets.begin("c", NEW.model, deadline=soon())
    found = await kept.sets.unembedded("c", NEW.model, after=FIRST, limit=4, deadline=soon())
    vectors = {ref: NEW.vector(text) for ref, text in found.texts.items()}
    await dropped(kept)
    await kept.sets.add("c", NEW.model, vectors, deadline=soon())
    assert await other(kept) is None
    nothing = await kept.sets.unembedded("c", NEW.model, after=FIRST, limit=4, deadline=soon())
    assert (nothing.texts, nothing.last) == ({}, None)
    assert not await kept.sets.switch("c", NEW.model, deadline=soon())
    await kept.sets.begin("c", THIRD.model, deadline=soon())
    # Of another model than is wanted now.
    await kept.sets.add("c", NEW.model, vectors, deadline=soon())
    assert await other(kept) == Reembedding(THIRD.model, MAKING, 0)
    await right(kept, OLD, *IDS)


async def test_a_collection_without_vectors_gets_some_and_nothing_is_kept(kept: Kept) -> None:
    await kept.graph.write("c", writes(*TOWNS), embedding_model="", deadline=soon())
    await switched(kept, NEW)
    await right(kept, NEW, *IDS)
    assert await other(kept) is None
    await put(kept, [document("late", "Late", "A late town.")], NEW)
    await right(kept, NEW, *IDS, "late")


async def test_an_emptied_collection_takes_vectors_of_any_model(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await switched(kept, NEW)
    await kept.graph.delete_documents("c", IDS, deadline=soon())
    await put(kept, TOWNS[:2], THIRD)
    await right(kept, THIRD, "d0", "d1")
    assert await other(kept) is None
    await switched(kept, OLD)
    await right(kept, OLD, "d0", "d1")


async def test_a_write_needs_the_model_that_counts(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await switched(kept, NEW)
    with pytest.raises(EmbeddingMismatch):
        await put(kept, [document("late", "Late", "A late town.")], OLD)
    with pytest.raises(EmbeddingMismatch):
        await put(kept, [document("late", "Late", "A late town.")], THIRD, OLD)
    await right(kept, NEW, *IDS)


async def test_collections_do_not_mix(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await put(kept, TOWNS, OLD, collection="d")
    await kept.sets.begin("d", NEW.model, deadline=soon())
    await switched(kept, NEW)
    await right(kept, OLD, *IDS, collection="d")
    await make(kept, NEW, "d")
    assert await kept.sets.switch("d", NEW.model, deadline=soon())
    async with kept.graph.snapshot(
        ["c", "d"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        await seen(kept, snapshot, NEW, *IDS)
    await dropped(kept)
    await right(kept, NEW, *IDS)
    await right(kept, NEW, *IDS, collection="d")
    await kept.sets.begin("d", OLD.model, deadline=soon())
    assert await kept.sets.switch("d", OLD.model, deadline=soon())
    await right(kept, OLD, *IDS, collection="d")
    await right(kept, NEW, *IDS)


async def test_a_deleted_collection_takes_all_along_and_one_of_its_name_begins_anew(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    await switched(kept, NEW)
    assert await kept.graph.delete_collection("c", deadline=soon())
    for call in (
        kept.sets.begin("c", NEW.model, deadline=soon()),
        kept.sets.switch("c", NEW.model, deadline=soon()),
        kept.sets.unembedded("c", NEW.model, after=FIRST, limit=1, deadline=soon()),
        kept.sets.add("c", NEW.model, {}, deadline=soon()),
        kept.sets.drop("c", after=FIRST, limit=1, deadline=soon()),
    ):
        with pytest.raises(CollectionNotFound):
            await call
    await put(kept, TOWNS[:1], THIRD)
    await right(kept, THIRD, "d0")


async def test_two_that_do_the_work_and_one_that_writes_end_right(kept: Kept) -> None:
    await put(kept, TOWNS, OLD)
    patient = Deadline.after(60)

    async def work() -> None:
        await kept.sets.begin("c", NEW.model, deadline=patient)
        while not await kept.sets.switch("c", NEW.model, deadline=patient):
            await make(kept, NEW)

    async def write() -> None:
        for place in range(6):
            found = document(f"n{place % 4}", f"New {place}", f"New town {place}.")
            for first, second in ((OLD, NEW), (NEW, OLD)):
                try:
                    await put(kept, [found], first, second)
                except EmbeddingMismatch:
                    continue
                break
        await kept.graph.delete_documents("c", ["d1", "n0"], deadline=patient)

    async with asyncio.TaskGroup() as group:
        for one in (work(), work(), write()):
            group.create_task(one)
    left = [name for name in IDS if name != "d1"] + ["n1", "n2", "n3"]
    await right(kept, NEW, *left)
    assert await other(kept) == Reembedding(OLD.model, KEPT, len(left))
    await kept.sets.begin("c", OLD.model, deadline=soon())
    assert await kept.sets.switch("c", OLD.model, deadline=soon())
    await right(kept, OLD, *left)
