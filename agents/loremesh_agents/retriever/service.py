"""Finds evidence: candidates from three channels, exact scores, two rounds through the graph."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.answer import Completion, Degradation, DegradationReason, FinishReason, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    InvalidRequest,
)
from loremesh_agents.domain.evidence import EdgeKind, Evidence, PathStep, Why
from loremesh_agents.domain.lexicon import entity_key, search_terms
from loremesh_agents.domain.linking import LinkedEntity, candidate_spans, link
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.ranking import MENTION_LIMIT, Ranked, Ranking
from loremesh_agents.domain.retrieval import PassageRef, Profile, RetrievalRequest
from loremesh_agents.domain.substitution import substituted
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.graph import GraphSnapshot, GraphStore
from loremesh_agents.ports.text import TextIndex
from loremesh_agents.ports.vectors import VectorIndex
from loremesh_agents.retriever.neighbourhood import Edge, ExpandRequest, Node, Walk
from loremesh_agents.retriever.settings import RetrieverSettings

_AGENT = "retriever"
_ROUNDS = 2
_RANKED = 20
"""Candidates that the ranker looks at."""
_MOST_SUBSTITUTED = 12
_FAST_SHARE = 0.4
"""Of the candidates, in the fast profile. On the development sets the first five passages were the same."""
_FAST_MENTION_LIMIT = 30
"""In place of `MENTION_LIMIT`, in the fast profile. On the development sets recall at 5 differed by one passage of 646 questions' either way."""
_MOST_PROPOSALS = 6400
"""Proposals of an index that are looked through for readable ones."""

Relevance: TypeAlias = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class RetrieverService:
    """Finds evidence.

    Args:
        graph: The truth.
        text: Proposes passages by words.
        vectors: Proposes passages by vectors; None without an encoder.
        embedder: Encodes questions; None for retrieval by text and graph alone.
        settings: Limits and shares.
        previous_embedder: Encodes questions for collections that are not embedded anew yet; None for none.
        relevance: A ranker's opinion of candidates by their signals (`Ranking.signals`), asked for but for the profile FAST; None without one.
    """

    def __init__(
        self,
        graph: GraphStore,
        text: TextIndex,
        vectors: VectorIndex | None,
        embedder: Embedder | None,
        settings: RetrieverSettings,
        *,
        previous_embedder: Embedder | None = None,
        relevance: Relevance | None = None,
    ) -> None:
        self._relevance = relevance
        self._graph = graph
        self._text = text
        self._vectors = vectors
        self._encoders: Mapping[str, Embedder] = {
            found.model: found for found in (embedder, previous_embedder) if found is not None
        }
        self._settings = settings

    @property
    def settings(self) -> RetrieverSettings:
        """Limits and shares."""
        return self._settings

    async def retrieve(
        self, request: RetrievalRequest, *, principal: Principal, deadline: Deadline
    ) -> AsyncGenerator[Evidence | Completion]:
        """Streams the evidence by rank, then a completion.

        Raises:
            InvalidRequest: The question holds nothing that can be searched.
            LoremeshError: As `GraphStore.snapshot`.
        """
        search = _Search(self, request)
        async with (
            search.encoding(deadline),
            self._graph.snapshot(
                request.collections,
                principal=principal,
                filter=request.filter,
                consistency=request.consistency,
                deadline=deadline,
            ) as snapshot,
        ):
            async for event in search.run(snapshot, deadline):
                yield event

    async def expand(
        self, request: ExpandRequest, *, principal: Principal, deadline: Deadline
    ) -> AsyncGenerator[Node | Edge | Completion]:
        """Streams the neighbourhood, nearest first, then a completion.

        Raises:
            EntityNotFound: An entity to start from is not known.
            PassageNotFound: A passage to start from is not there.
            LoremeshError: As `GraphStore.snapshot`.
        """
        async with self._graph.snapshot(
            request.collections,
            principal=principal,
            filter=request.filter,
            consistency=request.consistency,
            deadline=deadline,
        ) as snapshot:
            walk = Walk(snapshot, request, self._settings.titles_per_entity, deadline)
            async for event in walk.run():
                yield event

    def weigh(self, ranking: Ranking) -> None:
        """Asks the ranker for its opinion of the best candidates, if there is one."""
        if self._relevance is not None:
            ranking.weigh(self._relevance(ranking.signals(_RANKED)))

    async def encode(self, model: str, questions: Sequence[str], deadline: Deadline) -> NDArray[np.float32]:
        """The vectors of questions, by one of `models`; shape (questions, dimension)."""
        return await self._encoders[model].embed(questions, deadline=deadline)

    async def near(
        self, model: str, vector: NDArray[np.float32], snapshot: GraphSnapshot, deadline: Deadline, limit: int
    ) -> tuple[PassageRef, ...]:
        """Passages near a vector of a model, hidden ones among them."""
        models = snapshot.embedding_models
        revisions = tuple(state for state in snapshot.revisions if models.get(state.collection) == model)
        if self._vectors is None or not revisions:
            return ()
        return await self._vectors.search(vector, model=model, revisions=revisions, limit=limit, deadline=deadline)

    async def matching(
        self, frequencies: Mapping[str, int], snapshot: GraphSnapshot, deadline: Deadline, limit: int
    ) -> tuple[PassageRef, ...]:
        """Passages that share words with the question, hidden ones among them."""
        return await self._text.search(frequencies, revisions=snapshot.revisions, limit=limit, deadline=deadline)

    @property
    def models(self) -> Sequence[str]:
        """The models that questions can be encoded with, that of new collections first; empty where there are no vectors."""
        return tuple(self._encoders) if self._vectors is not None else ()


