"""The graph store over a property graph that promises no transaction of several vertices."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from loremesh_agents.adapters.graph.versioned.batch import Batch
from loremesh_agents.adapters.graph.versioned.buckets import Buckets, Held, read_postings
from loremesh_agents.adapters.graph.versioned.cells import View
from loremesh_agents.adapters.graph.versioned.chain import Chain, Head
from loremesh_agents.adapters.graph.versioned.contents import contents
from loremesh_agents.adapters.graph.versioned.engine import Access, GraphEngine, PassageRow
from loremesh_agents.adapters.graph.versioned.identifiers import first_ref, refs_of
from loremesh_agents.adapters.graph.versioned.log import ChangeLog, read_documents
from loremesh_agents.adapters.graph.versioned.passages import PassageCache
from loremesh_agents.adapters.graph.versioned.schema import require_current
from loremesh_agents.adapters.graph.versioned.snapshot import Reading, VersionedSnapshot
from loremesh_agents.adapters.graph.versioned.states import CollectionState, Decision, Outcome, Purge
from loremesh_agents.adapters.graph.versioned.sweep import Sweeping
from loremesh_agents.adapters.graph.versioned.terms import term_hash
from loremesh_agents.adapters.graph.versioned.texts import Body
from loremesh_agents.adapters.graph.versioned.timing import Clock, Timing
from loremesh_agents.adapters.graph.versioned.turns import Turns, committed, of_nothing
from loremesh_agents.adapters.graph.versioned.vector_writer import VectorWriter
from loremesh_agents.adapters.graph.versioned.vectors import VectorPlaces, places_of
from loremesh_agents.adapters.graph.versioned.visibility import is_there, require_time
from loremesh_agents.adapters.graph.versioned.writer import Writer, removed_collection
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import (
    ANY_OPTIONS,
    Change,
    Collection,
    CollectionOptions,
    CollectionVectors,
    DocumentSummary,
    DocumentWrite,
    Passage,
    WriteResult,
)
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    CollectionNotFound,
    CollectionOptionsMismatch,
    CollectionRecreated,
    DocumentNotFound,
    LoremeshError,
    RevisionNotReached,
    WriteConflict,
)
from loremesh_agents.domain.filter import EVERYTHING, MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.ports.graph import TextChanges, VectorChanges

_Result = TypeVar("_Result")

_MOST_COLLECTIONS = 16
_POLL_DEADLINE = 10.0
_ANSWER_TIME = 0.04
"""Seconds before a deadline at which waiting ends, so that the caller still hears that it was in vain."""
_OPTIONS = CollectionOptions(reader_statistics=False)


class VersionedGraphStore:
    """See `ports.graph.GraphStore`. Several processes may write; docs/consistency.md says how they agree.

    It belongs to one event loop. Statistics per set of readers are not kept.

    Args:
        engine: Where the graph is; closed with the store.
        timing: How long things last; the same in all processes of a store.
        clock: Of this process.
    """

    def __init__(self, engine: GraphEngine, *, timing: Timing | None = None, clock: Clock | None = None) -> None:
        self._engine = engine
        self._timing = timing or Timing()
        self._clock = clock or Clock()
        self._chain = Chain(engine, self._clock, self._timing, time.time)
        self._passages = PassageCache()
        self._buckets = Buckets()
        self._sweeping = Sweeping(engine, self._chain, self._clock, self._timing)
        self._turns = Turns(engine, self._chain, self._sweeping, self._buckets, self._timing)
        self._opened = False
        self._closed = False
        self._changed = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._watchers = 0
        self._failure: LoremeshError | None = None

    @property
    def engine(self) -> GraphEngine:
        """The engine, for what looks into it besides."""
        return self._engine

    def on_failed_sweep(self, call: Callable[[], None]) -> None:
        """Has something called whenever what has ended could not be removed, by `sweep` or in the course of a write."""
        self._sweeping.on_failure = call

    async def head(self, *, deadline: Deadline) -> Head:
        """The newest state of the whole store, for those who look after it."""
        return await self._now(deadline)

    async def write(
        self,
        collection: str,
        documents: Sequence[DocumentWrite],
        *,
        embedding_model: str,
        options: CollectionOptions = ANY_OPTIONS,
        deadline: Deadline,
    ) -> tuple[CollectionRevision, tuple[WriteResult, ...]]:
        """See the port.

        Raises:
            CollectionOptionsMismatch: Statistics per set of readers are asked for.
        """

        async def work(writer: Writer, limit: Deadline) -> tuple[WriteResult, ...]:
            return await writer.write(documents, preparing, embedding_model, limit)

        def find(head: Head) -> CollectionState:
            found = head.collections.get(collection)
            if found is not None:
                _OPTIONS.require(collection, options)
                return found
            if options.reader_statistics:
                raise CollectionOptionsMismatch.unsupported(collection, "reader_statistics", self._engine.name)
            now = time.time()
            return CollectionState(fresh, collection, now, now)

        fresh = uuid.uuid4().hex
        passages = sum(len(write.passages) for write in documents)
        preparing = asyncio.create_task(asyncio.to_thread(contents, documents, embedding_model))
        try:
            async with self._writing(deadline) as turns:
                return await turns.write(find, work, passages, deadline)
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)

    async def delete_documents(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> tuple[CollectionRevision, int]:
        """See the port."""
        (await self._now(deadline)).collection(collection)

        async def work(writer: Writer, limit: Deadline) -> int:
            return await writer.delete(document_ids, limit)

        async with self._writing(deadline) as turns:
            return await turns.write(lambda head: head.collection(collection), work, 0, deadline)

    async def delete_collection(self, collection: str, *, deadline: Deadline) -> bool:
        """See the port."""
        if collection not in (await self._now(deadline)).collections:
            return False

        async def work(head: Head, batch: Batch, *_: object) -> tuple[Decision | None, bool]:
            state = head.collections.get(collection)
            if state is None:
                return None, False
            batch.cells.append(removed_collection(batch.version, state.uid))
            # A write that was given up may have left traces of the revision after the last.
            purge = Purge(state.uid, batch.version, 1, state.revision + 1, state.vertex_sets)
            return replace(committed(head), deleted=state.uid, purging=(purge,)), True

        async with self._writing(deadline) as turns:
            return await turns.take(of_nothing, work, deadline)

    async def sweep(self, *, deadline: Deadline) -> bool:
        """Removes a bounded part of what no reader needs any more, as writes do besides; gives whether there may be more.

        Of a store at rest there is an end of it, though each removal is a version itself. Here, unlike in a write, an error is raised where it fails.
        """
        head = await self._now(deadline)
        horizon = self._chain.horizon
        ended = any(self._leaves_something(version) for version in range(head.swept + 1, horizon + 1))
        if not ended and not any(entry.since <= horizon for entry in head.purging):
            return False

        async def work(head: Head, *_: object) -> tuple[Decision | None, bool]:
            return committed(head), True

        async with self._writing(deadline) as turns:
            return await turns.take(of_nothing, work, deadline, eager=True)

    def _leaves_something(self, version: int) -> bool:
        """Whether there may be more to remove of a version than its claim."""
        decision = self._chain.decision(version)
        if decision is None or decision.outcome is Outcome.ABORTED:
            return True
        return decision.outcome is Outcome.COMMITTED and (decision.collection is not None or bool(decision.deleted))

    async def write_vectors(
        self, collection: str, work: Callable[[VectorWriter, Deadline], Awaitable[_Result]], deadline: Deadline
    ) -> tuple[Collection, _Result]:
        """A write that changes which vectors a collection has, and nothing else; gives the collection after it. For `VersionedVectorSets`."""
        states: list[CollectionState] = []

        async def settle(writer: Writer, limit: Deadline) -> _Result:
            assert isinstance(writer, VectorWriter)
            result = await work(writer, limit)
            states.append(writer.collection)
            return result

        async with self._writing(deadline) as turns:
            _, result = await turns.write(lambda head: head.collection(collection), settle, 0, deadline, VectorWriter)
        return states[-1].counted, result

    async def log(self, collection: str, *, deadline: Deadline) -> tuple[CollectionState, ChangeLog, View]:
        """A collection's newest state with what led there, to be read within `Timing.snapshot`. For `VersionedVectorSets`."""
        head = await self._now(deadline)
        state = head.collection(collection)
        return state, ChangeLog(self._engine, head.view, state), head.view

    async def collections(self, *, after: str, limit: int, deadline: Deadline) -> tuple[Collection, ...]:
        """See the port."""
        head = await self._now(deadline)
        names = sorted(name for name in head.collections if name > after)
        return tuple(head.collections[name].counted for name in names[:limit])

    async def collection(self, name: str, *, deadline: Deadline) -> Collection:
        """See the port."""
        return (await self._now(deadline)).collection(name).counted

    async def vectors(self, collection: str, *, deadline: Deadline) -> CollectionVectors:
        """See the port."""
        state = (await self._now(deadline)).collection(collection)
        return state.vectors

    async def revision(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        return (await self._now(deadline)).collection(collection).reached

    async def document(
        self,
        collection: str,
        document_id: str,
        *,
        principal: Principal,
        first_passage: int,
        passage_limit: int,
        deadline: Deadline,
    ) -> tuple[CollectionRevision, DocumentSummary, tuple[Passage, ...]]:
        """See the port."""
        still_valid = self._validity()
        head = await self._now(deadline)
        state = head.collection(collection)
        found = await read_documents(self._engine, head.view, state.uid, [document_id], deadline)
        still_valid()
        document = found.get(document_id)
        if document is None or not document.readable(principal, EVERYTHING):
            raise DocumentNotFound(collection, document_id)
        page = refs_of(document.first_ref, document.passages)[first_passage : first_passage + passage_limit]
        passages: dict[int, Passage] = {}
        if page:
            access = Access((state.uid,), first_ref(head.version + 1))
            rows = await self._engine.passages(page, access, fields={"body"}, deadline=deadline)
            still_valid()
            there = (row for row in rows if is_there(row, head.view))
            passages = {row.ref: Body.decoded(str(row.properties["body"])).shown(collection) for row in there}
        return state.reached, document.summary, tuple(passages[ref] for ref in page)

    async def content_hashes(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> Mapping[str, tuple[str, int | None]]:
        """See the port."""
        still_valid = self._validity()
        head = await self._now(deadline)
        state = head.collections.get(collection)
        if state is None:
            return {}
        found = await read_documents(self._engine, head.view, state.uid, document_ids, deadline)
        still_valid()
        return {
            name: (document.content_hash, document.source_version)
            for name, document in found.items()
            if not document.deleted
        }

    async def changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> tuple[CollectionRevision, tuple[Change, ...]]:
        """See the port."""
        still_valid = self._validity()
        head = await self._now(deadline)
        log = ChangeLog(self._engine, head.view, head.collection(collection))
        found = await log.changes(after_revision, limit, deadline)
        still_valid()
        return found

    async def vector_changes(
        self, collection: str, *, model: str | None = None, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        """See the port."""
        still_valid = self._validity()
        head = await self._now(deadline)
        state = head.collection(collection)
        vector_set = state.set_of(model)
        if vector_set is None:
            raise BackendUnavailable(f"vectors of {model or 'no model'} in {collection}")
        log = ChangeLog(self._engine, head.view, state)
        found = await log.vector_changes(vector_set, after_revision, limit, deadline)
        still_valid()
        return found

    async def text_changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> TextChanges:
        """See the port."""
        still_valid = self._validity()
        head = await self._now(deadline)
        log = ChangeLog(self._engine, head.view, head.collection(collection))
        found = await log.text_changes(after_revision, limit, deadline)
        still_valid()
        return found

    @asynccontextmanager
    async def snapshot(
        self,
        collections: Sequence[str],
        *,
        principal: Principal,
        filter: MetadataFilter,
        consistency: Consistency,
        deadline: Deadline,
    ) -> AsyncGenerator[VersionedSnapshot]:
        """See the port.

        What is read in it raises `WriteConflict` once it is too old; the caller may open another one.
        """
        for required in consistency.min_revisions.values():
            await self._wait_for(required, deadline)
        still_valid = self._validity()
        head = await self._now(deadline)
        names = list(dict.fromkeys(collections)) or sorted(head.collections)[:_MOST_COLLECTIONS]
        reading = Reading([head.collection(name) for name in names], head.view, principal, filter)
        yield VersionedSnapshot(self._engine, reading, self._passages, self._buckets, still_valid)

    async def watch(self, collection: str, *, after_revision: int) -> AsyncGenerator[CollectionRevision]:
        """See the port."""
        uid = ""
        await self._now(Deadline.after(_POLL_DEADLINE))
        self._watchers += 1
        try:
            while True:
                changed = self._changed
                current = self._chain.head.collections.get(collection)
                if current is None or current.uid != (uid or current.uid):
                    raise CollectionNotFound(collection)
                uid = current.uid
                if current.revision > after_revision:
                    after_revision = current.revision
                    yield current.reached
                    continue
                self._keep_polling()
                await changed.wait()
                if self._closed:
                    raise BackendUnavailable(self._engine.name)
                if self._failure is not None:
                    raise self._failure
        finally:
            self._watchers -= 1
            if not self._watchers and self._poller is not None:
                self._poller.cancel()
                self._poller = None

    async def check(self, *, deadline: Deadline) -> None:
        """See the port."""
        await self._now(deadline)

    async def postings(
        self, revision: CollectionRevision, terms: Sequence[str], *, deadline: Deadline
    ) -> Mapping[str, Held]:
        """Which passages of a collection hold search terms, at its newest known state; empty where it was deleted. For the text index."""
        await self._open(deadline)
        head = self._chain.head
        state = head.collections.get(revision.collection)
        if state is None or state.uid != revision.collection_uid or state.revision < revision.revision:
            # Somebody else has seen more than this process.
            head = await self._now(deadline)
            state = head.collections.get(revision.collection)
        if state is None or state.uid != revision.collection_uid:
            return {}
        hashes = {term: term_hash(term) for term in terms}
        held = await read_postings(self._engine, self._buckets, state, head.view, hashes.values(), deadline=deadline)
        return {term: held[found] for term, found in hashes.items()}

    def holds(self, revision: CollectionRevision) -> bool:
        """Whether the collection that a state is of is there, as far as this process knows: what has read the state knows. For indexes."""
        current = self._chain.head.collections.get(revision.collection)
        return current is not None and current.uid == revision.collection_uid

    def vector_places(self, revision: CollectionRevision, model: str) -> VectorPlaces | None:
        """Where a collection that `holds` has the vectors of a model, in the newest state that this process knows; None where it has none of every passage. For indexes."""
        return places_of(self._chain.head.collection(revision.collection), model)

    def is_there(self, row: PassageRow) -> bool:
        """Whether a passage has been written and has not ended, in the newest state that this process knows. For indexes."""
        return is_there(row, self._chain.head.view)

    async def close(self) -> None:
        """See the port."""
        self._closed = True
        if self._poller is not None:
            self._poller.cancel()
        self._announce()
        await self._chain.close()
        await self._engine.close()

    async def _open(self, deadline: Deadline) -> None:
        """Checks what must hold before anything is read or written."""
        if self._closed:
            raise BackendUnavailable(self._engine.name)
        require_time(deadline)
        if not self._opened:
            await require_current(self._engine, deadline=deadline)
            self._opened = True

    @asynccontextmanager
    async def _writing(self, deadline: Deadline) -> AsyncGenerator[Turns]:
        """Those who wait for a change are told after it."""
        await self._open(deadline)
        try:
            yield self._turns
        finally:
            self._announce()

    async def _now(self, deadline: Deadline) -> Head:
        """The newest state."""
        await self._open(deadline)
        before = self._chain.head.version
        head = await self._chain.advance(deadline)
        if head.version != before:
            self._announce()
        return head

    def _validity(self) -> Callable[[], None]:
        """A function that raises where what is read is no state any more: then what had ended may be removed."""
        began = self._clock.now()

        def still_valid() -> None:
            if self._clock.now() - began > self._timing.snapshot:
                raise WriteConflict(self._engine.name)

        return still_valid

    def _announce(self) -> None:
        """Wakes all that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _keep_polling(self) -> None:
        if self._poller is None or self._poller.done():
            self._failure = None
            self._poller = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        """Looks for what other processes write, as long as somebody waits for it."""
        while True:
            await self._clock.sleep(self._timing.poll)
            try:
                await self._now(Deadline.after(_POLL_DEADLINE))
            except LoremeshError as error:
                self._failure = error
                self._announce()
                return

    async def _wait_for(self, required: CollectionRevision, deadline: Deadline) -> None:
        reached = 0
        while True:
            try:
                current = (await self._now(deadline)).collection(required.collection)
            except BudgetExhausted:
                raise RevisionNotReached(required.collection, required.revision, reached) from None
            if required.collection_uid and current.uid != required.collection_uid:
                raise CollectionRecreated(required.collection, required.collection_uid, current.uid)
            reached = current.revision
            if reached >= required.revision:
                return
            left = deadline.shrink(reserve=_ANSWER_TIME).remaining()
            if not left:
                raise RevisionNotReached(required.collection, required.revision, reached)
            changed = self._changed
            try:
                async with asyncio.timeout(min(left, self._timing.poll)):
                    await changed.wait()
            except TimeoutError:
                continue
