"""Reading one state of some collections."""

import re
from collections.abc import Collection as Group
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from urllib.parse import urldefrag

import numpy as np

from loremesh_agents.adapters.graph.memory.state import (
    CollectionState,
    Graph,
    Statistics,
    StoredDocument,
    StoredPassage,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document, Passage
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import (
    EntityStatistics,
    EntryPoints,
    Expansion,
    MentionEdge,
    PassageFeatures,
    PassageRef,
    ReferenceEdge,
    TermStatistics,
    TitleEdge,
)
from loremesh_agents.domain.revision import CollectionRevision


def require_time(deadline: Deadline) -> None:
    """Raises where nothing is left.

    Raises:
        BudgetExhausted: The deadline has passed.
    """
    if deadline.expired:
        raise BudgetExhausted("graph store", "query")


def may_read(principal: Principal, document: Document) -> bool:
    """Whether a principal may read a document."""
    return not document.readers or bool(document.readers & principal.groups)


class MemorySnapshot:
    """See `ports.graph.GraphSnapshot`."""

    def __init__(self, states: Sequence[CollectionState], principal: Principal, kept: MetadataFilter) -> None:
        self._states = states
        self._principal = principal
        self._kept = kept

    @property
    def revisions(self) -> tuple[CollectionRevision, ...]:
        """The states that are read."""
        return tuple(state.reached for state in self._states)

    @property
    def embedding_models(self) -> Mapping[str, str]:
        """The models of the vectors, by collection."""
        return {state.name: state.embedding_model for state in self._states}

    @cached_property
    def _passages(self) -> dict[PassageRef, StoredPassage]:
        """Those that may be read, in ascending order; no other is ever looked at for an edge or a name."""
        found = {
            ref: passage
            for state in self._states
            for ref, passage in state.passages.items()
            if may_read(self._principal, passage.document) and self._kept.matches(passage.document.metadata)
        }
        return dict(sorted(found.items()))

    @cached_property
    def _graphs(self) -> list[Graph]:
        """The graph of each collection as far as it may be read: a hidden title makes no mention."""
        return [
            Graph.of(passage for ref, passage in self._passages.items() if ref in state.passages)
            for state in self._states
        ]

    @cached_property
    def _counted(self) -> list[Statistics]:
        """What the statistics of each collection are of; the filter has no part in it."""
        return [
            Statistics(
                {ref: found for ref, found in state.passages.items() if may_read(self._principal, found.document)}
            )
            if state.options.reader_statistics
            else state.statistics
            for state in self._states
        ]

    @property
    def selective(self) -> bool:
        """Whether some passages may be hidden."""
        return True

    async def readable(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> tuple[PassageRef, ...]:
        """See the port."""
        require_time(deadline)
        return tuple(ref for ref in refs if ref in self._passages)

    async def enter(
        self,
        *,
        terms: Sequence[str] = (),
        entities: Group[str] = (),
        passages: Sequence[tuple[str, str]] = (),
        title_limit: int = 0,
        deadline: Deadline,
    ) -> EntryPoints:
        """See the port."""
        require_time(deadline)
        known = {(passage.collection, passage.passage_id): ref for ref, passage in self._passages.items()}
        return EntryPoints(
            self._statistics(terms),
            self._entities(entities),
            tuple(self._titles(entities, title_limit)),
            {name: known[name] for name in passages if name in known},
        )

    def _statistics(self, terms: Sequence[str]) -> TermStatistics:
        passages = sum(len(counted.passages) for counted in self._counted)
        total = sum(counted.term_total for counted in self._counted)
        frequencies = {term: sum(counted.document_frequencies[term] for counted in self._counted) for term in terms}
        return TermStatistics(passages, total / passages if passages else 0.0, frequencies)

    async def features(self, refs: Group[PassageRef], terms: Sequence[str], *, deadline: Deadline) -> PassageFeatures:
        """See the port."""
        require_time(deadline)
        return self._features(refs, terms)

    async def expand(
        self,
        seeds: Sequence[PassageRef],
        terms: Sequence[str],
        *,
        entities: Group[str],
        known: Group[PassageRef],
        mention_limit: int,
        title_limit: int,
        deadline: Deadline,
    ) -> Expansion:
        """See the port."""
        require_time(deadline)
        readable = {ref for ref in seeds if ref in self._passages}
        seed_mentions = [edge for edge in self._mentions() if edge.passage in readable and self._leads_on(edge.entity)]
        seed_titles = [edge for edge in self._titles() if edge.passage in readable]
        keys = {edge.entity for edge in seed_mentions} | {edge.entity for edge in seed_titles} | set(entities)
        found = self._entities(keys)
        titles = self._titles(found, title_limit)
        mentions: dict[str, list[PassageRef]] = {}
        for edge in self._mentions(key for key, entity in found.items() if entity.mention_count <= mention_limit):
            mentions.setdefault(edge.entity, []).append(edge.passage)
        references = self._references(readable)
        reached = {edge.passage for edge in titles}.union(*mentions.values())
        reached |= {edge.target for edge in references}
        return Expansion(
            found,
            tuple(seed_mentions),
            tuple(seed_titles),
            tuple(titles),
            mentions,
            tuple(references),
            self._features(reached.difference(known), terms),
        )

    async def fetch(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> Mapping[PassageRef, Passage]:
        """See the port."""
        require_time(deadline)
        return {ref: self._passages[ref].shown for ref in refs if ref in self._passages}

    def _entities(self, keys: Group[str]) -> dict[str, EntityStatistics]:
        found: dict[str, EntityStatistics] = {}
        for key in sorted(keys):
            mentions = sum(len(counted.graph.mentions.get(key, ())) for counted in self._counted)
            titles = sum(len(counted.graph.titles.get(key, ())) for counted in self._counted)
            if mentions or titles:
                written = (title.name for graph in self._graphs for title in graph.titles.get(key, {}).values())
                found[key] = EntityStatistics(key, min(written, default=key), mentions, titles)
        return found

    def _leads_on(self, key: str) -> bool:
        """Whether anything but the one passage that mentions an entity has to do with it."""
        (entity,) = self._entities([key]).values()
        return entity.mention_count > 1 or entity.title_count > 0

    def _titles(self, keys: Group[str] | None = None, limit: int | None = None) -> list[TitleEdge]:
        """Title edges of these entities (of all, if none are named), of each the weightiest first and at most so many."""
        edges: list[TitleEdge] = []
        for key in sorted({key for graph in self._graphs for key in graph.titles} if keys is None else keys):
            borne = [
                TitleEdge(key, ref, title.weight)
                for graph in self._graphs
                for ref, title in graph.titles.get(key, {}).items()
            ]
            edges += sorted(borne, key=lambda edge: (-edge.weight, edge.passage))[:limit]
        return edges

    def _mentions(self, keys: Iterable[str] | None = None) -> list[MentionEdge]:
        """Mention edges of these entities (of all, if none are named)."""
        return [
            MentionEdge(key, ref)
            for graph in self._graphs
            for key in (graph.mentions if keys is None else keys)
            for ref in sorted(graph.mentions.get(key, ()))
        ]

    def _references(self, sources: Group[PassageRef]) -> list[ReferenceEdge]:
        edges: set[ReferenceEdge] = set()
        for state, counted in zip(self._states, self._counted, strict=True):
            for source in sorted(ref for ref in sources if ref in state.passages):
                for address, fragment in _targets(state.passages[source]):
                    for document in state.documents.values():
                        if address in _names(document):
                            target = self._place(document, fragment)
                            if target is not None and target != source:
                                edges.add(ReferenceEdge(source, target, _in_degree(counted, document)))
        return sorted(edges, key=lambda edge: (edge.source, edge.target))

    def _place(self, document: StoredDocument, fragment: str) -> PassageRef | None:
        """The passage of a document that a fragment addresses, else its first one; None where it may not be read."""
        passages = [passage for passage in document.passages if passage.ref in self._passages]
        named = [passage for passage in passages if fragment and _anchor(passage) == fragment.lower()]
        return next((passage.ref for passage in (*named, *passages)), None)

    def _features(self, refs: Group[PassageRef], terms: Sequence[str]) -> PassageFeatures:
        passages = [self._passages[ref] for ref in sorted(set(refs)) if ref in self._passages]
        stored = [passage.content.vector for passage in passages]
        dimension = next((len(vector) for vector in stored if vector is not None), 0)
        empty = np.zeros(dimension, dtype=np.float32)
        return PassageFeatures(
            refs=tuple(passage.ref for passage in passages),
            passage_ids=tuple(f"{passage.collection}/{passage.passage_id}" for passage in passages),
            lengths=np.array([passage.content.length for passage in passages], dtype=np.float32),
            term_frequencies=np.array(
                [[passage.content.term_frequencies.get(term, 0) for term in terms] for passage in passages],
                dtype=np.float32,
            ).reshape(len(passages), len(terms)),
            vectors=np.array([empty if vector is None else vector for vector in stored], dtype=np.float32).reshape(
                len(passages), dimension
            ),
            has_vector=np.array([vector is not None for vector in stored], dtype=np.bool_),
        )


def _targets(passage: StoredPassage) -> set[tuple[str, str]]:
    """Addresses that a passage links to, each with its fragment; without those within its own document."""
    split = (urldefrag(link.target) for link in passage.content.passage.links)
    return {(target.url, target.fragment) for target in split if target.url}


def _names(document: StoredDocument) -> set[str]:
    """The addresses by which links name a document."""
    return {document.document.document_id, document.document.uri} - {""}


def _in_degree(counted: Statistics, document: StoredDocument) -> int:
    """Passages that link to a document."""
    names = _names(document)
    return sum(any(address in names for address, _ in _targets(passage)) for passage in counted.passages.values())


def _anchor(passage: StoredPassage) -> str:
    """The fragment by which pages commonly address the heading above a passage."""
    headings = passage.content.passage.headings
    return "-".join(re.findall(r"[\w-]+", headings[-1].lower())) if headings else ""
