"""The ranking: exact text and vector scores, and two rounds of max-propagation over the graph.

Sources: BM25 is Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), with the idf of Lucene, ln(1 + (N - df + 0.5) / (df + 0.5)). The
propagation is our own; docs/retrieval.md derives it. Nothing here knows a store: what a ranking returns depends on the documents, not on the
engine that proposed them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.linking import LinkedEntity
from loremesh_agents.domain.retrieval import (
    EntityStatistics,
    Expansion,
    Linked,
    PassageFeatures,
    PassageRef,
    TermStatistics,
)

K1 = 0.9
B = 0.4
TEXT_WEIGHT = 0.3
PRIOR_WEIGHT = 0.9
GRAPH_WEIGHT = 1.5
SEEDS = 5
MENTION_LIMIT = 60
"""Entities with more mentions are not followed from passage to passage: they connect everything with everything."""
_ACTIVATION_CAP = 1.5
_MENTION_SHARE = 0.4
_QUESTION_SHARE = 0.6
_TITLE_SHARE = 0.3
_CO_MENTION = 0.24
_EARLIER_PASSAGE = 0.3


def bm25(features: PassageFeatures, terms: Sequence[str], statistics: TermStatistics) -> NDArray[np.float64]:
    """BM25 of each passage for the question's terms, shape (n,)."""
    if not terms or not statistics.passage_count:
        return np.zeros(len(features.refs))
    total = statistics.passage_count
    frequencies = np.array([statistics.document_frequencies.get(term, 0) for term in terms], dtype=np.float64)
    idf = np.log1p((total - frequencies + 0.5) / (frequencies + 0.5))
    counts = features.term_frequencies.astype(np.float64)
    norm = K1 * (1 - B + B * features.lengths.astype(np.float64) / max(statistics.mean_length, 1e-9))
    return np.asarray((idf * counts * (K1 + 1) / (counts + norm[:, None])).sum(axis=1), dtype=np.float64)


def cosine(features: PassageFeatures, question: NDArray[np.float32] | None) -> NDArray[np.float64] | None:
    """Cosine of each passage's vector and the question's, shape (n,); 0 for passages without one, None without a question vector.

    Raises:
        ValueError: The dimensions differ, or a vector is not finite.
    """
    if question is None:
        return None
    if not np.isfinite(question).all():
        raise ValueError("the question's vector holds values that are not finite")
    if not features.has_vector.any():
        return np.zeros(len(features.refs))
    if features.vectors.shape[1] != question.shape[0]:
        raise ValueError(
            f"the question's vector has {question.shape[0]} dimensions, those of the passages {features.vectors.shape[1]}"
        )
    with np.errstate(invalid="ignore"):  # an infinite value is reported below
        found = np.asarray(features.vectors @ question, dtype=np.float64)
    broken = np.flatnonzero(~np.isfinite(found))
    if broken.size:
        raise ValueError(f"the vector of {features.passage_ids[broken[0]]} holds values that are not finite")
    return found


@dataclass(frozen=True, slots=True)
class Trail:
    """What brought a passage the most.

    Attributes:
        seed: The passage that it came from; None for the question itself.
        entity: The entity in between; empty for a link.
        by_title: Whether the passage bears the entity's name; else it mentions it.
    """

    seed: PassageRef | None
    entity: str
    by_title: bool


