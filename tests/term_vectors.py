"""An encoder without weights, the same everywhere: each search term has a direction of its own."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, DocumentWrite
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.passages import full_text
from tests.documents import write

DIMENSION = 64
MODEL = "term-vectors"


class TermVectors:
    """See `ports.embedding.Embedder`."""

    model = MODEL
    dimension = DIMENSION

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        return np.stack([vector_of(text) for text in texts])

    async def close(self) -> None:
        return None


def vector_of(text: str) -> NDArray[np.float32]:
    """A unit vector."""
    vector = np.zeros(DIMENSION)
    for term in search_terms(text):
        vector += np.random.default_rng(zlib.crc32(term.encode())).standard_normal(DIMENSION)
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


def encoded(found: Document) -> DocumentWrite:
    """The document with vectors of its passages."""
    made = write(found)
    passages = tuple(
        replace(each, vector=vector_of(full_text(found.title, each.passage.headings, each.passage.text)))
        for each in made.passages
    )
    return replace(made, passages=passages)