class _Search:
    """One retrieval."""

    def __init__(self, service: RetrieverService, request: RetrievalRequest) -> None:
        self._service = service
        self._request = request
        limit = service.settings.longest_question
        self._question = request.question[:limit]
        self._terms = tuple(dict.fromkeys(search_terms(self._question)))
        self._degradations: list[Degradation] = []
        self._began = time.monotonic()
        self._timings: dict[str, float] = {}
        self._model = ""
        self._encoding: asyncio.Task[NDArray[np.float32]] | None = None
        if not self._terms:
            raise InvalidRequest.of("question", "it must hold at least one word or number")
        if len(request.question) > limit:
            self._leave_out("question", DegradationReason.LIMIT, f"Only the first {limit} characters were searched.")

    @asynccontextmanager
    async def encoding(self, deadline: Deadline) -> AsyncGenerator[None]:
        """Has the question encoded while the snapshot is opened; with several models, only the snapshot tells which one is wanted."""
        models = self._service.models
        if len(models) != 1:
            yield
            return
        self._model = models[0]
        share = deadline.fraction(self._service.settings.vector_share)
        self._encoding = asyncio.create_task(self._encode([self._question], share))
        try:
            yield
        finally:
            await _ended(self._encoding)

    async def run(self, snapshot: GraphSnapshot, deadline: Deadline) -> AsyncGenerator[Evidence | Completion]:
        ranking = await self._candidates(snapshot, deadline)
        await self._propagate(ranking, snapshot, deadline)
        self._lap("expand")
        if self._request.profile is Profile.THOROUGH:
            await self._substitute(ranking, deadline)
            self._lap("substitute")
        if self._request.profile is not Profile.FAST:
            self._service.weigh(ranking)
        self._lap("rank")
        ranked = ranking.top(self._request.k)
        seeds_in_trails = {
            entry.trail.seed for entry in ranked if entry.trail is not None and entry.trail.seed is not None
        }
        refs = list(dict.fromkeys([*(entry.ref for entry in ranked), *seeds_in_trails]))
        passages = await snapshot.fetch(refs, deadline=deadline)
        self._lap("fetch")
        given = 0
        for entry in ranked:
            passage = passages.get(entry.ref)
            if passage is None:
                continue
            given += 1
            why = Why(entry.cosine, entry.text_score, entry.graph_score, self._path(entry, passage, passages, ranking))
            yield Evidence(f"E{given}", passage, entry.score, given, why)
        yield Completion(
            FinishReason.STOP,
            Usage(candidate_count=len(ranking.known), evidence_count=given),
            {**self._timings, "total": time.monotonic() - self._began},
            snapshot.revisions,
            tuple(self._degradations),
        )

    async def _propagate(self, ranking: Ranking, snapshot: GraphSnapshot, deadline: Deadline) -> None:
        named = frozenset(ranking.linked)
        for _ in range(_ROUNDS):
            frontier = ranking.frontier()
            if frontier and deadline.remaining() < self._service.settings.expansion_reserve:
                self._leave_out("graph", DegradationReason.BUDGET, "A round through the graph was left out.")
                break
            expansion = None
            if frontier:
                expansion = await snapshot.expand(
                    frontier,
                    self._terms,
                    entities=named,
                    known=ranking.known,
                    mention_limit=_FAST_MENTION_LIMIT if self._request.profile is Profile.FAST else MENTION_LIMIT,
                    title_limit=self._service.settings.titles_per_entity,
                    deadline=deadline,
                )
                named = frozenset[str]()  # the ranking has what the first round found around them
            ranking.propagate(expansion)

    async def _substitute(self, ranking: Ranking, deadline: Deadline) -> None:
        """Asks again with what the evidence names in place of what the question names; left out where vectors are."""
        names = [ranking.name(key) for key in ranking.associates()]
        if ranking.question is None or not names:
            return
        questions = substituted(self._question, ranking.linked.values(), names, most=_MOST_SUBSTITUTED)
        share = deadline.fraction(self._service.settings.vector_share)
        try:
            async with asyncio.timeout(share.remaining()):
                ranking.substitute(await self._encode(questions, share))
        except (BudgetExhausted, TimeoutError):
            self._leave_out(
                "substitution", DegradationReason.BUDGET, "There was no time to ask for what the evidence names."
            )
        except BackendUnavailable as error:
            self._leave_out("substitution", DegradationReason.UNAVAILABLE, error.message)

    async def _encode(self, questions: Sequence[str], deadline: Deadline) -> NDArray[np.float32]:
        began = time.monotonic()
        vectors = await self._service.encode(self._model, questions, deadline)
        self._timings["encode"] = self._timings.get("encode", 0.0) + time.monotonic() - began
        return vectors

    async def _candidates(self, snapshot: GraphSnapshot, deadline: Deadline) -> Ranking:
        spans = candidate_spans(self._question)
        context = self._request.context
        keys = {span.key for span in spans} | {entity_key(name) for name in context.entities}
        searching = asyncio.create_task(self._encoded(snapshot, deadline))
        entering = asyncio.create_task(
            snapshot.enter(
                entities=keys - {""},
                passages=[(passage.collection, passage.passage_id) for passage in context.passages],
                title_limit=self._service.settings.titles_per_entity,
                deadline=deadline,
            )
        )
        try:
            # Apart from the entities: the search for words waits for nothing else.
            statistics = (await snapshot.enter(terms=self._terms, deadline=deadline)).statistics
            matching = await self._matching(statistics.document_frequencies, snapshot, deadline)
            entry = await entering
            vector, near = await searching
            if vector is not None:
                near = await self._readable_near(vector, near, snapshot, deadline)
        finally:
            await _ended(searching, entering)
        self._lap("candidates")
        entities = link(spans, entry.entities, context.entities)
        ranking = Ranking(self._terms, statistics, vector, entities)
        ranking.add_links(entry)
        ranking.add_context(tuple(entry.passages.values()))
        named = {edge.passage for edge in entry.titles if edge.entity in entities}
        proposed = {*near, *matching, *named, *entry.passages.values()}
        ranking.add(await snapshot.features(proposed, self._terms, deadline=deadline))
        ranking.begin()
        return ranking

    def _choose_model(self, models: Mapping[str, str]) -> str:
        """Settles the model of the question's vectors, that of the collections; gives why there is none, empty where there is."""
        known = self._service.models
        if not known:
            return "There is no encoder: text and graph alone."
        wanted = {model: collection for collection, model in models.items() if model}
        self._model = next(iter(wanted), known[0])
        if len(wanted) > 1:
            held = ", ".join(f"{collection} has vectors of {model}" for model, collection in sorted(wanted.items()))
            return f"The models of the collections differ: {held}."
        if self._model not in known:
            found = f"Collection {wanted[self._model]} has vectors of {self._model}"
            return f"{found}, the encoder is {' or '.join(known)}."
        return ""

    async def _encoded(
        self, snapshot: GraphSnapshot, deadline: Deadline
    ) -> tuple[NDArray[np.float32] | None, tuple[PassageRef, ...]]:
        """The question's vector and what is near it; without them where they are missing, late or down."""
        problem = self._choose_model(snapshot.embedding_models)
        if problem:
            self._leave_out("vectors", DegradationReason.NOT_CONFIGURED, problem)
            return None, ()
        settings = self._service.settings
        share = deadline.fraction(settings.vector_share)
        try:
            async with asyncio.timeout(share.remaining()):
                (vector,) = await (self._encoding or self._encode([self._question], share))
                near = await self._service.near(
                    self._model, vector, snapshot, share, self._most(settings.vector_candidates)
                )
        except (BudgetExhausted, TimeoutError):
            self._leave_out("vectors", DegradationReason.BUDGET, "Vectors took more than their share of the time.")
        except BackendUnavailable as error:
            self._leave_out("vectors", DegradationReason.UNAVAILABLE, error.message)
        else:
            return vector, near
        return None, ()

    async def _matching(
        self, frequencies: Mapping[str, int], snapshot: GraphSnapshot, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """The best readable passages that share words with the question; none where the index is late or down."""
        share = deadline.fraction(self._service.settings.text_share)

        async def propose(limit: int) -> tuple[PassageRef, ...]:
            try:
                async with asyncio.timeout(share.remaining()):
                    return await self._service.matching(frequencies, snapshot, share, limit)
            except (BudgetExhausted, TimeoutError):
                self._leave_out("text", DegradationReason.BUDGET, "Text search took more than its share of the time.")
            except BackendUnavailable as error:
                self._leave_out("text", DegradationReason.UNAVAILABLE, error.message)
            return ()

        limit = self._most(self._service.settings.text_candidates)
        return await _readable(await propose(limit), limit, propose, snapshot, deadline)

    async def _readable_near(
        self,
        vector: NDArray[np.float32],
        proposed: tuple[PassageRef, ...],
        snapshot: GraphSnapshot,
        deadline: Deadline,
    ) -> tuple[PassageRef, ...]:
        """The best readable passages near the question."""
        share = deadline.fraction(self._service.settings.vector_share)

        async def propose(limit: int) -> tuple[PassageRef, ...]:
            try:
                async with asyncio.timeout(share.remaining()):
                    return await self._service.near(self._model, vector, snapshot, share, limit)
            except (BudgetExhausted, TimeoutError):
                self._leave_out(
                    "vectors", DegradationReason.BUDGET, "There was no time to look behind hidden passages."
                )
            except BackendUnavailable as error:
                self._leave_out("vectors", DegradationReason.UNAVAILABLE, error.message)
            return ()

        limit = self._most(self._service.settings.vector_candidates)
        return await _readable(proposed, limit, propose, snapshot, deadline)

    def _most(self, candidates: int) -> int:
        """How many passages an index is asked for: what the graph reaches from the best of them matters more than the others."""
        if self._request.profile is Profile.FAST:
            return max(round(candidates * _FAST_SHARE), self._request.k)
        return max(candidates, self._request.k)

    def _leave_out(self, stage: str, reason: DegradationReason, detail: str) -> None:
        self._degradations.append(Degradation(_AGENT, stage, reason, detail))

    def _lap(self, stage: str) -> None:
        spent = sum(seconds for name, seconds in self._timings.items() if name != "encode")
        self._timings[stage] = time.monotonic() - self._began - spent

    def _path(
        self, entry: Ranked, passage: Passage, passages: Mapping[PassageRef, Passage], ranking: Ranking
    ) -> tuple[PathStep, ...]:
        trail = entry.trail
        if trail is None:
            return (PathStep(EdgeKind.SIMILAR, passage_id=passage.passage_id, title=passage.title),)
        steps: list[PathStep] = []
        seed = passages.get(trail.seed) if trail.seed is not None else None
        if seed is not None:
            steps.append(PathStep(EdgeKind.SIMILAR, passage_id=seed.passage_id, title=seed.title))
            if trail.entity:
                steps.append(PathStep(EdgeKind.MENTIONS, entity=ranking.name(trail.entity)))
        elif trail.entity:
            named = _named(ranking.linked.get(trail.entity))
            steps.append(PathStep(named, entity=ranking.name(trail.entity)))
        if trail.entity:
            last = EdgeKind.TITLE if trail.by_title else EdgeKind.MENTIONS
        else:
            last = EdgeKind.REFERS_TO if seed is not None else EdgeKind.EARLIER_TURN
        return (*steps, PathStep(last, passage_id=passage.passage_id, title=passage.title))


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Waits until tasks are at their end, which comes now; what they raised was for those who have waited for them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _readable(
    proposed: tuple[PassageRef, ...],
    limit: int,
    propose: Callable[[int], Awaitable[tuple[PassageRef, ...]]],
    snapshot: GraphSnapshot,
    deadline: Deadline,
) -> tuple[PassageRef, ...]:
    """The first `limit` proposals that the caller may read: hidden ones must not crowd them out.

    Args:
        proposed: The first `limit` proposals, the best first.
        limit: How many are wanted.
        propose: Gives the first so many proposals.
        snapshot: Knows what is readable.
        deadline: When the answer is of no more use.
    """
    asked = limit
    while snapshot.selective:
        readable = (await snapshot.readable(proposed, deadline=deadline))[:limit]
        if len(readable) == limit or len(proposed) < asked or asked >= _MOST_PROPOSALS:
            return readable
        asked *= 4
        proposed = await propose(asked)
    return proposed


def _named(entity: LinkedEntity | None) -> EdgeKind:
    return EdgeKind.EARLIER_TURN if entity is not None and entity.place is None else EdgeKind.NAMED_IN_QUESTION
