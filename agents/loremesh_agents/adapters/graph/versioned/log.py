"""Reading the log of a collection's changes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loremesh_agents.adapters.graph.versioned.cells import View, newest, writer_of
from loremesh_agents.adapters.graph.versioned.engine import Access, GraphEngine, PassageRow, Value
from loremesh_agents.adapters.graph.versioned.identifiers import (
    change_id,
    document_vertex,
    first_ref,
    refs_of,
    version_of,
)
from loremesh_agents.adapters.graph.versioned.states import ChangeRecord, CollectionState, DocumentState, moment
from loremesh_agents.adapters.graph.versioned.texts import Body
from loremesh_agents.adapters.graph.versioned.vectors import read_with_vectors
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Change
from loremesh_agents.domain.graph_schema import VertexLabel
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import PassageWords, TextChanges, VectorChanges

_CHANGES_AT_ONCE = 64
_DOCUMENTS_AT_ONCE = 1000
_PASSAGES_AT_ONCE = 1000


async def read_documents(
    engine: GraphEngine, view: View, uid: str, document_ids: Sequence[str], deadline: Deadline
) -> dict[str, DocumentState]:
    """The states of documents, deleted ones among them, by id."""
    names = {document_vertex(uid, name): name for name in document_ids}
    vertices = list(names)
    found: dict[str, DocumentState] = {}
    for start in range(0, len(vertices), _DOCUMENTS_AT_ONCE):
        wanted = {VertexLabel.DOCUMENT: vertices[start : start + _DOCUMENTS_AT_ONCE]}
        records = await engine.records(wanted, fields={"states"}, deadline=deadline)
        for vertex, record in records.items():
            text = newest(record.sets.get("states", ()), view)
            if text is not None:
                found[names[vertex]] = DocumentState.decoded(text)
    return found


class ChangeLog:
    """The changes of a collection, up to one of its states.

    Args:
        engine: Where they are.
        view: What counts.
        collection: The state.
    """

    def __init__(self, engine: GraphEngine, view: View, collection: CollectionState) -> None:
        self._engine = engine
        self._view = view
        self._collection = collection

    async def changes(
        self, after_revision: int, limit: int, deadline: Deadline
    ) -> tuple[CollectionRevision, tuple[Change, ...]]:
        """See `ports.graph.GraphStore.changes`."""
        found: list[DocumentState] = []
        revision = after_revision
        while revision < self._collection.revision and len(found) <= limit:
            revision, _, states = await self._page(revision, deadline)
            found += states
        found.sort(key=lambda state: (state.revision, state.document_id))
        last = _page_end([state.revision for state in found], limit, self._collection.revision)
        page = tuple(
            Change(state.document_id, state.revision, moment(state.time), None if state.deleted else state.summary)
            for state in found
            if state.revision <= last
        )
        return replace(self._collection.reached, revision=last), page

    async def vector_changes(
        self, vector_set: int, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        """See `ports.graph.GraphStore.vector_changes`.

        Args:
            vector_set: Number of the set.
            after_revision: As there.
            limit: As there.
            deadline: As there.
        """
        last, removed, refs = await self._passages(after_revision, limit, deadline)
        added = await self._vectors(refs, vector_set, deadline)
        ordered = sorted(added)
        vectors = np.zeros((0, 0), dtype=np.float32)
        if ordered:
            joined = np.frombuffer(b"".join(added[ref] for ref in ordered), dtype="<f4")
            vectors = joined.reshape(len(ordered), -1).astype(np.float32)
        return VectorChanges(
            collection_uid=self._collection.uid,
            revision=last,
            removed=removed,
            added=tuple(ordered),
            vectors=vectors,
            more=last < self._collection.revision,
        )

    async def text_changes(self, after_revision: int, limit: int, deadline: Deadline) -> TextChanges:
        """See `ports.graph.GraphStore.text_changes`."""
        last, removed, refs = await self._passages(after_revision, limit, deadline)
        rows = await self._read(refs, "words", "further_words", deadline=deadline)
        return TextChanges(
            collection_uid=self._collection.uid,
            revision=last,
            removed=removed,
            added=tuple(
                PassageWords(ref, str(words or ""), str(further or "")) for ref, (words, further) in rows.items()
            ),
            more=last < self._collection.revision,
        )

    async def _passages(
        self, after_revision: int, limit: int, deadline: Deadline
    ) -> tuple[int, tuple[PassageRef, ...], list[PassageRef]]:
        """The next page of a derived index: the revision that it leads to, passages removed, and passages added."""
        written: list[DocumentState] = []
        removed: list[tuple[int, PassageRef]] = []
        revision, passages = after_revision, 0
        while revision < self._collection.revision and passages <= limit:
            revision, records, states = await self._page(revision, deadline)
            present = [state for state in states if not state.deleted]
            written += present
            passages += sum(state.passages for state in present)
            removed += [
                (at, ref) for at, record in records.items() for span in record.removed for ref in refs_of(*span)
            ]
        rows = sorted(state.revision for state in written for _ in range(state.passages))
        last = _page_end(rows, limit, self._collection.revision)
        refs = [ref for state in written if state.revision <= last for ref in refs_of(state.first_ref, state.passages)]
        return last, tuple(ref for at, ref in removed if at <= last), refs

    async def _page(self, after: int, deadline: Deadline) -> tuple[int, dict[int, ChangeRecord], list[DocumentState]]:
        """Some further revisions: the last of them, what each changed, and the documents whose newest change is among them."""
        last = min(after + _CHANGES_AT_ONCE, self._collection.revision)
        ids = {change_id(self._collection.uid, revision): revision for revision in range(after + 1, last + 1)}
        records = await self._engine.records({VertexLabel.CHANGE: list(ids)}, deadline=deadline)
        changes: dict[int, ChangeRecord] = {}
        for vertex, record in records.items():
            text = newest(record.sets.get("changes", ()), self._view)
            if text is not None:
                changes[ids[vertex]] = ChangeRecord.decoded(text)
        names = sorted({name for change in changes.values() for name in change.documents})
        states = await read_documents(self._engine, self._view, self._collection.uid, names, deadline)
        return last, changes, [state for state in states.values() if after < state.revision <= last]

    async def passages_after(self, ref: int, limit: int, deadline: Deadline) -> list[PassageRef]:
        """Handles of passages that are there, in order: some of those after one, fewer than the limit only where there are no more."""
        found: list[PassageRef] = []
        revision = await self._revision_before(version_of(ref), deadline)
        while revision < self._collection.revision and len(found) < limit:
            revision, _, states = await self._page(revision, deadline)
            refs = [each for state in states if not state.deleted for each in refs_of(state.first_ref, state.passages)]
            found += sorted(each for each in refs if each > ref)
        return found[:limit]

    async def texts(self, refs: Sequence[PassageRef], deadline: Deadline) -> dict[PassageRef, str]:
        """What an encoder is given of passages."""
        rows = await self._read(refs, "body", deadline=deadline)
        bodies = {ref: Body.decoded(str(body)) for ref, (body,) in rows.items()}
        return {
            # A document without a title is shown by its id, which is not embedded.
            ref: full_text("" if body.title == body.document_id else body.title, body.headings, body.text)
            for ref, body in bodies.items()
        }

    async def _revision_before(self, version: int, deadline: Deadline) -> int:
        """A revision before which all were written by versions below this one, though not the last such one if that is not known."""
        below, above = 0, self._collection.revision + 1
        while above - below > _CHANGES_AT_ONCE:
            middle = (below + above) // 2
            wanted = {VertexLabel.CHANGE: [change_id(self._collection.uid, middle)]}
            records = await self._engine.records(wanted, deadline=deadline)
            stamps = [writer_of(value) for record in records.values() for value in record.sets.get("changes", ())]
            written = max((stamp for stamp in stamps if self._view.counts(stamp)), default=None)
            if written is None:
                break
            below, above = (middle, above) if written < version else (below, middle)
        return below

    async def _vectors(
        self, refs: Sequence[PassageRef], vector_set: int, deadline: Deadline
    ) -> dict[PassageRef, bytes]:
        """Vectors of a set, of those of the passages that are there and have one."""
        access = Access((self._collection.uid,), first_ref(self._view.version + 1))
        found: dict[PassageRef, bytes] = {}
        for start in range(0, len(refs), _PASSAGES_AT_ONCE):
            group = refs[start : start + _PASSAGES_AT_ONCE]

            async def read(fields: tuple[str, ...], group: Sequence[int] = group) -> Sequence[PassageRow]:
                return await self._engine.passages(group, access, fields=fields, deadline=deadline)

            _, vectors = await read_with_vectors(self._engine, group, {self._collection: vector_set}, read, deadline)
            found.update((PassageRef(ref), vector) for ref, vector in vectors.items() if vector)
        return found

    async def _read(
        self, refs: Sequence[PassageRef], *properties: str, deadline: Deadline
    ) -> dict[PassageRef, tuple[Value | None, ...]]:
        """Properties of those of the passages that are there."""
        access = Access((self._collection.uid,), first_ref(self._view.version + 1))
        found: dict[PassageRef, tuple[Value | None, ...]] = {}
        for start in range(0, len(refs), _PASSAGES_AT_ONCE):
            group = refs[start : start + _PASSAGES_AT_ONCE]
            rows = await self._engine.passages(group, access, fields=set(properties), deadline=deadline)
            for row in rows:
                found[PassageRef(row.ref)] = tuple(row.properties.get(name) for name in properties)
        return found


def _page_end(revisions: Sequence[int], limit: int, newest_revision: int) -> int:
    """The revision that a page of rows with these revisions ends with: the last that fits whole, or the first, however large."""
    if len(revisions) <= limit:
        return newest_revision
    return max((revision for revision in revisions[:limit] if revision < revisions[limit]), default=revisions[0])
