"""Composes an answer from sentences of the sources.

No model is at work: a sentence counts by the rare words of the question that it holds (weights by how few sentences hold a word), by whether it has what the
question word asks for (a date, a person, a place, a number), and by the rank of its source. Sentences are taken greedily while they cover words
of the question that are not covered yet, so that a question over two documents gets a sentence of each.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.lexicon import FUNCTION_WORDS, search_terms
from loremesh_agents.domain.sentences import sentences

MOST_STATEMENTS = 3
_LONGEST_SENTENCE = 600
_WORTH_QUOTING = 0.25
"""Least share of the question's weight that a further sentence must add."""
_ANSWERS = 0.2
"""Least share of the question's weight that the best sentence must cover; below it the evidence does not answer."""
_CUE_WEIGHT = 0.35
_RANK_DECAY = 0.93

NO_EVIDENCE = "The documents hold nothing about this question."
NO_ANSWER = "The documents do not answer this question. The nearest passage says: "


class Asked(Enum):
    """What a question word asks for."""

    PERSON = "person"
    TIME = "time"
    PLACE = "place"
    NUMBER = "number"
    ANYTHING = "anything"


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


@dataclass(frozen=True, slots=True)
class _Candidate:
    text: str
    source: int
    terms: frozenset[str]
    context: frozenset[str]
    cue: bool
    prior: float


_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_CUES = {
    Asked.TIME: re.compile(rf"\b(?:1[0-9]{{3}}|20[0-9]{{2}})\b|\b{_MONTH}\b|\b\d+(?:st|nd|rd|th) century\b"),
    Asked.PERSON: re.compile(r"\b[A-Z][a-zà-ÿ]+(?:\s+[A-Z][\w.'-]*)*\s+[A-Z][a-zà-ÿ]+\b"),
    Asked.PLACE: re.compile(r"\b(?:in|at|from|near|of|to)\s+(?:the\s+)?[A-Z][a-z]+"),
    Asked.NUMBER: re.compile(
        r"\b\d[\d,.]*\b|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|hundred|thousand|million|billion)\b"
    ),
}
_QUESTION_WORDS = (
    (
        re.compile(r"\b(?:when|since when|what (?:year|date|day|month)|which year|how old|until when|date of)\b"),
        Asked.TIME,
    ),
    (re.compile(r"\b(?:how many|how much|how (?:long|far|tall|high|large|big|fast))\b"), Asked.NUMBER),
    (
        re.compile(
            r"\b(?:where|what (?:country|city|place|state|town)|which (?:country|city|place|state|town)|place of|nationality)\b"
        ),
        Asked.PLACE,
    ),
    (re.compile(r"\b(?:who|whom|whose)\b"), Asked.PERSON),
)
_ASKING = frozenset(
    {
        "what",
        "which",
        "who",
        "whom",
        "whose",
        "when",
        "where",
        "why",
        "how",
        "many",
        "much",
        "name",
        "tell",
        "give",
        "please",
        "called",
    }
)
_SYNONYMS = {
    Asked.TIME: frozenset({"born", "died", "founded", "since", "began", "released", "established", "date", "year"}),
    Asked.PLACE: frozenset({"born", "located", "died", "based", "situated"}),
}


def asked_for(question: str) -> Asked:
    """What the question word asks for; of several the last one counts, for it asks what is wanted in the end."""
    folded = question.lower()
    best = (-1, Asked.ANYTHING)
    for pattern, kind in _QUESTION_WORDS:
        for match in pattern.finditer(folded):
            best = max(best, (match.start(), kind), key=lambda pair: pair[0])
    return best[1]


def _stem(term: str) -> str:
    for ending in ("ing", "ed", "es", "s", "ion", "or", "er"):
        if term.endswith(ending) and len(term) - len(ending) >= 4:
            return term[: -len(ending)]
    return term


def _content(text: str) -> frozenset[str]:
    return frozenset(_stem(term) for term in search_terms(text) if term not in FUNCTION_WORDS and term not in _ASKING)


