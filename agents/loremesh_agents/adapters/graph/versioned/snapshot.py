"""Reading one state of some collections."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Group
from dataclasses import dataclass

from loremesh_agents.adapters.graph.versioned.buckets import Buckets
from loremesh_agents.adapters.graph.versioned.cells import View, newest
from loremesh_agents.adapters.graph.versioned.concurrently import both
from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    GraphEngine,
    MentionRow,
    Neighbourhood,
    PassageRow,
    Record,
    TitleRow,
)
from loremesh_agents.adapters.graph.versioned.entities import CAPITALISED
from loremesh_agents.adapters.graph.versioned.identifiers import (
    bucket_id,
    conditions_of,
    document_vertex,
    entity_vertex,
    first_ref,
    reading_as,
)
from loremesh_agents.adapters.graph.versioned.passages import (
    FIELDS,
    SHOWN_FIELDS,
    KeptPassage,
    PassageCache,
    passage_features,
)
from loremesh_agents.adapters.graph.versioned.states import CollectionState, DocumentState
from loremesh_agents.adapters.graph.versioned.terms import Frequencies, bucket_of, term_hash
from loremesh_agents.adapters.graph.versioned.totals import NOTHING, EntityTotals, links_seen
from loremesh_agents.adapters.graph.versioned.vectors import read_with_vectors
from loremesh_agents.adapters.graph.versioned.visibility import is_there, require_time
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.graph_schema import VertexLabel
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

_NAMING_TITLES = 16
_MOST_REFERENCES = 64
_MOST_TITLES = 4096
_MOST_EDGES = 4096
_NO_MENTIONS = -1


@dataclass(frozen=True, slots=True)
class Reading:
    """Who reads what.

    Attributes:
        collections: Their states.
        view: What counts.
        principal: Who reads.
        kept: Which documents are asked for.
    """

    collections: Sequence[CollectionState]
    view: View
    principal: Principal
    kept: MetadataFilter

    @property
    def selective(self) -> bool:
        """Whether some passages may be hidden."""
        return any(state.restricted for state in self.collections) or bool(self.kept.conditions)

    @property
    def access(self) -> Access:
        """The same for the engine."""
        return Access(
            tuple(state.uid for state in self.collections),
            first_ref(self.view.version + 1),
            reading_as(self.principal) if any(state.restricted for state in self.collections) else None,
            conditions_of(self.kept),
        )


@dataclass(slots=True)
class _Entity:
    """An entity of one collection, as it is seen.

    Attributes:
        key: Its key.
        totals: What is counted of it.
        size: Edges that lead to it, as the engine has it.
        titles: The titles that are there and may be read, the weightiest first, once each.
    """

    key: str
    totals: EntityTotals
    size: int
    titles: list[TitleRow]


class VersionedSnapshot:
    """See `ports.graph.GraphSnapshot`.

    Args:
        engine: Where the graph is.
        reading: Who reads what.
        passages: That were read before.
        buckets: That were read before.
        still_valid: Raises where the snapshot is too old; called after every read.
    """

    def __init__(
        self,
        engine: GraphEngine,
        reading: Reading,
        passages: PassageCache,
        buckets: Buckets,
        still_valid: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._reading = reading
        self._view = reading.view
        self._access = reading.access
        self._still_valid = still_valid
        self._kept = passages
        self._buckets = buckets
        self._names = {state.uid: state.name for state in reading.collections}
        self._sets = {state.uid: state.vector_set for state in reading.collections}
        # Which passages are there is the same for all that see this revision, and may read everything.
        self._revisions = {} if reading.selective else {state.uid: state.revision for state in reading.collections}
        self._sure: set[int] = set()

    @property
    def revisions(self) -> tuple[CollectionRevision, ...]:
        """The states that are read."""
        return tuple(state.reached for state in self._reading.collections)

    @property
    def embedding_models(self) -> Mapping[str, str]:
        """The models of the vectors, by collection."""
        return {state.name: state.embedding_model for state in self._reading.collections}

    @property
    def selective(self) -> bool:
        """Whether some passages may be hidden."""
        return self._reading.selective

    async def readable(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> tuple[PassageRef, ...]:
        """See the port."""
        found = {row.ref for row in await self._passages(refs, (), deadline)}
        return tuple(ref for ref in refs if ref in found)

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
        places = self._places(passages)
        kept = {
            state.uid: self._buckets.frequencies.kept(state, map(term_hash, terms))
            for state in self._reading.collections
        }
        records, found = await both(
            self._records([vertex for _, missing in kept.values() for vertex in missing], places, deadline),
            self._around((), self._vertices(entities), max(title_limit, _NAMING_TITLES), _NO_MENTIONS, deadline),
        )
        self._still_valid()
        statistics = self._statistics(found.entities.values())
        titles = self._titles(found.entities.values(), title_limit)
        return EntryPoints(
            self._term_statistics(terms, kept, records),
            statistics,
            tuple(titles),
            self._located(places, records),
        )

    async def features(self, refs: Group[PassageRef], terms: Sequence[str], *, deadline: Deadline) -> PassageFeatures:
        """See the port."""
        require_time(deadline)
        missing = self._kept.missing(set(refs), self._sets)
        kept = self._kept.kept(set(refs).difference(missing))
        unsure = [ref for ref in kept if ref not in self._sure and not self._kept.is_there(ref, self._revisions)]
        fresh, there = await both(self._fresh(missing, deadline), self._passages(sorted(unsure), (), deadline))
        gone = set(unsure).difference(row.ref for row in there)
        found = {ref: passage for ref, passage in kept.items() if ref not in gone} | fresh
        self._still_valid()
        self._sure.update(found)
        self._kept.found(found, self._revisions)
        return passage_features(found, self._names, terms)

    async def _fresh(self, refs: Sequence[int], deadline: Deadline) -> dict[int, KeptPassage]:
        """Features of those of the passages that are there and may be read, with the vectors that count in this state."""

        async def read(fields: tuple[str, ...]) -> list[PassageRow]:
            return await self._passages(refs, {*FIELDS, *fields}, deadline)

        sets = {state: state.vector_set for state in self._reading.collections}
        rows, vectors = await read_with_vectors(self._engine, refs, sets, read, deadline)
        self._still_valid()
        return self._kept.take(rows, self._sets, vectors)

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
        asked = self._vertices(entities)
        around = await self._around(seeds, asked, max(title_limit, _NAMING_TITLES), mention_limit, deadline)
        found = around.entities
        totals = self._summed(found.values())
        seed_mentions = {
            MentionEdge(found[row.entity].key, PassageRef(row.passage.ref))
            for row in self._mentions(around.seed_mentions, found)
            if totals[found[row.entity].key].mentions > 1 or totals[found[row.entity].key].titles
        }
        seed_titles = {
            TitleEdge(found[row.entity].key, PassageRef(row.passage.ref), row.weight) for row in around.seed_titles
        }
        keys = {edge.entity for edge in seed_mentions} | {edge.entity for edge in seed_titles} | set(entities)
        included = {vertex: entity for vertex, entity in found.items() if entity.key in keys}
        titles = self._titles(included.values(), title_limit)
        followed = {v for v, entity in included.items() if totals[entity.key].mentions <= mention_limit}
        mentions: defaultdict[str, set[PassageRef]] = defaultdict(set)
        for row in self._mentions(around.mentions, found):
            if row.entity in followed:
                mentions[found[row.entity].key].add(PassageRef(row.passage.ref))
        references = self._references(around)
        reached = {edge.passage for edge in titles}.union(*mentions.values())
        reached |= {edge.target for edge in references}
        features = await self.features(reached.difference(known), terms, deadline=deadline)
        return Expansion(
            self._statistics(included.values()),
            tuple(sorted(seed_mentions, key=lambda edge: (edge.passage, edge.entity))),
            tuple(sorted(seed_titles, key=lambda edge: (edge.passage, edge.entity))),
            tuple(titles),
            {key: sorted(refs) for key, refs in sorted(mentions.items())},
            tuple(references),
            features,
        )

    async def fetch(self, refs: Sequence[PassageRef], *, deadline: Deadline) -> Mapping[PassageRef, Passage]:
        """See the port."""
        require_time(deadline)
        kept = self._kept.shown((ref for ref in refs if ref in self._sure), self._names)
        rows = await self._passages([ref for ref in refs if ref not in kept], SHOWN_FIELDS, deadline)
        for row in rows:
            self._kept.take_body(row)
        self._still_valid()
        kept |= self._kept.shown((row.ref for row in rows), self._names)
        return {PassageRef(ref): passage for ref, passage in kept.items()}

    async def _passages(self, refs: Group[int], fields: Group[str], deadline: Deadline) -> list[PassageRow]:
        require_time(deadline)
        if not refs:
            return []
        rows = await self._engine.passages(sorted(set(refs)), self._access, fields=fields, deadline=deadline)
        self._still_valid()
        there = [row for row in rows if is_there(row, self._view)]
        self._sure.update(row.ref for row in there)
        return there

    def _vertices(self, keys: Group[str]) -> set[str]:
        return {entity_vertex(uid, key) for uid in self._names for key in keys}

    async def _records(
        self, buckets: list[str], places: Mapping[tuple[str, str], tuple[str, int]], deadline: Deadline
    ) -> Mapping[str, Record]:
        require_time(deadline)
        wanted: dict[VertexLabel, list[str]] = {
            VertexLabel.BUCKET: buckets,
            VertexLabel.DOCUMENT: sorted({vertex for vertex, _ in places.values()}),
        }
        wanted = {label: ids for label, ids in wanted.items() if ids}
        if not wanted:
            return {}
        return await self._engine.records(wanted, fields={"frequencies", "states"}, deadline=deadline)

    def _term_statistics(
        self,
        terms: Sequence[str],
        kept: Mapping[str, tuple[dict[str, Frequencies], list[str]]],
        records: Mapping[str, Record],
    ) -> TermStatistics:
        states = self._reading.collections
        passages = sum(state.passages for state in states)
        total = sum(state.terms for state in states)
        frequencies = dict.fromkeys(terms, 0)
        for state in states:
            found, missing = kept[state.uid]
            buckets = found | self._buckets.frequencies.take(state, missing, records, self._view)
            for term in frequencies:
                wanted = term_hash(term)
                frequencies[term] += buckets[bucket_id(state.uid, bucket_of(wanted))].of_term(wanted)
        return TermStatistics(passages, total / passages if passages else 0.0, frequencies)

    def _places(self, passages: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, int]]:
        """By (collection, passage id): the document's vertex, and the passage's place in it."""
        uids = {name: uid for uid, name in self._names.items()}
        found: dict[tuple[str, str], tuple[str, int]] = {}
        for collection, passage_id in passages:
            name, _, ordinal = passage_id.rpartition("#")
            if collection in uids and ordinal.isascii() and ordinal.isdigit() and len(ordinal) <= 9:
                found[collection, passage_id] = (document_vertex(uids[collection], name), int(ordinal))
        return found

    def _located(
        self, places: Mapping[tuple[str, str], tuple[str, int]], records: Mapping[str, Record]
    ) -> dict[tuple[str, str], PassageRef]:
        found: dict[tuple[str, str], PassageRef] = {}
        for name, (vertex, ordinal) in places.items():
            state = self._document(records.get(vertex))
            if state is not None and ordinal < state.passages and name[1] == f"{state.document_id}#{ordinal}":
                found[name] = PassageRef(state.first_ref + ordinal)
        return found

    def _document(self, record: Record | None) -> DocumentState | None:
        """A document, if it is there and may be read."""
        text = newest(record.sets.get("states", ()), self._view) if record is not None else None
        state = DocumentState.decoded(text) if text is not None else None
        return state if state is not None and state.readable(self._reading.principal, self._reading.kept) else None

    async def _around(
        self,
        seeds: Sequence[PassageRef],
        vertices: Group[str],
        title_limit: int,
        mention_limit: int,
        deadline: Deadline,
    ) -> "_Around":
        require_time(deadline)
        if not seeds and not vertices:
            return _Around()
        around = _Around()
        around.take(await self._neighbourhood(seeds, vertices, title_limit, mention_limit, deadline), self._view)
        # The same entity in another collection.
        if len(self._names) > 1:
            siblings = self._vertices({entity.key for entity in around.entities.values()})
            siblings = siblings.difference(around.entities, vertices)
        else:
            siblings = set[str]()
        if siblings:
            around.take(await self._neighbourhood((), siblings, title_limit, mention_limit, deadline), self._view)
        await self._complete(around, title_limit, mention_limit, deadline)
        self._sure.update(around.refs)
        return around

    async def _neighbourhood(
        self,
        seeds: Sequence[PassageRef],
        vertices: Group[str],
        title_limit: int,
        mention_limit: int,
        deadline: Deadline,
    ) -> Neighbourhood:
        found = await self._engine.neighbourhood(
            sorted(set(seeds)),
            sorted(vertices),
            self._access,
            title_limit=title_limit,
            mention_limit=mention_limit,
            deadline=deadline,
        )
        self._still_valid()
        return found

    async def _complete(self, around: "_Around", title_limit: int, mention_limit: int, deadline: Deadline) -> None:
        """Asks again where what has ended used up a limit of the engine."""
        limit = title_limit
        while limit < _MOST_TITLES:
            short = {
                vertex
                for vertex, entity in around.entities.items()
                if around.title_rows[vertex] >= limit and len(entity.titles) < limit
            }
            if not short:
                break
            limit = min(4 * limit, _MOST_TITLES)
            more = await self._neighbourhood((), short, limit, _NO_MENTIONS, deadline)
            around.take_titles(more, short, self._view)
        # The engine knows how many edges there are, of which fewer may count.
        left_out = {
            vertex
            for vertex, entity in around.entities.items()
            if mention_limit < entity.size <= _MOST_EDGES and 0 < entity.totals.mentions <= mention_limit
        }
        if left_out and mention_limit >= 0:
            more = await self._neighbourhood((), left_out, 0, _MOST_EDGES, deadline)
            around.take_mentions(more, self._view)

    def _mentions(self, rows: Sequence[MentionRow], entities: Mapping[str, _Entity]) -> list[MentionRow]:
        """Those of the edges that count: what only a title makes a mention does where such a title may be read."""
        return [
            row
            for row in rows
            if row.entity in entities and (row.kind == CAPITALISED or self._is_title(entities[row.entity]))
        ]

    def _is_title(self, entity: _Entity) -> bool:
        return bool(entity.titles) if self.selective else entity.totals.titles > 0

    def _summed(self, entities: Group[_Entity]) -> dict[str, EntityTotals]:
        """Totals by key, summed over the collections; what only a title makes a mention counts in its own collection."""
        found: dict[str, EntityTotals] = {}
        for entity in entities:
            seen = EntityTotals(capitalised=entity.totals.mentions, titles=entity.totals.titles)
            found[entity.key] = found.get(entity.key, NOTHING).plus(seen)
        return found

    def _statistics(self, entities: Group[_Entity]) -> dict[str, EntityStatistics]:
        names: dict[str, list[str]] = {}
        for entity in entities:
            names.setdefault(entity.key, []).extend(row.title for row in entity.titles[:_NAMING_TITLES])
        return {
            key: EntityStatistics(key, min(names[key], default=key), totals.mentions, totals.titles)
            for key, totals in sorted(self._summed(entities).items())
            if totals.mentions or totals.titles
        }

    def _titles(self, entities: Group[_Entity], limit: int) -> list[TitleEdge]:
        by_key: dict[str, list[TitleEdge]] = {}
        for entity in entities:
            by_key.setdefault(entity.key, []).extend(
                TitleEdge(entity.key, PassageRef(row.passage.ref), row.weight) for row in entity.titles
            )
        return [
            edge
            for key in sorted(by_key)
            for edge in sorted(by_key[key], key=lambda edge: (-edge.weight, edge.passage))[:limit]
        ]

    def _references(self, around: "_Around") -> list[ReferenceEdge]:
        edges: dict[tuple[int, int], int] = {}
        for source, address, fragment in around.links:
            record = around.addresses.get(address)
            if record is None:
                continue
            degree = links_seen(record.sets.get("counts", ()), self._view)
            for document in around.documents.get(address, ()):
                state = self._document(document)
                if state is None or not state.names(str(record.properties["address"])) or not state.passages:
                    continue
                target = state.first_ref + state.anchors.get(fragment.lower(), 0)
                if target != source:
                    edges[source, target] = max(degree, edges.get((source, target), 0))
        found = [ReferenceEdge(PassageRef(s), PassageRef(t), degree) for (s, t), degree in sorted(edges.items())]
        return found[:_MOST_REFERENCES]


class _Around:
    """A neighbourhood, as far as it is there for a reader."""

    def __init__(self) -> None:
        self.entities: dict[str, _Entity] = {}
        self.seed_mentions: list[MentionRow] = []
        self.seed_titles: list[TitleRow] = []
        self.mentions: list[MentionRow] = []
        self.links: set[tuple[int, str, str]] = set()
        self.addresses: dict[str, Record] = {}
        self.documents: dict[str, Sequence[Record]] = {}
        self.title_rows: dict[str, int] = {}

    def take(self, found: Neighbourhood, view: View) -> None:
        """Takes what the engine gives."""
        for vertex, record in found.entities.items():
            totals = EntityTotals.seen(record.sets.get("counts", ()), view)
            size = int(record.properties.get("size", 0))
            self.entities[vertex] = _Entity(str(record.properties["entity_key"]), totals, size, [])
            self.title_rows[vertex] = 0
        self.take_titles(found, set(found.entities), view)
        self.take_mentions(found, view)
        self.seed_mentions += [row for row in found.seed_mentions if is_there(row.passage, view)]
        self.seed_titles += [row for row in found.seed_titles if is_there(row.passage, view)]
        self.addresses.update(found.addresses)
        self.documents.update(found.documents)
        self.links.update((row.passage, row.address, row.fragment) for row in found.links)

    @property
    def refs(self) -> Iterator[int]:
        """The passages in it."""
        yield from (row.passage.ref for row in (*self.seed_mentions, *self.mentions))
        yield from (row.passage.ref for row in self.seed_titles)
        yield from (row.passage.ref for entity in self.entities.values() for row in entity.titles)

    def take_titles(self, found: Neighbourhood, vertices: Group[str], view: View) -> None:
        """Takes the titles of some entities in place of what was known of them."""
        rows: dict[str, dict[int, TitleRow]] = {vertex: {} for vertex in vertices}
        counts = dict.fromkeys(vertices, 0)
        for row in found.titles:
            if row.entity in rows:
                counts[row.entity] += 1
                if is_there(row.passage, view):
                    rows[row.entity][row.passage.ref] = row
        for vertex in vertices:
            if vertex in self.entities:
                self.entities[vertex].titles = sorted(
                    rows[vertex].values(), key=lambda row: (-row.weight, row.passage.ref)
                )
                self.title_rows[vertex] = counts[vertex]

    def take_mentions(self, found: Neighbourhood, view: View) -> None:
        """Takes further mentions."""
        self.mentions += [row for row in found.mentions if is_there(row.passage, view)]
