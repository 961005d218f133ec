"""Vectors in clusters, as embeddings are: of uniform ones an approximate index says nothing."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.document import DocumentWrite
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.revision import LATEST, CollectionRevision
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.vectors import VectorIndex
from tests.documents import document, soon, write

_CLUSTERS = 100


class Clustered:
    """Unit vectors, and questions near some of them.

    Args:
        count: Vectors.
        dimension: Of each.
        seed: Of the random numbers.
    """

    def __init__(self, count: int, *, dimension: int, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._centres = self._random.standard_normal((_CLUSTERS, dimension))
        self.vectors = self._near(count, 0.6)

    def questions(self, count: int) -> NDArray[np.float32]:
        return self._near(count, 0.7)

    def _near(self, count: int, spread: float) -> NDArray[np.float32]:
        noise = spread * self._random.standard_normal((count, self._centres.shape[1]))
        points = self._centres[self._random.integers(0, _CLUSTERS, count)] + noise
        return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)

    def nearest(self, question: NDArray[np.float32], limit: int) -> set[str]:
        """Ids of the nearest documents, by comparison with every one."""
        return {str(row) for row in np.argsort(-(self.vectors @ question), kind="stable")[:limit]}

    async def put(self, graph: GraphStore, *, collection: str = "c") -> CollectionRevision:
        """Writes a document a vector, called by its row."""
        documents = [self._document(row, vector) for row, vector in enumerate(self.vectors)]
        revision, _ = await graph.write(collection, documents, embedding_model="m", deadline=soon())
        return revision

    def _document(self, row: int, vector: NDArray[np.float32]) -> DocumentWrite:
        found = write(document(str(row), "", "Text."))
        return replace(found, passages=tuple(replace(passage, vector=vector) for passage in found.passages))


async def recall(
    index: VectorIndex, graph: GraphStore, clustered: Clustered, revision: CollectionRevision, *, limit: int
) -> float:
    """The share of the exact nearest that an index proposes, over 50 questions."""
    found = 0
    questions = clustered.questions(50)
    async with graph.snapshot(
        [revision.collection], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=soon()
    ) as snapshot:
        for question in questions:
            refs = await index.search(question, model="m", revisions=(revision,), limit=limit, deadline=soon())
            assert len(refs) == limit
            passages = await snapshot.fetch(refs, deadline=soon())
            ids = {passage.document_id for passage in passages.values()}
            found += len(ids & clustered.nearest(question, limit))
    return found / (limit * len(questions))
