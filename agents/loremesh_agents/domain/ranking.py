"""The ranking: what a passage says itself, what the question names, and max-propagation through the graph.

The propagation is our own; docs/retrieval.md derives it. Nothing here knows a store: what a ranking returns depends on the documents, not on the
engine that proposed them.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.linking import LinkedEntity
from loremesh_agents.domain.matching import bm25, cosine, inverse_frequencies
from loremesh_agents.domain.ranker import SIGNALS
from loremesh_agents.domain.retrieval import (
    EntityStatistics,
    EntryPoints,
    Expansion,
    PassageFeatures,
    PassageRef,
    ReferenceEdge,
    TermStatistics,
)

TEXT_WEIGHT = 0.3
PRIOR_WEIGHT = 0.9
GRAPH_WEIGHT = 2.2
SEEDS = 4
MENTION_LIMIT = 60
"""Entities with more mentions are not followed from passage to passage: they connect everything with everything."""
_ACTIVATION_CAP = 2.0
_MENTION_SHARE = 0.4
_QUESTION_SHARE = 0.6
_TITLE_SHARE = 0.3
_CO_MENTION = 0.24
_EARLIER_PASSAGE = 0.3
SUBSTITUTION_WEIGHT = 0.65
RELEVANCE_WEIGHT = 0.5
"""Of a ranker's opinion: it helps on questions like those that it has seen, and must not hurt on others."""
_ASSOCIATES = 8
_ASSOCIATES_OF_SEED = 4
_UNKNOWN_NEARNESS = 0.25

_Key = TypeVar("_Key")
_Origin = TypeVar("_Origin")


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


class _Largest(dict[_Key, tuple[float, _Origin]]):
    """The largest positive value of each key and where it came from; of equal ones the first."""

    def offer(self, key: _Key, value: float, origin: _Origin) -> None:
        if value > (self[key][0] if key in self else 0.0):
            self[key] = (value, origin)


@dataclass(slots=True)
class _Gains:
    """What passages are offered, in order, and by what."""

    refs: list[PassageRef] = field(default_factory=list[PassageRef])
    values: list[float] = field(default_factory=list[float])
    trails: list[Trail] = field(default_factory=list[Trail])
    origins: list[int] = field(default_factory=list[int])
    """Of each value, the place of its trail."""

    def offer(self, refs: Collection[PassageRef], values: Iterable[float], trail: Trail) -> None:
        self.refs.extend(refs)
        self.values.extend(values)
        self.origins.extend([len(self.trails)] * len(refs))
        self.trails.append(trail)

    def largest(self) -> tuple[list[PassageRef], NDArray[np.float64], list[Trail]]:
        """The passages that are offered something, the largest value of each, and what offered it; of equal ones the first."""
        values = np.array(self.values)
        descending = np.argsort(-values, kind="stable")
        descending = descending[values[descending] > 0]
        refs = np.array(self.refs, dtype=np.int64)
        found, first = np.unique(refs[descending], return_index=True)
        best = descending[first]
        return found.tolist(), values[best], [self.trails[self.origins[place]] for place in best.tolist()]


@dataclass(slots=True)
class _Neighbourhood:
    """What is known of the graph around the passages that were seeds."""

    explored: set[PassageRef] = field(default_factory=set[PassageRef])
    entities: dict[str, EntityStatistics] = field(default_factory=dict[str, EntityStatistics])
    mentioned: defaultdict[PassageRef, list[str]] = field(default_factory=lambda: defaultdict(list))
    borne: defaultdict[PassageRef, list[str]] = field(default_factory=lambda: defaultdict(list))
    bearers: defaultdict[str, dict[PassageRef, float]] = field(default_factory=lambda: defaultdict(dict))
    mentioners: dict[str, Sequence[PassageRef]] = field(default_factory=dict[str, Sequence[PassageRef]])
    references: defaultdict[PassageRef, list[ReferenceEdge]] = field(default_factory=lambda: defaultdict(list))

    def take(self, expansion: Expansion) -> None:
        self.entities.update(expansion.entities)
        # By their keys: which of two equal gains explains a passage must not depend on the store's order.
        for mention in sorted(expansion.seed_mentions, key=lambda edge: edge.entity):
            self.mentioned[mention.passage].append(mention.entity)
        for title in sorted(expansion.seed_titles, key=lambda edge: edge.entity):
            self.borne[title.passage].append(title.entity)
        for title in expansion.titles:
            self.bearers[title.entity][title.passage] = title.weight
        self.mentioners.update(expansion.mentions)
        for reference in expansion.references:
            self.references[reference.source].append(reference)


