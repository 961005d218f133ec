"""One write: what it reads after its claim, and the changes that it makes of that."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loremesh_agents.adapters.graph.filters import PhraseFilter, TitleFilter
from loremesh_agents.adapters.graph.versioned.batch import Batch
from loremesh_agents.adapters.graph.versioned.buckets import BucketChanges, Buckets
from loremesh_agents.adapters.graph.versioned.cells import cell, newest, outdated
from loremesh_agents.adapters.graph.versioned.chain import Head
from loremesh_agents.adapters.graph.versioned.concurrently import both
from loremesh_agents.adapters.graph.versioned.contents import PassageContent
from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Cell,
    Edge,
    GraphEngine,
    Record,
    Setting,
    Value,
    Vertex,
)
from loremesh_agents.adapters.graph.versioned.entities import EntityChanges
from loremesh_agents.adapters.graph.versioned.identifiers import (
    MOST_PASSAGES,
    REGISTER,
    change_id,
    collection_id,
    document_vertex,
    first_ref,
    metadata_value,
    passage_vertex,
    readers_of,
    refs_of,
)
from loremesh_agents.adapters.graph.versioned.memory import Filters, WriterMemory
from loremesh_agents.adapters.graph.versioned.sending import Sending
from loremesh_agents.adapters.graph.versioned.states import (
    ChangeRecord,
    CollectionState,
    DocumentState,
    OtherVectors,
    Purge,
    packed,
)
from loremesh_agents.adapters.graph.versioned.terms import Features
from loremesh_agents.adapters.graph.versioned.vectors import INLINE, having_one, vector_vertex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import DocumentWrite, Outcome, PassageWrite, ReembeddingPhase, WriteResult
from loremesh_agents.domain.errors import EmbeddingMismatch, InvalidRequest, WriteConflict
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel

_ENDED_AT_ONCE = 512
_DOCUMENTS_AT_ONCE = 1000
_SENT_IN_PARTS = 64
"""Passages of a write from which on its parts are sent one by one."""
_CHANGES_AT_ONCE = 64
CHECKPOINT_INTERVAL = 512
"""Revisions from one that repeats which titles are new to the next: a process that begins to write reads these and the last few."""
_HEAD_INTERVAL = 8
"""Versions from one hint at the newest one to the next; those after it are looked for one by one."""


@dataclass(slots=True)
class _Documents:
    """What becomes of the documents of a write.

    Attributes:
        before: States that were there.
        values: The cells of these states, by the document's vertex.
        after: New states, by document id; those of documents that are written or deleted among them.
        written: What is written, by document id, with the handle of its first passage.
        deleted: Ids of those that go.
        places: Of those that are written, their places in the write,
        contents: and what is stored of their passages.
        other_vectors: How many of these have a vector of the set that does not count.
    """

    before: dict[str, DocumentState]
    values: dict[str, tuple[str, ...]]
    after: dict[str, DocumentState] = field(default_factory=dict[str, DocumentState])
    written: dict[str, tuple[DocumentWrite, int]] = field(default_factory=dict[str, tuple[DocumentWrite, int]])
    deleted: list[str] = field(default_factory=list[str])
    places: dict[str, int] = field(default_factory=dict[str, int])
    contents: Mapping[str, Sequence[PassageContent]] = field(default_factory=dict[str, Sequence[PassageContent]])
    other_vectors: int = 0

    def current(self, document_id: str) -> DocumentState | None:
        """The state of a document at this place of the write."""
        return self.after.get(document_id) or self.before.get(document_id)

    def ended(self) -> list[DocumentState]:
        """States that were there whose passages end."""
        ids = [*self.written, *self.deleted]
        return [self.before[name] for name in ids if name in self.before and not self.before[name].deleted]


class Writer:
    """The changes of one version to one collection.

    Args:
        engine: To read from.
        memory: Of the process.
        buckets: That the process has read.
        batch: Takes the changes.
        sending: Takes parts of the batch as soon as they are known.
        head: The state that the version follows.
        collection: The collection in that state, or as it is to be made.
        time: Of the write, in seconds since 1970.
    """

    def __init__(
        self,
        engine: GraphEngine,
        memory: WriterMemory,
        buckets: Buckets,
        batch: Batch,
        sending: Sending,
        *,
        head: Head,
        collection: CollectionState,
        time: float,
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._buckets = buckets
        self._base = collection
        self._time = time
        self._version = batch.version
        self._created = collection.name not in head.collections
        self._batch = batch
        self._sending = sending
        self._next = first_ref(self._version)
        self._entities: EntityChanges | None = None
        self._filters: Filters | None = None
        self._states: tuple[str, ...] = ()
        self.collection = collection
        self.removes = False
        self.purging: list[Purge] = []

    @property
    def revised(self) -> bool:
        """Whether there is a new revision."""
        return self.collection.revision != self._base.revision

    @property
    def renewed(self) -> bool:
        """Whether the collection has a new state."""
        return self._created or self.collection != self._base

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to commit."""
        return self.renewed or bool(self._batch.cells)

    async def write(
        self,
        documents: Sequence[DocumentWrite],
        contents: Awaitable[Sequence[Sequence[PassageContent]]],
        embedding_model: str,
        deadline: Deadline,
    ) -> tuple[WriteResult, ...]:
        """Writes documents, in order.

        Args:
            documents: What to write.
            contents: What is stored of their passages, when it is there.
            embedding_model: Of their vectors.
            deadline: When to give up.

        Raises:
            EmbeddingMismatch: The collection has vectors of another model that are not given.
            WriteConflict: A document that came without passages has changed.
            InvalidRequest: There are too many passages.
        """
        if sum(len(write.passages) for write in documents) > MOST_PASSAGES:
            raise InvalidRequest.of("documents", f"one write takes at most {MOST_PASSAGES} passages")
        found = await self._read([write.document.document_id for write in documents], deadline)
        results = tuple(self._judge(write, place, found) for place, write in enumerate(documents))
        if found.written:
            self._require_model(embedding_model, [write for write, _ in found.written.values()])
            known = await contents
            found.contents = {name: known[place] for name, place in found.places.items()}
        await self._settle(found, deadline)
        return results

    async def delete(self, document_ids: Sequence[str], deadline: Deadline) -> int:
        """Deletes documents; gives how many there were."""
        found = await self._read(document_ids, deadline)
        for name, state in found.before.items():
            if not state.deleted:
                found.deleted.append(name)
                found.after[name] = state.gone(revision=self._base.revision + 1, time=self._time)
        await self._settle(found, deadline)
        return len(found.deleted)

    def committed(self) -> None:
        """Hands what is known now to the memory of the process."""
        if self._created:
            self._memory.created(self._base.uid, self._version - 1)
        if self._entities is not None:
            self._entities.committed()
        if self._filters is not None:
            self._filters.revision = self.collection.revision
            titled = self._entities.titled if self._entities is not None else []
            if self.collection.revision % CHECKPOINT_INTERVAL:
                self._filters.recent += titled
            else:
                self._filters.recent = []
            self._memory.keep_filters(self._base.uid, self._filters)

    async def _read(self, document_ids: Sequence[str], deadline: Deadline) -> _Documents:
        uid = self._base.uid
        names = {document_vertex(uid, name): name for name in document_ids}
        found = _Documents({}, {})
        if self._created:
            return found
        vertices = list(names)
        records: dict[str, Record] = {}
        for start in range(0, max(len(vertices), 1), _DOCUMENTS_AT_ONCE):
            wanted = {VertexLabel.DOCUMENT: vertices[start : start + _DOCUMENTS_AT_ONCE]} if vertices else {}
            if not start:
                wanted[VertexLabel.COLLECTION] = [collection_id(uid)]
            records.update(await self._engine.records(wanted, fields={"states"}, deadline=deadline))
        for vertex, record in records.items():
            values = record.sets.get("states", ())
            if vertex not in names:
                self._states = values
                continue
            text = newest(values, self._batch.view)
            if text is not None:
                found.before[names[vertex]] = DocumentState.decoded(text)
                found.values[vertex] = values
        return found

    def _judge(self, write: DocumentWrite, place: int, found: _Documents) -> WriteResult:
        """What becomes of a document."""
        document, version = write.document, write.document.source_version
        name = document.document_id
        stored = found.current(name)
        there = stored is not None and not stored.deleted
        known = stored.source_version if stored is not None else None
        written_at = stored.revision if stored is not None and there else self._base.revision
        passages = stored.passages if stored is not None and there else 0
        if version is not None and known is not None and version < known:
            return WriteResult(name, Outcome.STALE, written_at, passages, known)
        if stored is not None and there and stored.content_hash == document.content_hash:
            if version is not None and version != known:
                # Not a change that a reader can see; it only keeps older versions out.
                found.after[name] = replace(stored, source_version=version)
            return WriteResult(name, Outcome.UNCHANGED, written_at, passages, known if version is None else version)
        if not write.passages:
            # Its writer saw it unchanged and left the passages out; meanwhile another one has changed it.
            raise WriteConflict(self._engine.name)
        revision = self._base.revision + 1
        found.after[name] = DocumentState.of(
            write, revision=revision, time=self._time, first_ref=self._next, before=found.before.get(name)
        )
        found.written[name] = (write, self._next)
        found.places[name] = place
        self._next += len(write.passages)
        outcome = Outcome.UPDATED if there else Outcome.CREATED
        return WriteResult(name, outcome, revision, len(write.passages), version)

    def _require_model(self, model: str, writes: Sequence[DocumentWrite]) -> None:
        """Settles of which model the vectors are that count; `model` is that of the writes' own vectors."""
        base = self._base
        if model == base.embedding_model:
            return
        if not base.passages:
            # Nothing has a vector: neither those that count nor those of another model.
            self._let_go(base.vertex_sets)
            self.collection = replace(self.collection, embedding_model=model, vector_set=INLINE, other=None)
        elif not all(base.embedding_model in passage.further_vectors for write in writes for passage in write.passages):
            raise EmbeddingMismatch(base.name, base.embedding_model or "none", model or "none")

    def _let_go(self, sets: Sequence[int]) -> None:
        """Has the vectors of sets removed in time, which no later state of the collection has."""
        # Not of the revision to come, which may have a set 0 of its own. What was given up there goes with the passages of its claim.
        last = self._base.revision
        if sets and last:
            self.purging.append(Purge(self._base.uid, self._version, 1, last, tuple(sets), vectors_alone=True))

    async def _settle(self, found: _Documents, deadline: Deadline) -> None:
        """Makes the changes of what was judged."""
        self._store_passages(found)
        self._send_so_far(found)
        for name, state in found.after.items():
            self._store_document(name, state, found)
        if found.written or found.deleted:
            await self._revise(found, deadline)
        if self.renewed:
            self._store_collection()

    def _store_document(self, name: str, state: DocumentState, found: _Documents) -> None:
        vertex = document_vertex(self._base.uid, name)
        batch = self._batch
        if vertex in found.values:
            batch.add(VertexLabel.DOCUMENT, vertex, "states", state.encoded())
            gone = outdated(found.values[vertex], batch.view, batch.horizon)
            batch.drop(VertexLabel.DOCUMENT, vertex, "states", gone)
        else:
            properties = {"document_id": name, "uid": self._base.uid}
            sets = {"states": [cell(self._version, state.encoded())]}
            batch.vertices.append(Vertex(VertexLabel.DOCUMENT, vertex, properties, sets))
        for ref in refs_of(state.first_ref, state.passages) if name in found.written else ():
            batch.edges.append(Edge(EdgeLabel.HAS_PASSAGE, vertex, passage_vertex(ref)))

    async def _revise(self, found: _Documents, deadline: Deadline) -> None:
        uid, batch = self._base.uid, self._batch
        self._filters = await self._current_filters(deadline)
        entities = EntityChanges(self._engine, batch, self._base, self._memory, self._buckets, filters=self._filters)
        self._entities = entities
        ended_states = found.ended()
        ended = [ref for state in ended_states for ref in refs_of(state.first_ref, state.passages)]
        removed = await self._end(ended, entities, deadline)
        passages: dict[int, PassageWrite] = {}
        added: dict[int, Features] = {}
        for name, (write, first) in found.written.items():
            refs = refs_of(first, len(write.passages))
            passages.update(zip(refs, write.passages, strict=True))
            added.update((ref, content.features) for ref, content in zip(refs, found.contents[name], strict=True))
        names = [
            (document_vertex(uid, name), address)
            for name in found.written
            for address in found.after[name].named
            if name not in found.before or address not in found.before[name].named
        ]
        await entities.insert(passages, names, set(ended), deadline)
        new_entities = entities.settle()
        self.removes = bool(ended)
        self._record_change(found, ended_states, entities.titled, entities.made)
        self._send_so_far(found)
        buckets = BucketChanges(uid, self._memory.buckets)
        since = self._memory.created_at(uid) or 0
        await buckets.compact(batch, self._engine, since=since, deadline=deadline)
        await asyncio.to_thread(buckets.collect, batch, added, removed)
        base = self._base
        new = [found.after[name] for name in found.written]
        self.collection = replace(
            self.collection,
            revision=base.revision + 1,
            update_time=self._time,
            documents=base.documents + len(new) - len(ended_states),
            restricted=base.restricted + sum(bool(s.readers) for s in new) - sum(bool(s.readers) for s in ended_states),
            passages=base.passages + len(passages) - len(ended),
            other=await self._other_after(found, len(passages), ended, deadline),
            entities=base.entities + new_entities,
            terms=base.terms + sum(f.length for f in added.values()) - sum(f.length for f in removed.values()),
        )

    async def _other_after(
        self, found: _Documents, written: int, ended: Sequence[int], deadline: Deadline
    ) -> OtherVectors | None:
        """The vectors that do not count, after passages are written and ended."""
        other = self.collection.other
        if other is None:
            return None
        gone = len(ended)
        if other.phase != ReembeddingPhase.KEPT.value:
            _, having = await having_one(
                self._engine, self._batch.view, self._base, other.number, set(ended), deadline=deadline
            )
            gone = len(having)
        lapses = other.phase == ReembeddingPhase.KEPT.value and found.other_vectors < written
        phase = ReembeddingPhase.LAPSED.value if lapses else other.phase
        return replace(other, phase=phase, count=other.count + found.other_vectors - gone)

    async def _end(self, ended: Sequence[int], entities: EntityChanges, deadline: Deadline) -> dict[int, Features]:
        """Ends passages; gives their features."""
        access = Access((self._base.uid,), first_ref(self._version))
        removed: dict[int, Features] = {}
        for start in range(0, len(ended), _ENDED_AT_ONCE):
            group = ended[start : start + _ENDED_AT_ONCE]
            around, rows = await both(
                self._engine.neighbourhood(group, (), access, title_limit=0, mention_limit=-1, deadline=deadline),
                self._engine.passages(group, access, fields={"features"}, deadline=deadline),
            )
            entities.remove(around)
            removed.update((row.ref, Features.decoded(str(row.properties["features"]))) for row in rows)
        for ref in ended:
            self._batch.add(VertexLabel.PASSAGE, passage_vertex(ref), "ends", "")
        return removed

    def _store_passages(self, found: _Documents) -> None:
        uid, batch = self._base.uid, self._batch
        for name, (write, first) in found.written.items():
            document = write.document
            sets = {
                "readers": readers_of(document.readers),
                "metadata": [metadata_value(key, value) for key, value in sorted(document.metadata.items())],
            }
            for ref, content in zip(refs_of(first, len(write.passages)), found.contents[name], strict=True):
                properties = {"ref": ref, "uid": uid, **content.properties, **self._store_vectors(ref, content, found)}
                batch.vertices.append(Vertex(VertexLabel.PASSAGE, passage_vertex(ref), properties, sets))

    def _store_vectors(self, ref: int, content: PassageContent, found: _Documents) -> dict[str, Value]:
        """Stores the vectors of a new passage of the models that the collection has; gives what the passage holds itself."""
        state = self.collection
        own: dict[str, Value] = {}
        other = (state.other.number, state.other.model) if state.other is not None else None
        for number, model in filter(None, ((state.vector_set, state.embedding_model), other)):
            vector = content.vectors.get(model)
            if vector is None:
                continue
            found.other_vectors += (number, model) == other
            if number == INLINE:
                own["vector"] = vector
            else:
                self._batch.vertices.append(
                    vector_vertex(state, number, model, ref, vector=vector, version=self._version)
                )
        return own

    def _send_so_far(self, found: _Documents) -> None:
        """Sends a part of a large write, while the rest is computed. A small one is faster in one request."""
        if sum(len(write.passages) for write, _ in found.written.values()) >= _SENT_IN_PARTS:
            self._sending.send(self._batch.taken())

    async def _revise_vectors(self, deadline: Deadline) -> None:
        """A revision in which no document changes."""
        self._filters = await self._current_filters(deadline)
        self._record_change(_Documents({}, {}), (), (), ())
        self.collection = replace(self.collection, revision=self._base.revision + 1, update_time=self._time)

    async def _store_state(self, deadline: Deadline) -> None:
        """Stores the collection's state where no document changes."""
        await self._read((), deadline)
        self._store_collection()

    def _record_change(
        self, found: _Documents, ended: Sequence[DocumentState], titled: Sequence[str], made: Sequence[str]
    ) -> None:
        change = ChangeRecord(
            documents=(*found.written, *found.deleted),
            added=tuple((first, len(write.passages)) for write, first in found.written.values()),
            removed=tuple((state.first_ref, state.passages) for state in ended),
            titled=tuple(titled),
            made=tuple(made),
            checkpoint=self._checkpoint(titled),
        )
        vertex = change_id(self._base.uid, self._base.revision + 1)
        sets = {"changes": [cell(self._version, change.encoded())]}
        # Before what it names: where the write breaks off, it tells what there may be. Of passages the claim tells that.
        self._batch.vertices.insert(0, Vertex(VertexLabel.CHANGE, vertex, sets=sets))

    def _checkpoint(self, titled: Sequence[str]) -> str:
        if self._filters is None or (self._base.revision + 1) % CHECKPOINT_INTERVAL:
            return ""
        return packed([*self._filters.recent, *titled])

    def _store_collection(self) -> None:
        batch, uid = self._batch, self._base.uid
        vertex, state = collection_id(uid), self.collection.encoded()
        if self._created:
            sets = {"states": [cell(self._version, state)]}
            batch.vertices.append(Vertex(VertexLabel.COLLECTION, vertex, {"name": self._base.name}, sets))
            register = {"collections": [cell(self._version, f"+{uid}")]}
            batch.vertices.append(Vertex(VertexLabel.REGISTER, REGISTER, {"head": self._version - 1}, register))
            return
        batch.add(VertexLabel.COLLECTION, vertex, "states", state)
        batch.drop(VertexLabel.COLLECTION, vertex, "states", outdated(self._states, batch.view, batch.horizon))
        if not self._version % _HEAD_INTERVAL:
            batch.settings.append(Setting(VertexLabel.REGISTER, REGISTER, "head", self._version - 1))

    async def _current_filters(self, deadline: Deadline) -> Filters:
        """The filters of the collection in its present state; new ones where another process has changed it."""
        revision = self._base.revision
        known = self._memory.filters(self._base.uid)
        current = known is not None and known.revision == revision
        if known is not None and current and not known.titles.full:
            return known
        # Of a collection without passages nothing is missed.
        since = first_ref(self._version) if self._base.passages else 0
        phrases = known.phrases if known is not None and current else PhraseFilter(since)
        if known is not None and not known.titles.full:
            titles, reached, recent = known.titles, known.revision, list(known.recent)
        else:
            keys: list[str] = []
            checkpoints = range(CHECKPOINT_INTERVAL, revision + 1, CHECKPOINT_INTERVAL)
            async for change in self._changes(checkpoints, deadline):
                keys += change.titles_until_here
            titles, reached, recent = TitleFilter(keys), revision - revision % CHECKPOINT_INTERVAL, []
        async for change in self._changes(range(reached + 1, revision + 1), deadline):
            titles.add(change.titled)
            if change.checkpoint:
                recent = []
            else:
                recent += change.titled
        return Filters(revision, titles, phrases, recent)

    async def _changes(self, revisions: range, deadline: Deadline) -> AsyncIterator[ChangeRecord]:
        """What some revisions have changed, in order."""
        for start in range(0, len(revisions), _CHANGES_AT_ONCE):
            ids = [change_id(self._base.uid, revision) for revision in revisions[start : start + _CHANGES_AT_ONCE]]
            records = await self._engine.records({VertexLabel.CHANGE: ids}, deadline=deadline)
            for vertex in ids:
                record = records.get(vertex)
                text = newest(record.sets.get("changes", ()), self._batch.view) if record is not None else None
                if text is not None:
                    yield ChangeRecord.decoded(text)


def removed_collection(version: int, uid: str) -> Cell:
    """The cell that says that a collection is deleted."""
    return Cell(VertexLabel.REGISTER, REGISTER, "collections", cell(version, f"-{uid}"))
