"""The same documents and questions give the same evidence on every graph store: ids, order, and scores to a thousandth."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from numpy.typing import NDArray

from loremesh_agents.adapters.vector.memory import MemoryVectorIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite, Link, Section
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings
from tests.conformance.conftest import GRAPHS, Stores, opened
from tests.documents import write

DIMENSION = 64
STAFF = Principal("s", frozenset({"staff"}))
TOPICS = dict(islice(topics.items(), 60))
ENOUGH = RetrieverSettings(text_candidates=1000, vector_candidates=1000)


class BagOfTerms:
    """An encoder: each term has a fixed direction."""

    model = "bag-of-terms"
    dimension = DIMENSION

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        return np.stack([vector_of(text) for text in texts])

    async def close(self) -> None:
        return None


def vector_of(text: str) -> NDArray[np.float32]:
    vector = np.zeros(DIMENSION)
    for term in search_terms(text):
        vector += np.random.default_rng(zlib.crc32(term.encode())).standard_normal(DIMENSION)
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def reference() -> list[DocumentWrite]:
    """Topics of the Python language reference that link to one another, some for staff alone."""
    made: list[DocumentWrite] = []
    names = list(TOPICS)
    for place, (name, text) in enumerate(TOPICS.items()):
        found = Document(
            name,
            name.capitalize(),
            (Section(text[:6000], links=(Link(f"pydoc:{names[place - 1]}"),)),),
            aliases=(name,),
            uri=f"pydoc:{name}",
            readers=frozenset({"staff"}) if place % 7 == 3 else frozenset(),
            content_hash=hashlib.sha256(text.encode()).hexdigest(),
        )
        taken = write(found)
        passages = tuple(
            replace(passage, vector=vector_of(full_text(found.title, passage.passage.headings, passage.passage.text)))
            for passage in taken.passages
        )
        made.append(replace(taken, passages=passages))
    return made


def questions() -> list[str]:
    """Fifty questions, each about two topics and some words of a third."""
    names = list(TOPICS)
    return [
        f"How does {names[place].capitalize()} differ from {names[(place * 7 + 3) % len(names)]}"
        f" when {' '.join(TOPICS[names[(place * 11 + 5) % len(names)]].split()[40:46])}?"
        for place in range(50)
    ]


async def evidence(stores: Stores) -> list[list[tuple[str, float]]]:
    await stores.graph.write("c", reference()[:30], embedding_model="bag-of-terms", deadline=Deadline.after(50))
    await stores.graph.write("c", reference()[20:], embedding_model="bag-of-terms", deadline=Deadline.after(50))
    vectors = MemoryVectorIndex(stores.graph)
    retriever = RetrieverService(stores.graph, stores.text, vectors, BagOfTerms(), ENOUGH)
    given: list[list[tuple[str, float]]] = []
    for question in questions():
        request = RetrievalRequest(question, ("c",), k=8)
        events = retriever.retrieve(
            request, principal=STAFF if "a" in question[:12] else Principal(), deadline=Deadline.after(50)
        )
        given.append([(e.source.passage_id, e.score) async for e in events if isinstance(e, Evidence)])
    return given


@pytest.mark.parametrize("kind", [kind for kind in GRAPHS if kind != "sqlite"])
async def test_fifty_questions_have_the_same_evidence(kind: str, tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as sqlite, opened(kind, tmp_path) as other:
        expected, given = await evidence(sqlite), await evidence(other)
    assert [[name for name, _ in answer] for answer in given] == [[name for name, _ in answer] for answer in expected]
    assert sum(map(len, expected)) > 300
    for answer, wanted in zip(given, expected, strict=True):
        assert [score for _, score in answer] == pytest.approx([score for _, score in wanted], abs=1e-3)