class Ranking:
    """The candidates of one question and their scores.

    Args:
        terms: Search terms of the question, each once.
        statistics: Of these terms.
        question: The question's unit vector; None without an encoder.
        linked: What the question names, by entity key.
    """

    def __init__(
        self,
        terms: Sequence[str],
        statistics: TermStatistics,
        question: NDArray[np.float32] | None,
        linked: Mapping[str, LinkedEntity],
    ) -> None:
        self.linked = linked
        self._terms = terms
        self._statistics = statistics
        self.question = question
        self._priors: dict[PassageRef, tuple[float, str]] = {}
        self._written: dict[str, str] = {}
        self._graph = _Neighbourhood()
        # One row a candidate in each of these.
        self._rows: dict[PassageRef, int] = {}
        self._refs: list[PassageRef] = []
        self._names: list[str] = []
        self._cosine = np.zeros(0)
        self._bm25 = np.zeros(0)
        self._prior = np.zeros(0)
        self._gain = np.zeros(0)
        self._score = np.zeros(0)
        self._first_gain = np.zeros(0)
        self._substituted = np.zeros(0)
        self._holds: NDArray[np.bool_] = np.zeros((0, len(terms)), dtype=np.bool_)
        self._vectors: list[NDArray[np.float32]] = []
        self._trails: dict[PassageRef, Trail] = {}
        self._seeds: tuple[PassageRef, ...] = ()
        self._lending: tuple[PassageRef, ...] | None = None

    @property
    def known(self) -> frozenset[PassageRef]:
        """The candidates."""
        return frozenset(self._refs)

    def name(self, entity: str) -> str:
        """An entity's name as a passage writes it, by its key; the key where no more is known."""
        return self._written.get(entity, entity)

    def add_links(self, entry: EntryPoints) -> None:
        """Takes the title edges of the entities that the question names: sc's last part, 0.9 Q[e] w / tdf^0.25."""
        self._written.update((key, entity.name) for key, entity in entry.entities.items())
        for edge in entry.titles:
            entity = self.linked.get(edge.entity)
            if entity is None:
                continue
            titles = max(entry.entities[edge.entity].title_count, 1)
            prior = PRIOR_WEIGHT * entity.confidence * edge.weight / titles**0.25
            if prior > self._priors.get(edge.passage, (0.0, ""))[0]:
                self._priors[edge.passage] = (prior, edge.entity)

    def add_context(self, passages: Sequence[PassageRef]) -> None:
        """Takes the passages that earlier answers cited."""
        for passage in passages:
            if passage not in self._priors:
                self._priors[passage] = (_EARLIER_PASSAGE, "")

    def add(self, features: PassageFeatures) -> None:
        """Takes candidates; they are scored with the next `begin` or `propagate`."""
        if not self._rows.keys().isdisjoint(features.refs):
            features = _only(features, [row for row, ref in enumerate(features.refs) if ref not in self._rows])
        text = bm25(features, self._terms, self._statistics)
        similar = cosine(features, self.question)
        rows = range(len(self._refs), len(self._refs) + len(features.refs))
        self._rows.update(zip(features.refs, rows, strict=True))
        self._refs.extend(features.refs)
        self._names.extend(features.passage_ids)
        self._bm25 = np.concatenate([self._bm25, text])
        self._cosine = np.concatenate([self._cosine, similar if similar is not None else np.zeros(len(text))])
        priors = [self._priors[ref][0] if ref in self._priors else 0.0 for ref in features.refs]
        self._prior = np.concatenate([self._prior, priors])
        self._holds = np.concatenate([self._holds, features.term_frequencies > 0])
        if self.question is not None:
            known = features.vectors.shape[1] > 0
            empty = np.zeros((len(text), len(self.question)), dtype=np.float32)
            self._vectors.append(features.vectors if known else empty)

    def begin(self) -> None:
        """Scores all candidates by vectors, text and the question's links; nothing has been propagated yet."""
        self._rate(_Gains())

    def seeds(self) -> tuple[PassageRef, ...]:
        """The passages that lend their score to others: the best four."""
        if self._lending is None:
            self._lending = tuple(self._refs[row] for row in self._best(SEEDS))
        return self._lending

    def frontier(self) -> tuple[PassageRef, ...]:
        """The seeds whose neighbourhood is not known yet."""
        return tuple(ref for ref in self.seeds() if ref not in self._graph.explored)

    def propagate(self, expansion: Expansion | None = None) -> None:
        """One round: what the seeds mention, bear and link to lends score to the passages that are named after it or mention it too.

        Args:
            expansion: The neighbourhood of the frontier; None where there is no frontier.
        """
        activation = {ref: self._activation(ref) for ref in self.seeds()}
        if expansion is not None:
            self._graph.explored.update(activation)
            self._graph.take(expansion)
            self._written.update((key, entity.name) for key, entity in expansion.entities.items())
            self.add(expansion.features)
        self._seeds = tuple(activation)
        self._rate(self._gains(activation))
        if not self._first_gain.any():
            self._first_gain = self._gain

    def _activation(self, seed: PassageRef) -> float:
        return min(max(float(self._score[self._rows[seed]]), 0.0), _ACTIVATION_CAP)

    def associates(self) -> tuple[str, ...]:
        """Keys of the entities that the seeds mention beside what the question names, the likeliest bridges first.

        An entity counts as much as its seed times the cosine of the question and the passage that bears the entity's name, at the best.
        """
        found = _Largest[str, None]()
        for seed in self.seeds():
            activation = self._activation(seed)
            near = {
                key: activation * self._nearness(key)
                for key in self._graph.mentioned.get(seed, ())
                if key not in self.linked
            }
            for key in sorted(near, key=lambda key: (-near[key], key))[:_ASSOCIATES_OF_SEED]:
                found.offer(key, near[key], None)
        return tuple(sorted(found, key=lambda key: (-found[key][0], key))[:_ASSOCIATES])

    def _nearness(self, entity: str) -> float:
        rows = [self._rows[ref] for ref in self._graph.bearers.get(entity, ()) if ref in self._rows]
        return max((float(self._cosine[row]) for row in rows), default=_UNKNOWN_NEARNESS)

    def substitute(self, questions: NDArray[np.float32]) -> None:
        """Raises what is near one of the questions in which an associate stands in place of a linked entity.

        Args:
            questions: Their unit vectors, shape (questions, dimension).
        """
        similar = np.concatenate(self._vectors) @ questions.T
        self._substituted = similar.max(axis=1).astype(np.float64)
        self._score = self._score + SUBSTITUTION_WEIGHT * self._substituted
        self._lending = None

    def _gains(self, activation: Mapping[PassageRef, float]) -> _Gains:
        """What passages are lent, and by what."""
        graph = self._graph
        gains = _Gains()
        lent = _Largest[str, PassageRef | None]()
        for seed, act in activation.items():
            for key in graph.mentioned.get(seed, ()):
                lent.offer(key, _MENTION_SHARE * act**2, seed)
            for reference in graph.references.get(seed, ()):
                value = _MENTION_SHARE * act**2 / max(reference.in_degree, 1) ** 0.3
                gains.offer([reference.target], [value], Trail(seed, "", by_title=False))
        for key, (value, origin) in lent.items():
            entity = graph.entities[key]
            spread = max(entity.title_count, 1) ** 0.6 * max(entity.mention_count, 1) ** 0.3
            bearers = graph.bearers.get(key, {})
            shares = [value * weight / spread for weight in bearers.values()]
            gains.offer(bearers, shares, Trail(origin, key, by_title=True))
        for seed, act in activation.items():
            for key in graph.borne.get(seed, ()):
                lent.offer(key, _TITLE_SHARE * act, seed)
        for key, linked in self.linked.items():
            lent.offer(key, _QUESTION_SHARE * linked.confidence, None)
        for key, (value, origin) in lent.items():
            mentioners = graph.mentioners.get(key, ())
            if mentioners:
                share = _CO_MENTION * value / math.log2(1.5 + graph.entities[key].mention_count) ** 0.3
                gains.offer(mentioners, [share] * len(mentioners), Trail(origin, key, by_title=False))
        return gains

    def signals(self, count: int) -> NDArray[np.float64]:
        """What a ranker sees of the best candidates, in their order, shape (n, len(SIGNALS)).

        Ranks count from 0. `own_rank` is that without the graph; `coverage` the share of the question's terms, weighted by idf, that a passage
        holds, `new_coverage` of those that the best candidate lacks. `trail` is 0 without one, 1 by a title, 2 by a mention, 3 by a link; what is
        said of its entity and seed is -1 where it has none.
        """
        rows = np.array(self._best(count), dtype=np.intp)
        found = np.zeros((len(rows), len(SIGNALS)))
        if not len(rows):
            return found
        text = self._bm25 / self._best_text()
        first_gain = np.zeros(len(self._refs))
        first_gain[: len(self._first_gain)] = self._first_gain
        substituted = self._substituted if len(self._substituted) else np.zeros(len(self._refs))
        idf = inverse_frequencies(self._terms, self._statistics)
        total = float(idf.sum()) or 1.0
        holds = self._holds[rows]
        columns = {
            "cosine": self._cosine[rows],
            "text": text[rows],
            "prior": self._prior[rows],
            "gain": self._gain[rows],
            "first_gain": first_gain[rows],
            "score": self._score[rows],
            "score_gap": self._score[rows] - self._score[rows[0]],
            "rank": np.arange(len(rows)),
            "cosine_rank": _ranks(self._cosine)[rows],
            "text_rank": _ranks(text)[rows],
            "own_rank": _ranks(self._own())[rows],
            "coverage": (holds * idf).sum(axis=1) / total,
            "new_coverage": ((holds & ~holds[0]) * idf).sum(axis=1) / total,
            "substituted": substituted[rows],
            "substituted_rank": _ranks(substituted)[rows],
        }
        for name, values in columns.items():
            found[:, SIGNALS.index(name)] = values
        first = SIGNALS.index("trail")
        found[:, first : first + 7] = [self._trail_signals(self._refs[int(row)]) for row in rows]
        return found

    def _trail_signals(self, ref: PassageRef) -> tuple[float, ...]:
        """`trail`, `log_mentions`, `log_titles`, `seed_rank`, `seed_score`, `seed_cosine` and `names_itself`."""
        trail = self._trails.get(ref)
        if trail is None:
            return (0, -1, -1, -1, -1, -1, 0)
        kind = 1 if trail.by_title else 2 if trail.entity else 3
        entity = self._graph.entities.get(trail.entity)
        counts = (math.log1p(entity.mention_count), math.log1p(entity.title_count)) if entity is not None else (-1, -1)
        if trail.seed is None:
            return (kind, *counts, -1, -1, -1, 0)
        seed = self._rows[trail.seed]
        rank = self._seeds.index(trail.seed)
        return (kind, *counts, rank, float(self._score[seed]), float(self._cosine[seed]), float(trail.seed == ref))

    def top(self, count: int) -> tuple[Ranked, ...]:
        """The best candidates, the best first; ties by the passages' names."""
        best_text = self._best_text()
        return tuple(
            Ranked(
                self._refs[row],
                float(self._score[row]),
                float(self._cosine[row]) if self.question is not None else None,
                float(self._bm25[row] / best_text),
                float(self._prior[row] + self._gain[row]),
                self._trail(self._refs[row], row),
            )
            for row in self._best(count)
        )

    def weigh(self, relevance: NDArray[np.float64]) -> None:
        """Takes a ranker's opinion of the best candidates, which counts beside their scores.

        Args:
            relevance: Probability that each of them is relevant, in the order of `signals`, shape (n,).
        """
        self._score = self._score.copy()
        self._score[self._best(len(relevance))] += RELEVANCE_WEIGHT * relevance
        self._lending = None

    def _best(self, count: int) -> list[int]:
        """The rows of the best candidates, in order."""
        if len(self._refs) > count:
            least = np.partition(self._score, -count)[-count]
            rows = np.flatnonzero(self._score >= least).tolist()
        else:
            rows = list(range(len(self._refs)))
        return sorted(rows, key=lambda row: (-self._score[row], self._names[row]))[:count]

    def _best_text(self) -> float:
        return float(self._bm25.max(initial=0.0)) or 1.0

    def _rate(self, gains: _Gains) -> None:
        refs, values, trails = gains.largest()
        # The last one is for what no candidate is: a store may have left it out meanwhile.
        self._gain = np.zeros(len(self._refs) + 1)
        self._gain[[self._rows.get(ref, -1) for ref in refs]] = GRAPH_WEIGHT * values
        self._gain = self._gain[:-1]
        self._trails = dict(zip(refs, trails, strict=True))
        self._score = self._own() + self._gain
        self._lending = None

    def _own(self) -> NDArray[np.float64]:
        """What a passage says itself, and what the question names of it."""
        own: NDArray[np.float64] = (self._cosine + TEXT_WEIGHT * self._bm25 / self._best_text()) / (1 + TEXT_WEIGHT)
        return own + self._prior

    def _trail(self, ref: PassageRef, row: int) -> Trail | None:
        trail = self._trails.get(ref)
        # That a passage mentions its own name strengthens it, but explains nothing.
        if self._prior[row] >= self._gain[row] or (trail is not None and trail.seed == ref):
            return Trail(None, self._priors[ref][1], by_title=True) if self._prior[row] else None
        return trail


def _only(features: PassageFeatures, rows: Sequence[int]) -> PassageFeatures:
    """The features of some passages."""
    return PassageFeatures(
        tuple([features.refs[row] for row in rows]),
        tuple([features.passage_ids[row] for row in rows]),
        features.lengths[rows],
        features.term_frequencies[rows],
        features.vectors[rows],
        features.has_vector[rows],
    )


def _ranks(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """How many of the values are greater than each."""
    return np.searchsorted(np.sort(-values), -values)