@dataclass(slots=True)
class _Candidate:
    name: str
    cosine: float
    bm25: float
    prior: float = 0.0
    prior_entity: str = ""
    score: float = 0.0
    graph: float = 0.0
    trail: Trail | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage in the ranking.

    Attributes:
        ref: The passage.
        score: Its score.
        cosine: None without an encoder.
        text_score: BM25 over the best of the query.
        graph_score: What links and propagation gave.
        trail: What gave the most of that; None where nothing did.
    """

    ref: PassageRef
    score: float
    cosine: float | None
    text_score: float
    graph_score: float
    trail: Trail | None


@dataclass(slots=True)
class Ranking:
    """The candidates of one question and their scores.

    Args:
        terms: Search terms of the question, each once.
        statistics: Of these terms.
        question: The question's unit vector; None without an encoder.
        linked: What the question names, by entity key.
    """

    terms: Sequence[str]
    statistics: TermStatistics
    question: NDArray[np.float32] | None
    linked: Mapping[str, LinkedEntity]
    _candidates: dict[PassageRef, _Candidate] = field(default_factory=dict[PassageRef, _Candidate])
    _priors: dict[PassageRef, tuple[float, str]] = field(default_factory=dict[PassageRef, tuple[float, str]])
    _names: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def known(self) -> frozenset[PassageRef]:
        """The candidates."""
        return frozenset(self._candidates)

    def name(self, entity: str) -> str:
        """An entity's name as a passage writes it, by its key; the key where no more is known."""
        return self._names.get(entity, entity)

    def add_links(self, linked: Linked) -> None:
        """Takes the title edges of the entities that the question names: sc's last part, 0.9 Q[e] w / tdf^0.25."""
        self._names.update((key, entity.name) for key, entity in linked.entities.items())
        for edge in linked.titles:
            entity = self.linked.get(edge.entity)
            if entity is None:
                continue
            titles = max(linked.entities[edge.entity].title_count, 1)
            prior = PRIOR_WEIGHT * entity.confidence * edge.weight / titles**0.25
            if prior > self._priors.get(edge.passage, (0.0, ""))[0]:
                self._priors[edge.passage] = (prior, edge.entity)

    def add_context(self, passages: Sequence[PassageRef]) -> None:
        """Takes the passages that earlier answers cited."""
        for passage in passages:
            if passage not in self._priors:
                self._priors[passage] = (_EARLIER_PASSAGE, "")

    def add(self, features: PassageFeatures) -> None:
        """Takes candidates."""
        text = bm25(features, self.terms, self.statistics)
        similar = cosine(features, self.question)
        for row, (ref, name) in enumerate(zip(features.refs, features.passage_ids, strict=True)):
            if ref in self._candidates:
                continue
            prior, entity = self._priors.get(ref, (0.0, ""))
            similarity = float(similar[row]) if similar is not None else 0.0
            self._candidates[ref] = _Candidate(name, similarity, float(text[row]), prior, entity)

    def begin(self) -> None:
        """Scores all candidates by vectors, text and the question's links; nothing has been propagated yet."""
        self._score({})

    def seeds(self) -> tuple[PassageRef, ...]:
        """The passages to expand from: the best five."""
        return tuple(ref for ref, _ in self._ordered()[:SEEDS])

    def propagate(self, expansion: Expansion) -> None:
        """One round: what the seeds mention, bear and link to lends score to the passages that are named after it or mention it too."""
        activation = {ref: min(max(self._candidates[ref].score, 0.0), _ACTIVATION_CAP) for ref in self.seeds()}
        self.add(expansion.features)
        self._names.update((key, entity.name) for key, entity in expansion.entities.items())
        gains: dict[PassageRef, tuple[float, Trail]] = {}

        def gain(ref: PassageRef, value: float, trail: Trail) -> None:
            if value > gains.get(ref, (0.0, trail))[0]:
                gains[ref] = (value, trail)

        by_mention: dict[str, tuple[float, PassageRef | None]] = {}
        for edge in expansion.seed_mentions:
            value = _MENTION_SHARE * activation.get(edge.passage, 0.0) ** 2
            if value > by_mention.get(edge.entity, (0.0, None))[0]:
                by_mention[edge.entity] = (value, edge.passage)
        either = dict(by_mention)
        for title in expansion.seed_titles:
            value = _TITLE_SHARE * activation.get(title.passage, 0.0)
            if value > either.get(title.entity, (0.0, None))[0]:
                either[title.entity] = (value, title.passage)
        for key, entity in self.linked.items():
            value = _QUESTION_SHARE * entity.confidence
            if value > either.get(key, (0.0, None))[0]:
                either[key] = (value, None)
        for title in expansion.titles:
            value, seed = by_mention.get(title.entity, (0.0, None))
            if value:
                spread = _spread(expansion.entities[title.entity])
                gain(title.passage, value * title.weight / spread, Trail(seed, title.entity, by_title=True))
        for mention in expansion.mentions:
            value, seed = either.get(mention.entity, (0.0, None))
            if value:
                common = math.log2(1.5 + expansion.entities[mention.entity].mention_count) ** 0.3
                gain(mention.passage, _CO_MENTION * value / common, Trail(seed, mention.entity, by_title=False))
        for reference in expansion.references:
            value = _MENTION_SHARE * activation.get(reference.source, 0.0) ** 2
            gain(
                reference.target,
                value / max(reference.in_degree, 1) ** 0.3,
                Trail(reference.source, "", by_title=False),
            )
        self._score(gains)

    def top(self, count: int) -> tuple[Ranked, ...]:
        """The best candidates, the best first; ties by the passages' names."""
        best_text = self._best_text()
        return tuple(
            Ranked(
                ref,
                candidate.score,
                candidate.cosine if self.question is not None else None,
                candidate.bm25 / best_text,
                candidate.graph,
                candidate.trail,
            )
            for ref, candidate in self._ordered()[:count]
        )

    def _ordered(self) -> list[tuple[PassageRef, _Candidate]]:
        return sorted(self._candidates.items(), key=lambda item: (-item[1].score, item[1].name))

    def _best_text(self) -> float:
        return max((candidate.bm25 for candidate in self._candidates.values()), default=0.0) or 1.0

    def _score(self, gains: Mapping[PassageRef, tuple[float, Trail]]) -> None:
        best_text = self._best_text()
        for ref, candidate in self._candidates.items():
            base = (candidate.cosine + TEXT_WEIGHT * candidate.bm25 / best_text) / (1 + TEXT_WEIGHT)
            value, trail = gains.get(ref, (0.0, None))
            value *= GRAPH_WEIGHT
            candidate.score = base + candidate.prior + value
            candidate.graph = candidate.prior + value
            # That a passage mentions its own name strengthens it, but explains nothing.
            if candidate.prior >= value or (trail is not None and trail.seed == ref):
                own = Trail(None, candidate.prior_entity, by_title=True)
                candidate.trail = own if candidate.prior else None
            else:
                candidate.trail = trail


def _spread(entity: EntityStatistics) -> float:
    return float(max(entity.title_count, 1) ** 0.8 * max(entity.mention_count, 1) ** 0.3)
