"""What is stored of a passage whoever writes it when: so it is computed while the write waits for its turn."""

from collections.abc import Sequence
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
        properties: All others of its vertex.
    """

    features: Features
    properties: dict[str, Value]


def contents(documents: Sequence[DocumentWrite]) -> list[list[PassageContent]]:
    """The passages of documents. It takes the processor: to be called in a thread."""
    return [_passages(write) for write in documents]


def _passages(write: DocumentWrite) -> list[PassageContent]:
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
        if passage.vector is not None:
            properties["vector"] = passage.vector.astype("<f4").tobytes()
        found.append(PassageContent(features, properties))
    return found
