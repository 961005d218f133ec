"""Which entities a question names, and how surely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loremesh_agents.domain.lexicon import entity_key
from loremesh_agents.domain.mentions import QuestionSpan, question_spans
from loremesh_agents.domain.retrieval import EntityStatistics

IN_GAZETTEER = 1.0
KNOWN = 0.9
KNOWN_AND_COMMON = 0.5
LOWER_CASE = 0.8
EARLIER_TURN = 0.5
_COMMON = 50
_MOST_SPANS = 2048


@dataclass(frozen=True, slots=True)
class LinkedEntity:
    """An entity that the question names.

    Attributes:
        key: Its key.
        confidence: Q[e], above 0 and at most 1.
        place: Where the question names it, as the index of the first character and after the last; None where only an earlier turn does.
    """

    key: str
    confidence: float
    place: tuple[int, int] | None = None


def candidate_spans(question: str) -> list[QuestionSpan]:
    """The spans of a question to look up; of a very long question the first two thousand."""
    return question_spans(question)[:_MOST_SPANS]


def link(
    spans: Sequence[QuestionSpan], entities: Mapping[str, EntityStatistics], context: Sequence[str]
) -> dict[str, LinkedEntity]:
    """The entities of a question by key (step 4 of the recipe in docs/retrieval.md).

    The longest spans win; a span inside one that was taken is not linked.

    Args:
        spans: Of `candidate_spans`, longer ones first.
        entities: What the store knows of their keys and of those of the context.
        context: Names of entities of earlier turns.
    """
    linked: dict[str, LinkedEntity] = {}
    taken: list[QuestionSpan] = []
    for span in spans:
        known = entities.get(span.key)
        if known is None or any(span.start < other.end and other.start < span.end for other in taken):
            continue
        confidence = _confidence(span, known)
        if confidence is None:
            continue
        taken.append(span)
        if span.key not in linked or linked[span.key].confidence < confidence:
            linked[span.key] = LinkedEntity(span.key, confidence, (span.start, span.end))
    for name in context:
        key = entity_key(name)
        if key in entities and key not in linked:
            linked[key] = LinkedEntity(key, EARLIER_TURN)
    return linked


def _confidence(span: QuestionSpan, known: EntityStatistics) -> float | None:
    if known.title_count:
        if span.capitalised or (span.nameable and span.words == 1):
            return IN_GAZETTEER
        if span.words > 1:
            return IN_GAZETTEER if any(word[:1].isupper() for word in span.text.split()) else LOWER_CASE
        return LOWER_CASE / 2 if len(span.key) > 2 else None
    if span.capitalised:
        return KNOWN if known.mention_count < _COMMON else KNOWN_AND_COMMON
    return None