def compose(question: str, sources: Sequence[Source]) -> Composition:
    """The statements that answer a question.

    Args:
        question: The question alone.
        sources: In the order of their rank.

    Returns:
        At most three statements, those that go together in the order of the sources; where nothing answers, the nearest sentence or none.
    """
    wanted = _content(question)
    kind = asked_for(question)
    candidates = [
        candidate for rank, source in enumerate(sources) for candidate in _candidates(source, rank, wanted, kind)
    ]
    if not candidates or not wanted:
        return Composition((), answers=False)
    weights = _weights(wanted, candidates)
    total = sum(weights.values())
    chosen: list[_Candidate] = []
    covered: set[str] = set()
    while len(chosen) < MOST_STATEMENTS:
        left = [candidate for candidate in candidates if candidate not in chosen]
        best = max(left, key=lambda candidate: _gain(candidate, covered, weights), default=None)
        if best is None:
            break
        added = sum(weights[term] for term in (best.terms | best.context) & wanted - covered)
        if chosen and added < _WORTH_QUOTING * total:
            break
        if not chosen and added < _ANSWERS * total:
            return Composition((Statement(best.text, best.source),) if added else (), answers=False)
        chosen.append(best)
        covered |= (best.terms | best.context) & wanted
    if kind is not Asked.ANYTHING and not any(candidate.cue for candidate in chosen):
        with_cue = [candidate for candidate in candidates if candidate.cue and candidate not in chosen]
        extra = max(with_cue, key=lambda candidate: _gain(candidate, set(), weights), default=None)
        if extra is not None and (extra.terms | extra.context) & wanted:
            chosen[MOST_STATEMENTS - 1 :] = [extra]
    order = {source.number: rank for rank, source in enumerate(sources)}
    chosen.sort(key=lambda candidate: order[candidate.source])
    return Composition(tuple(Statement(candidate.text, candidate.source) for candidate in chosen), answers=True)


def _candidates(source: Source, rank: int, wanted: frozenset[str], kind: Asked) -> list[_Candidate]:
    title = _content(source.title)
    found: list[_Candidate] = []
    cue = _CUES.get(kind)
    for place, sentence in enumerate(sentences(source.text)):
        text = " ".join(sentence.text.split())
        if len(text) > _LONGEST_SENTENCE or not any(character.isalpha() for character in text):
            continue
        terms = _content(text)
        helped = bool(_SYNONYMS.get(kind, frozenset()) & set(search_terms(text)))
        found.append(
            _Candidate(
                text=text,
                source=source.number,
                terms=terms,
                context=title & wanted,
                cue=cue is not None
                and _has_new(cue, text, wanted)
                and (helped or kind is not Asked.TIME or bool(terms & wanted)),
                prior=_RANK_DECAY**rank * (1.0 if place == 0 else 0.97),
            )
        )
    return found


def _has_new(cue: re.Pattern[str], text: str, wanted: frozenset[str]) -> bool:
    """Whether a sentence has something of the kind asked for that the question has not."""
    return any(_content(match[0]) - wanted for match in cue.finditer(text))


def _weights(wanted: frozenset[str], candidates: Sequence[_Candidate]) -> dict[str, float]:
    total = len(candidates)
    return {
        term: math.log(1 + (total + 1) / (0.5 + sum(term in candidate.terms for candidate in candidates)))
        for term in wanted
    }


def _gain(candidate: _Candidate, covered: set[str], weights: dict[str, float]) -> float:
    fresh = sum(weight for term, weight in weights.items() if term in candidate.terms and term not in covered)
    named = sum(
        weight
        for term, weight in weights.items()
        if term in candidate.context and term not in candidate.terms and term not in covered
    )
    value = fresh + 0.6 * named
    if candidate.cue:
        value += _CUE_WEIGHT * (fresh + 0.6 * named)
    length = max(len(candidate.terms), 8)
    return value * candidate.prior / float(length**0.15)


def answer_text(question: str, sources: Sequence[Source]) -> tuple[str, bool]:
    """The answer with its `[n]` markers, and whether it answers."""
    composition = compose(question, sources)
    if not composition.statements:
        return NO_EVIDENCE, False
    quoted = " ".join(f"{statement.text} [{statement.source}]" for statement in composition.statements)
    return (quoted, True) if composition.answers else (NO_ANSWER + quoted, False)
