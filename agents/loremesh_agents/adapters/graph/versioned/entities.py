"""Entities and addresses: who bears their names, mentions them and links to them, in one write."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loremesh_agents.adapters.graph.filters import PhraseFilter, TitleFilter
from loremesh_agents.adapters.graph.versioned.batch import COMPACTED_FROM, Batch
from loremesh_agents.adapters.graph.versioned.buckets import Buckets, Held, read_postings
from loremesh_agents.adapters.graph.versioned.cells import View, cell, writer_of
from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Edge,
    GraphEngine,
    Neighbourhood,
    PassageRow,
    Record,
    Setting,
    Value,
    Vertex,
)
from loremesh_agents.adapters.graph.versioned.identifiers import (
    address_vertex,
    entity_vertex,
    first_ref,
    passage_vertex,
)
from loremesh_agents.adapters.graph.versioned.memory import Filters, WriterMemory
from loremesh_agents.adapters.graph.versioned.states import CollectionState
from loremesh_agents.adapters.graph.versioned.terms import name_hash, term_hash
from loremesh_agents.adapters.graph.versioned.texts import Body, target_of
from loremesh_agents.adapters.graph.versioned.totals import NOTHING, EntityTotals
from loremesh_agents.adapters.graph.versioned.visibility import is_there
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import PassageWrite, Title
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel
from loremesh_agents.domain.mentions import is_matchable, occurs

CAPITALISED = 1
TITLED = 2
_VERIFIED_AT_ONCE = 512


@dataclass(slots=True)
class _Counted:
    """An entity or address in this write.

    Attributes:
        name: Key of the entity, or the address.
        before: What is counted of it; of an address nothing but whether it is there.
        capitalised: By how much each of these numbers changes;
        titled: the same;
        titles: the same;
        known: the same.
        links: By how much the links to an address change.
        there: Whether it has cells that count.
        values: Its cells; None where they were not read.
        after: What is counted of it when all changes are known.
    """

    name: str
    before: EntityTotals = NOTHING
    capitalised: int = 0
    titled: int = 0
    titles: int = 0
    known: int = 0
    links: int = 0
    there: bool = False
    values: tuple[str, ...] | None = None
    after: EntityTotals = NOTHING

    @property
    def changed(self) -> bool:
        return bool(self.capitalised or self.titled or self.titles or self.known)

    @property
    def is_title(self) -> bool:
        """Whether it has ever been one, this write included."""
        return bool(self.before.known or self.known)


class EntityChanges:
    """What a write changes of the entities and addresses of a collection.

    Args:
        engine: To read from.
        batch: Takes the changes.
        collection: In the state that the write follows.
        memory: Of the process.
        buckets: That the process has read.
        filters: Of the collection; they take the new titles and texts.
    """

    def __init__(
        self,
        engine: GraphEngine,
        batch: Batch,
        collection: CollectionState,
        memory: WriterMemory,
        buckets: Buckets,
        *,
        filters: Filters,
    ) -> None:
        self._engine = engine
        self._batch = batch
        self._uid = collection.uid
        self._collection = collection
        self._buckets = buckets
        self._memory = memory
        self._titles: TitleFilter = filters.titles
        self._phrases: PhraseFilter = filters.phrases
        self._entities: dict[str, _Counted] = {}
        self._addresses: dict[str, _Counted] = {}
        self._vertices: dict[str, str] = {}
        self.made: list[str] = []
        self.titled: list[str] = []

    def remove(self, around: Neighbourhood) -> None:
        """Takes away what passages that end have to do with entities and addresses.

        Args:
            around: Their neighbourhood.
        """
        for vertex, record in around.entities.items():
            self._learn_entity(vertex, record)
        for vertex, record in around.addresses.items():
            self._learn_address(vertex, record)
        # Of a write that was given up some edges may be there twice.
        kinds: dict[tuple[str, int], int] = {}
        for row in around.seed_mentions:
            place = (row.entity, row.passage.ref)
            kinds[place] = min(row.kind, kinds.get(place, row.kind))
        for (vertex, _), kind in kinds.items():
            counted = self._entities[vertex]
            if kind == CAPITALISED:
                counted.capitalised -= 1
            elif counted.before.known:
                counted.titled -= 1
        for vertex, _ in {(row.entity, row.passage.ref) for row in around.seed_titles}:
            self._entities[vertex].titles -= 1
        for vertex, _ in {(row.address, row.passage) for row in around.links}:
            self._addresses[vertex].links -= 1

    async def insert(
        self,
        passages: Mapping[int, PassageWrite],
        names: Iterable[tuple[str, str]],
        ended: set[int],
        deadline: Deadline,
    ) -> None:
        """Adds what new passages bear, mention and link to.

        Args:
            passages: By handle.
            names: Documents (their vertices) that get a new address, each with it.
            ended: Handles of passages that end in this write.
            deadline: When to give up.
        """
        borne = {ref: _best(write.passage.titles) for ref, write in passages.items()}
        new_titles = {key for titles in borne.values() for key in titles}
        self._titles.add(new_titles)
        spans = [write.spans for write in passages.values()]
        proposals = dict(zip(passages, await asyncio.to_thread(self._titles.proposals, spans), strict=True))
        keys = new_titles.union(*(write.spans.capitalised for write in passages.values()), *proposals.values())
        names = list(names)
        targets = {ref: {target_of(link) for link in write.passage.links} for ref, write in passages.items()}
        addresses = {address for found in targets.values() for address, _ in found if address}
        await self._look_up(keys, addresses.union(address for _, address in names), deadline)

        def connect() -> list[str]:
            first = self._count_titles(borne)
            self._mention(passages, proposals)
            self._link(targets, names)
            return first

        first = await asyncio.to_thread(connect)
        await self._mention_in_old(first, ended, deadline)
        self._phrases.add(spans)

    def _count_titles(self, borne: Mapping[int, Mapping[str, Title]]) -> list[str]:
        """Counts titles; gives the keys that become titles for the first time."""
        first: list[str] = []
        for ref, titles in borne.items():
            for key, title in titles.items():
                vertex = self._vertex(key)
                counted = self._entities[vertex]
                if not counted.is_title:
                    counted.known = 1
                    first.append(key)
                counted.titles += 1
                properties: dict[str, Value] = {"weight": title.weight, "title": title.name}
                self._batch.edges.append(Edge(EdgeLabel.BEARS, passage_vertex(ref), vertex, properties))
        self.titled += first
        return [key for key in first if is_matchable(key)]

    def _mention(self, passages: Mapping[int, PassageWrite], proposals: Mapping[int, set[str]]) -> None:
        for ref, write in passages.items():
            capitalised = write.spans.capitalised
            for key in sorted(capitalised):
                self._add_mention(ref, key, CAPITALISED)
            for key in sorted(proposals[ref] - capitalised):
                if self._entities[self._vertex(key)].is_title and is_matchable(key):
                    self._add_mention(ref, key, TITLED)

    def _add_mention(self, ref: int, key: str, kind: int) -> None:
        vertex = self._vertex(key)
        counted = self._entities[vertex]
        if kind == CAPITALISED:
            counted.capitalised += 1
        else:
            counted.titled += 1
        self._batch.edges.append(Edge(EdgeLabel.MENTIONS, passage_vertex(ref), vertex, {"kind": kind}))

    def _link(self, targets: Mapping[int, set[tuple[str, str]]], names: Sequence[tuple[str, str]]) -> None:
        for ref, found in targets.items():
            for address, fragment in sorted(found):
                if address:
                    vertex = address_vertex(self._uid, address)
                    self._batch.edges.append(
                        Edge(EdgeLabel.LINKS_TO, passage_vertex(ref), vertex, {"fragment": fragment})
                    )
            for address in {address for address, _ in found if address}:
                self._addresses[address_vertex(self._uid, address)].links += 1
        for document, address in names:
            self._batch.edges.append(Edge(EdgeLabel.NAMED_BY, document, address_vertex(self._uid, address)))

    async def _mention_in_old(self, keys: Sequence[str], ended: set[int], deadline: Deadline) -> None:
        """Finds names that have become titles for the first time in the passages that were there before."""
        newer = dict(zip(keys, self._phrases.may_hold(keys), strict=True))
        sought = {key: held for key, held in newer.items() if held or self._phrases.since}
        if not sought:
            return
        hashes = {key: _looked_up_by(key) for key in sought}
        wanted = (found for group in hashes.values() for found in group)
        held = await read_postings(
            self._engine, self._buckets, self._collection, self._batch.view, wanted, deadline=deadline
        )
        candidates: dict[int, list[str]] = {}
        for key, among_newer in sought.items():
            for ref in _rarest(hashes[key], held):
                if ref not in ended and (among_newer or ref < self._phrases.since):
                    candidates.setdefault(ref, []).append(key)
        access = Access((self._uid,), first_ref(self._batch.view.version + 1))
        refs = sorted(candidates)
        for start in range(0, len(refs), _VERIFIED_AT_ONCE):
            rows = await self._engine.passages(
                refs[start : start + _VERIFIED_AT_ONCE], access, fields={"words", "body"}, deadline=deadline
            )
            for row in rows:
                if is_there(row, self._batch.view):
                    self._mention_where_it_occurs(row, candidates[row.ref])

    def _mention_where_it_occurs(self, row: PassageRow, keys: Iterable[str]) -> None:
        spans = Body.decoded(str(row.properties["body"])).spans(str(row.properties.get("words", "")))
        for key in keys:
            if occurs(key, spans) and key not in spans.capitalised:
                self._add_mention(row.ref, key, TITLED)

    async def _look_up(self, keys: Iterable[str], addresses: Iterable[str], deadline: Deadline) -> None:
        entities = {self._vertex(key): key for key in keys}
        named = {address_vertex(self._uid, address): address for address in addresses}
        complete = self._memory.created_at(self._uid)
        wanted: dict[VertexLabel, list[str]] = {}
        for label, names, known in (
            (VertexLabel.ENTITY, entities, self._entities),
            (VertexLabel.ADDRESS, named, self._addresses),
        ):
            for vertex, name in names.items():
                if vertex in known:
                    continue
                totals = self._memory.entity(vertex)
                due = self._memory.cells(vertex) > COMPACTED_FROM and self._batch.horizon > (complete or 0)
                known[vertex] = _Counted(name, totals or NOTHING, there=totals is not None)
                if due or (totals is None and complete is None):
                    wanted.setdefault(label, []).append(vertex)
        if not wanted:
            return
        records = await self._engine.records(wanted, fields={"counts"}, deadline=deadline)
        for vertex, record in records.items():
            if vertex in entities:
                self._learn_entity(vertex, record, entities[vertex])
            else:
                self._learn_address(vertex, record, named[vertex])

    def _learn_entity(self, vertex: str, record: Record, key: str = "") -> None:
        values = record.sets.get("counts", ())
        known = self._entities.get(vertex) or _Counted(key or str(record.properties["entity_key"]))
        known.before = EntityTotals.seen(values, self._batch.view)
        known.values, known.there = values, _counting(values, self._batch.view)
        self._entities[vertex] = known

    def _learn_address(self, vertex: str, record: Record, address: str = "") -> None:
        values = record.sets.get("counts", ())
        known = self._addresses.get(vertex) or _Counted(address or str(record.properties["address"]))
        known.values, known.there = values, _counting(values, self._batch.view)
        self._addresses[vertex] = known

    def settle(self) -> int:
        """Adds the vertices and cells; gives by how much the number of entities changes."""
        more = 0
        for vertex, counted in self._entities.items():
            counted.after = counted.before
            if counted.changed:
                change = EntityTotals(counted.capitalised, counted.titled, counted.titles, counted.known)
                counted.after = counted.before.plus(change)
                more += counted.after.exists - counted.before.exists
                self._store(VertexLabel.ENTITY, vertex, counted, change.encoded())
        for vertex, counted in self._addresses.items():
            if counted.links or not counted.there:
                self._store(VertexLabel.ADDRESS, vertex, counted, str(counted.links))
        return more

    def _store(self, label: VertexLabel, vertex: str, counted: _Counted, payload: str) -> None:
        batch = self._batch
        size = counted.after.size
        if not counted.there:
            self.made.append(vertex)
            properties: dict[str, str | int] = (
                {"entity_key": counted.name, "uid": self._uid, "size": size}
                if label is VertexLabel.ENTITY
                else {"address": counted.name, "uid": self._uid}
            )
            sets = {"counts": [cell(batch.version, payload)]}
            batch.vertices.append(Vertex(label, vertex, properties, sets))
            return
        batch.add(label, vertex, "counts", payload)
        if label is VertexLabel.ENTITY and size != counted.before.size:
            batch.settings.append(Setting(label, vertex, "size", size))
        if counted.values is not None:
            merged = batch.to_merge(label, vertex, "counts", counted.values)
            if merged:
                payloads = [part.payload for part in merged]
                total = EntityTotals.total(payloads).encoded() if label is VertexLabel.ENTITY else _sum(payloads)
                batch.merge(label, vertex, "counts", merged, total)

    def _vertex(self, key: str) -> str:
        """The vertex of an entity; each name is hashed once."""
        vertex = self._vertices.get(key)
        if vertex is None:
            vertex = self._vertices[key] = entity_vertex(self._uid, key)
        return vertex

    def committed(self) -> None:
        """Hands what is known now to the memory of the process."""
        memory = self._memory
        memory.remember(
            (vertex, counted.after, 1 + (memory.cells(vertex) if counted.values is None else 0))
            for known in (self._entities, self._addresses)
            for vertex, counted in known.items()
            if counted.there or counted.changed or counted.links or known is self._addresses
        )


def _counting(values: Iterable[str], view: View) -> bool:
    return any(view.counts(writer_of(value)) for value in values)


def _sum(payloads: Iterable[str]) -> str:
    return str(sum(map(int, payloads)))


def _looked_up_by(key: str) -> list[int]:
    """The hashes of which every passage in which a title occurs has all."""
    words = key.split()
    return [name_hash(key)] if len(words) == 1 else [term_hash(word) for word in words]


def _rarest(hashes: Sequence[int], held: Mapping[int, Held]) -> list[int]:
    """The passages that hold the rarest of some words; none, where one of these is in none."""
    found = [held[wanted][0] if wanted in held else None for wanted in hashes]
    if any(refs is None for refs in found):
        return []
    shortest: list[int] = min((refs for refs in found if refs is not None), key=len).tolist()
    return shortest


def _best(titles: Iterable[Title]) -> dict[str, Title]:
    """The titles by key, of each the one with the greatest weight."""
    best: dict[str, Title] = {}
    for title in titles:
        if title.key not in best or best[title.key].weight < title.weight:
            best[title.key] = title
    return best
