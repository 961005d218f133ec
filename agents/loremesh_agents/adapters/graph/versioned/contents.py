"""What is stored of a passage whoever writes it when: so it is computed while the write waits for its turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loremesh_agents.adapters.graph.versioned.engine import Value
from loremesh_agents.adapters.graph.versioned.terms import Features
from loremesh_agents.adapters.graph.versioned.texts import Body, searched
from loremesh_agents.domain.document import DocumentWrite


@dataclass(frozen=True, slots=True)
class PassageContent:
    """A passage without its handle and its collection.

    Attributes:
        features: For its exact score.
        properties: All others of its vertex but its vector.
        vectors: Its vectors as little-endian float32, by their models.
    """

    features: Features
    properties: dict[str, Value]
    vectors: Mapping[str, bytes]


def contents(documents: Sequence[DocumentWrite], embedding_model: str) -> list[list[PassageContent]]:
    """The passages of documents. It takes the processor: to be called in a thread.

    Args:
        documents: Whose passages.
        embedding_model: Of the passages' own vectors.
    """
    return [_passages(write, embedding_model) for write in documents]


def _passages(write: DocumentWrite, embedding_model: str) -> list[PassageContent]:
    found: list[PassageContent] = []
    for passage in write.passages:
        features = Features.of(write.document.document_id, passage)
        words, further = searched(passage)
        properties: dict[str, Value] = {
            "features": features.encoded(),
            "body": Body.of(write.document, passage).encoded(),
            "words": words,
            "further_words": further,
        }
        own = {} if passage.vector is None else {embedding_model: passage.vector}
        vectors = {
            model: vector.astype("<f4").tobytes() for model, vector in {**passage.further_vectors, **own}.items()
        }
        found.append(PassageContent(features, properties, vectors))
    return found
