"""Composes an answer from sentences of the sources.

No model is at work: the answer quotes the chain of sentences that leads best from what the question names to what it asks for (`chains`, `asking`). A question
that compares two subjects is asked of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.chains import Evidence, Link, Reading, bare, read
from loremesh_agents.domain.comparison import compared

_MOST_STATEMENTS = 3
_MOST_OF_EACH = 2
"""Statements about each of two subjects that are compared."""
_ANSWERS = 0.25
"""Least share of the question's weight that the best sentence must cover; below it the evidence does not answer."""

NO_EVIDENCE = "The documents hold nothing about this question."
NO_ANSWER = "The documents do not answer this question. The nearest passage says: "


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of a source that the answer quotes."""

    text: str
    source: int


@dataclass(frozen=True, slots=True)
class Composition:
    """The statements of an answer, and whether they answer the question."""

    statements: tuple[Statement, ...]
    answers: bool


def compose(question: str, sources: Sequence[Source]) -> Composition:
    """The statements that answer a question.

    Args:
        question: The question alone.
        sources: In the order of their rank.

    Returns:
        At most three statements in the order of the sources, of a comparison at most two about each subject; where nothing answers, the nearest sentence or
        none.
    """
    readings = [read(source) for source in sources]
    evidence = Evidence(question, readings)
    nearest, share = evidence.nearest()
    if nearest is None:
        return Composition((), answers=False)
    if share < _ANSWERS:
        return Composition(_quoted([nearest], readings), answers=False)
    alternatives = compared(question, [bare(source.title) for source in sources])
    if not alternatives:
        return Composition(_quoted(evidence.best_chain(_MOST_STATEMENTS), readings), answers=True)
    statements: list[Statement] = []
    for alternative in alternatives:
        kept = [reading for place, reading in enumerate(readings) if place not in alternative.others]
        statements += _quoted(Evidence(alternative.question, kept, compares=True).best_chain(_MOST_OF_EACH), kept)
    return Composition(tuple(dict.fromkeys(statements)), answers=True)


def _quoted(links: Sequence[Link], readings: Sequence[Reading]) -> tuple[Statement, ...]:
    return tuple(Statement(link.text, readings[link.source].source.number) for link in links)


def answer_text(question: str, sources: Sequence[Source]) -> tuple[str, bool]:
    """The answer with its `[n]` markers, and whether it answers."""
    composition = compose(question, sources)
    if not composition.statements:
        return NO_EVIDENCE, False
    quoted = " ".join(f"{statement.text} [{statement.source}]" for statement in composition.statements)
    return (quoted, True) if composition.answers else (NO_ANSWER + quoted, False)
