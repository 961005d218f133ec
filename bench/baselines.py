"""What the retriever is compared with: rankings by one channel alone, and by both without the graph.

They read the stores that the agents have filled, through the product's own ports: the text index and the vector index propose 100 passages each, and
`domain.matching` scores these exactly, as it does for the retriever. So what the retriever has more is the graph, and its way of joining scores.

`rrf` is reciprocal rank fusion with k = 60 (Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
Methods", 2009).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bench.beir import COLLECTION
from loremesh_agents.bootstrap.backends import open_graph, open_vectors
from loremesh_agents.bootstrap.settings import StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.matching import bm25, cosine
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import PassageFeatures
from loremesh_agents.domain.revision import LATEST
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.graph import GraphSnapshot
from loremesh_agents.ports.text import TextIndex
from loremesh_agents.ports.vectors import VectorIndex

NAMES = ("bm25", "dense", "rrf")
_CANDIDATES = 100
_RRF_K = 60
_BUDGET = 60.0

Passages: TypeAlias = tuple[str, ...]
"""Names of passages by rank, `collection/document#ordinal`."""


async def rankings(
    stores: StoreSettings, embedder: Embedder | None, questions: Sequence[str]
) -> Mapping[str, list[tuple[str, ...]]]:
    """The documents of each question by rank, by baseline; without an encoder there is only `bm25`."""
    found: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        graph, text = open_graph(stores)
        stack.push_async_callback(graph.close)
        vectors = open_vectors(stores, graph) if embedder is not None else None
        if vectors is not None:
            stack.push_async_callback(vectors.close)
        for question in questions:
            deadline = Deadline.after(_BUDGET)
            async with graph.snapshot(
                [COLLECTION], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=deadline
            ) as snapshot:
                by_text = await _by_text(question, snapshot, text, deadline)
                found["bm25"].append(_documents(by_text))
                if embedder is not None and vectors is not None:
                    vector = (await embedder.embed([question], deadline=deadline))[0]
                    by_vector = await _by_vector(vector, snapshot, vectors, deadline)
                    found["dense"].append(_documents(by_vector))
                    found["rrf"].append(_documents(fused(by_text, by_vector)))
    return found


def fused(*lists: Passages) -> Passages:
    """Reciprocal rank fusion; ties by the passages' names."""
    scores: defaultdict[str, float] = defaultdict(float)
    for passages in lists:
        for rank, passage in enumerate(passages, start=1):
            scores[passage] += 1 / (_RRF_K + rank)
    return tuple(sorted(scores, key=lambda passage: (-scores[passage], passage)))


async def _by_text(question: str, snapshot: GraphSnapshot, text: TextIndex, deadline: Deadline) -> Passages:
    terms = tuple(dict.fromkeys(search_terms(question)))
    statistics = (await snapshot.enter(terms=terms, deadline=deadline)).statistics
    frequencies = statistics.document_frequencies
    proposed = await text.search(frequencies, revisions=snapshot.revisions, limit=_CANDIDATES, deadline=deadline)
    features = await snapshot.features(proposed, terms, deadline=deadline)
    return _ranked(features, bm25(features, terms, statistics))


async def _by_vector(
    vector: NDArray[np.float32], snapshot: GraphSnapshot, vectors: VectorIndex, deadline: Deadline
) -> Passages:
    model = next(iter(snapshot.embedding_models.values()))
    proposed = await vectors.search(
        vector, model=model, revisions=snapshot.revisions, limit=_CANDIDATES, deadline=deadline
    )
    features = await snapshot.features(proposed, (), deadline=deadline)
    scores = cosine(features, vector)
    assert scores is not None
    return _ranked(features, scores)


def _ranked(features: PassageFeatures, scores: NDArray[np.float64]) -> Passages:
    return tuple(name for _, name in sorted(zip((-scores).tolist(), features.passage_ids, strict=True)))


def _documents(passages: Passages) -> tuple[str, ...]:
    """The documents, each at its best passage."""
    documents = (passage.removeprefix(f"{COLLECTION}/").rpartition("#")[0] for passage in passages)
    return tuple(dict.fromkeys(documents))
