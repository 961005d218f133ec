"""The graph store in memory."""

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np

from loremesh_agents.adapters.graph.memory.snapshot import MemorySnapshot, may_read, require_time
from loremesh_agents.adapters.graph.memory.state import CollectionState, StoredPassage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import (
    ANY_OPTIONS,
    Change,
    Collection,
    CollectionOptions,
    CollectionVectors,
    DocumentSummary,
    DocumentWrite,
    Outcome,
    Passage,
    WriteResult,
)
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    CollectionNotFound,
    CollectionRecreated,
    DocumentNotFound,
    EmbeddingMismatch,
    RevisionNotReached,
    WriteConflict,
)
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.ports.graph import PassageWords, TextChanges, VectorChanges

_BACKEND = "memory"
_ANSWER_TIME = 0.04
"""Seconds before a deadline at which waiting ends, so that the caller still hears that it was in vain."""


class MemoryGraphStore:
    """See `ports.graph.GraphStore`. Everything is in one process and is lost when it ends.

    It is a specification that runs: each read works out its answer from the documents. So it suits tests and small demonstrations, not
    collections of production size. It belongs to one event loop, and a method never waits halfway: so a write is seen whole or not at all.
    """

    def __init__(self) -> None:
        self._states: dict[str, CollectionState] = {}
        self._refs = (PassageRef(number) for number in itertools.count(1))
        self._written = asyncio.Event()
        self._closed = False

    async def write(
        self,
        collection: str,
        documents: Sequence[DocumentWrite],
        *,
        embedding_model: str,
        options: CollectionOptions = ANY_OPTIONS,
        deadline: Deadline,
    ) -> tuple[CollectionRevision, tuple[WriteResult, ...]]:
        """See the port."""
        self._require_open(deadline)
        now = datetime.now(UTC)
        state = self._states.get(collection) or CollectionState(
            collection, uuid.uuid4().hex, now, now, CollectionOptions(bool(options.reader_statistics))
        )
        state.options.require(collection, options)
        revision = state.revision + 1
        results: list[WriteResult] = []
        for write in documents:
            state, result = _written(state, write, embedding_model, self._refs, revision=revision, time=now)
            results.append(result)
        self._commit(state)
        return state.reached, tuple(results)

    async def delete_documents(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> tuple[CollectionRevision, int]:
        """See the port."""
        self._require_open(deadline)
        state = self._state(collection)
        there = state.documents.keys() & set(document_ids)
        revision, now = state.revision + 1, datetime.now(UTC)
        for document_id in there:
            state = state.without(document_id, revision=revision, time=now)
        self._commit(state)
        return state.reached, len(there)

    async def delete_collection(self, collection: str, *, deadline: Deadline) -> bool:
        """See the port."""
        self._require_open(deadline)
        was_there = self._states.pop(collection, None) is not None
        self._announce()
        return was_there

    async def collections(self, *, after: str, limit: int, deadline: Deadline) -> tuple[Collection, ...]:
        """See the port."""
        self._require_open(deadline)
        names = sorted(name for name in self._states if name > after)
        return tuple(self._states[name].counted for name in names[:limit])

    async def collection(self, name: str, *, deadline: Deadline) -> Collection:
        """See the port."""
        self._require_open(deadline)
        return self._state(name).counted

    async def vectors(self, collection: str, *, deadline: Deadline) -> CollectionVectors:
        """See the port."""
        self._require_open(deadline)
        state = self._state(collection)
        return CollectionVectors(state.reached, state.embedding_model, len(state.passages))

    async def revision(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        self._require_open(deadline)
        return self._state(collection).reached

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
        self._require_open(deadline)
        state = self._state(collection)
        stored = state.documents.get(document_id)
        if stored is None or not may_read(principal, stored.document):
            raise DocumentNotFound(collection, document_id)
        page = stored.passages[first_passage : first_passage + passage_limit]
        return state.reached, stored.summary, tuple(passage.shown for passage in page)

    async def content_hashes(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> Mapping[str, tuple[str, int | None]]:
        """See the port."""
        self._require_open(deadline)
        state = self._states.get(collection)
        found = (
            {name: state.documents[name].document for name in document_ids if name in state.documents} if state else {}
        )
        return {name: (document.content_hash, document.source_version) for name, document in found.items()}

    async def changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> tuple[CollectionRevision, tuple[Change, ...]]:
        """See the port."""
        self._require_open(deadline)
        state = self._state(collection)
        found = [change for change in state.changes if change.revision > after_revision]
        last = _page_end([change.revision for change in found], limit, state.revision)
        page = tuple(change for change in found if change.revision <= last)
        return replace(state.reached, revision=last), page

    async def vector_changes(
        self, collection: str, *, model: str | None = None, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        """See the port."""
        self._require_open(deadline)
        state = self._state(collection)
        if model not in (None, state.embedding_model):
            raise BackendUnavailable(f"vectors of {model or 'no model'} in {collection}")
        last, passages = _page(state, after_revision, limit)
        fresh = {passage.ref: passage.content.vector for passage in passages if passage.content.vector is not None}
        added = sorted(fresh)
        return VectorChanges(
            collection_uid=state.uid,
            revision=last,
            removed=tuple(ref for revision, ref in state.removed if after_revision < revision <= last),
            added=tuple(added),
            vectors=np.stack([fresh[ref] for ref in added]) if added else np.zeros((0, 0), dtype=np.float32),
            more=last < state.revision,
        )

    async def text_changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> TextChanges:
        """See the port."""
        self._require_open(deadline)
        state = self._state(collection)
        last, passages = _page(state, after_revision, limit)
        return TextChanges(
            collection_uid=state.uid,
            revision=last,
            removed=tuple(ref for revision, ref in state.removed if after_revision < revision <= last),
            added=tuple(
                PassageWords(
                    passage.ref, " ".join(passage.content.spans.words), " ".join(passage.content.further_terms)
                )
                for passage in passages
            ),
            more=last < state.revision,
        )

    @asynccontextmanager
    async def snapshot(
        self,
        collections: Sequence[str],
        *,
        principal: Principal,
        filter: MetadataFilter,
        consistency: Consistency,
        deadline: Deadline,
    ) -> AsyncGenerator[MemorySnapshot]:
        """See the port."""
        for required in consistency.min_revisions.values():
            await self._wait_for(required, deadline)
        self._require_open(deadline)
        names = list(dict.fromkeys(collections)) or sorted(self._states)
        yield MemorySnapshot([self._state(name) for name in names], principal, filter)

    async def watch(self, collection: str, *, after_revision: int) -> AsyncGenerator[CollectionRevision]:
        """See the port."""
        uid = ""
        while True:
            written = self._written
            current = self.state(collection)
            if self._closed:
                raise BackendUnavailable(_BACKEND)
            if current is None or current.uid != (uid or current.uid):
                raise CollectionNotFound(collection)
            uid = current.uid
            if current.revision > after_revision:
                after_revision = current.revision
                yield current.reached
            await written.wait()

    async def check(self, *, deadline: Deadline) -> None:
        """See the port."""
        self._require_open(deadline)

    async def close(self) -> None:
        """See the port."""
        self._closed = True
        self._states.clear()
        self._announce()

    def state(self, collection: str) -> CollectionState | None:
        """The newest state, for the text index, which searches the same documents; None where there is no such collection."""
        return self._states.get(collection)

    def _state(self, collection: str) -> CollectionState:
        state = self._states.get(collection)
        if state is None:
            raise CollectionNotFound(collection)
        return state

    def _require_open(self, deadline: Deadline) -> None:
        if self._closed:
            raise BackendUnavailable(_BACKEND)
        require_time(deadline)

    def _commit(self, state: CollectionState) -> None:
        self._states[state.name] = state
        self._announce()

    def _announce(self) -> None:
        """Wakes all that wait for a change."""
        self._written.set()
        self._written = asyncio.Event()

    async def _wait_for(self, required: CollectionRevision, deadline: Deadline) -> None:
        while True:
            current = self._state(required.collection)
            if required.collection_uid and current.uid != required.collection_uid:
                raise CollectionRecreated(required.collection, required.collection_uid, current.uid)
            if current.revision >= required.revision:
                return
            try:
                async with asyncio.timeout(deadline.shrink(reserve=_ANSWER_TIME).remaining()):
                    await self._written.wait()
            except TimeoutError:
                raise RevisionNotReached(required.collection, required.revision, current.revision) from None


def _written(
    state: CollectionState,
    write: DocumentWrite,
    embedding_model: str,
    refs: Iterator[PassageRef],
    *,
    revision: int,
    time: datetime,
) -> tuple[CollectionState, WriteResult]:
    """The state after one document, and what became of it."""
    document = write.document
    name, version = document.document_id, document.source_version
    stored, tombstone = state.documents.get(name), state.tombstones.get(name)
    passages = len(stored.passages) if stored is not None else 0
    written_at = stored.revision if stored is not None else revision - 1
    known = tombstone.source_version if tombstone is not None else None
    if stored is not None:
        known = stored.document.source_version
    if version is not None and known is not None and version < known:
        return state, WriteResult(name, Outcome.STALE, written_at, passages, known)
    if stored is not None and stored.document.content_hash == document.content_hash:
        if version is not None:
            state = state.with_source_version(name, version)
        held = known if version is None else version
        return state, WriteResult(name, Outcome.UNCHANGED, written_at, passages, held)
    if not write.passages:
        # Its writer saw it unchanged and left the passages out; meanwhile another one has changed it.
        raise WriteConflict(_BACKEND)
    if not state.has_room_for(document):
        return state, WriteResult(name, Outcome.REFUSED, written_at, passages, known)
    if not state.passages:
        state = replace(state, embedding_model=embedding_model)
    elif embedding_model != state.embedding_model:
        raise EmbeddingMismatch(state.name, state.embedding_model or "none", embedding_model or "none")
    outcome = Outcome.CREATED if stored is None else Outcome.UPDATED
    handles = list(itertools.islice(refs, len(write.passages)))
    state = state.with_document(write, handles, revision=revision, time=time)
    return state, WriteResult(name, outcome, revision, len(write.passages), version)


def _page(state: CollectionState, after_revision: int, limit: int) -> tuple[int, list[StoredPassage]]:
    """The revision that the next page of a derived index ends with, and the passages that it adds."""
    written = sorted(stored.revision for stored in state.documents.values() for _ in stored.passages)
    last = _page_end([revision for revision in written if revision > after_revision], limit, state.revision)
    return last, [
        passage
        for stored in state.documents.values()
        if after_revision < stored.revision <= last
        for passage in stored.passages
    ]


def _page_end(revisions: Sequence[int], limit: int, newest: int) -> int:
    """The revision that a page of rows with these revisions ends with: the last that fits whole, or the first, however large."""
    if len(revisions) <= limit:
        return newest
    return max((revision for revision in revisions[:limit] if revision < revisions[limit]), default=revisions[0])
