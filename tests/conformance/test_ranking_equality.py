"""The same documents and questions give the same evidence on every graph store: ids, order, and scores to a thousandth."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from loremesh_agents.adapters.vector.faiss import FaissVectorIndex
from loremesh_agents.adapters.vector.memory import MemoryVectorIndex
from loremesh_agents.domain.answer import Completion
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite, Link, Section
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.ports.derived import DerivedIndex
from loremesh_agents.ports.vectors import VectorIndex
from loremesh_agents.retriever.service import RetrieverService
from loremesh_agents.retriever.settings import RetrieverSettings
from tests.conformance.conftest import GRAPHS, Stores, opened
from tests.engines.search_indexes import OUTSIDE, KeptGraph, neo4j_index, opensearch_text
from tests.term_vectors import MODEL, TermVectors, encoded

STAFF = Principal("s", frozenset({"staff"}))
TOPICS = dict(islice(topics.items(), 60))
_TOGETHER, _AGAIN = 4, 1
ENOUGH = RetrieverSettings(text_candidates=1000, vector_candidates=1000)


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
        made.append(encoded(found))
    return made


def questions() -> list[str]:
    """Fifty questions, each about two topics and some words of a third."""
    names = list(TOPICS)
    return [
        f"How does {names[place].capitalize()} differ from {names[(place * 7 + 3) % len(names)]}"
        f" when {' '.join(TOPICS[names[(place * 11 + 5) % len(names)]].split()[40:46])}?"
        for place in range(50)
    ]


@dataclass(frozen=True)
class SetUp:
    """Where the graph is, and where candidates come from.

    Attributes:
        graph: A kind of `opened`.
        vectors: Kind of the vector index.
        text: Kind of the text index; empty for the one that belongs to the graph.
    """

    graph: str
    vectors: str
    text: str = ""

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.graph, self.text, self.vectors)))


REFERENCE = SetUp("sqlite", "memory")
SET_UPS = (
    SetUp("memory", "memory"),
    SetUp("versioned", "memory"),
    SetUp("sqlite", "faiss"),
    SetUp("neo4j", "neo4j"),
    SetUp("janusgraph", "faiss"),
    SetUp("janusgraph", "opensearch", "opensearch"),
    SetUp("janusgraph-berkeley", "faiss"),
    SetUp("janusgraph-cassandra", "cassandra"),
    SetUp("neptune-stand-in", "opensearch", "opensearch"),
)


def needs_servers(found: SetUp) -> bool:
    return found.graph not in GRAPHS or found.vectors in OUTSIDE


@asynccontextmanager
async def opened_with_vectors(
    found: SetUp, request: pytest.FixtureRequest, folder: Path
) -> AsyncIterator[tuple[Stores, VectorIndex]]:
    """The stores and the vector index of a set-up, empty; a write returns when the indexes have followed."""
    async with AsyncExitStack() as stack:
        stores = await stack.enter_async_context(opened(found.graph, folder))
        outside: list[DerivedIndex] = []
        text = stores.text
        if found.text:
            text = await stack.enter_async_context(opensearch_text(request.getfixturevalue(found.text), stores.graph))
            outside.append(text)
        if found.vectors in OUTSIDE:
            server = request.getfixturevalue(found.vectors)
            vectors = await stack.enter_async_context(OUTSIDE[found.vectors](server, stores.graph))
            outside.append(vectors)
        elif found.vectors == "neo4j":
            vectors = neo4j_index(stores.graph)
        else:
            make = {
                "memory": lambda: MemoryVectorIndex(stores.graph),
                "faiss": lambda: FaissVectorIndex(stores.graph, folder / "vectors"),
            }
            vectors = make[found.vectors]()
            stack.push_async_callback(vectors.close)
        yield Stores(KeptGraph(stores.graph, outside), text), vectors


async def evidence(stores: Stores, vectors: VectorIndex) -> list[list[tuple[str, float]]]:
    """Passages and scores by question."""
    documents = reference()
    for first in range(0, len(documents), _TOGETHER):
        # Some of them twice.
        some = documents[max(first - _AGAIN, 0) : first + _TOGETHER]
        await stores.graph.write("c", some, embedding_model=MODEL, deadline=Deadline.after(50))
    retriever = RetrieverService(stores.graph, stores.text, vectors, TermVectors(), ENOUGH)
    given: list[list[tuple[str, float]]] = []
    for question in questions():
        request = RetrievalRequest(question, ("c",), k=8)
        events = [
            event
            async for event in retriever.retrieve(
                request, principal=STAFF if "a" in question[:12] else Principal(), deadline=Deadline.after(50)
            )
        ]
        assert all(not event.degradations for event in events if isinstance(event, Completion)), question
        given.append([(event.source.passage_id, event.score) for event in events if isinstance(event, Evidence)])
    return given


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[str, float]]]:
    async def ask() -> list[list[tuple[str, float]]]:
        async with opened(REFERENCE.graph, tmp_path_factory.mktemp("reference")) as stores:
            return await evidence(stores, MemoryVectorIndex(stores.graph))

    return asyncio.run(ask())


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "found",
    [pytest.param(each, marks=[pytest.mark.engines] if needs_servers(each) else [], id=each.name) for each in SET_UPS],
)
async def test_fifty_questions_have_the_same_evidence(
    found: SetUp, expected: list[list[tuple[str, float]]], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with opened_with_vectors(found, request, tmp_path) as (stores, vectors):
        given = await evidence(stores, vectors)
    assert [[name for name, _ in answer] for answer in given] == [[name for name, _ in answer] for answer in expected]
    assert sum(map(len, expected)) > 300
    for answer, wanted in zip(given, expected, strict=True):
        assert [score for _, score in answer] == pytest.approx([score for _, score in wanted], abs=1e-3)
