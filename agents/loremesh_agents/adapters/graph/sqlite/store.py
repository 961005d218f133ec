"""The graph store over one SQLite database."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loremesh_agents.adapters.graph.sqlite.collections import (
    COLLECTION_COLUMNS,
    collection_of,
    read_collection,
    time_of,
    vector_table,
)
from loremesh_agents.adapters.graph.sqlite.connection import Connections
from loremesh_agents.adapters.graph.sqlite.features import CurrentVectors, FeatureCache
from loremesh_agents.adapters.graph.sqlite.snapshot import PASSAGE_COLUMNS, SqliteSnapshot, Visibility, passages_of
from loremesh_agents.adapters.graph.sqlite.statistics import Statistics
from loremesh_agents.adapters.graph.sqlite.writer import Writer, WriterMemory, delete_collection, open_collection
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
    BudgetExhausted,
    CollectionNotFound,
    CollectionRecreated,
    DocumentNotFound,
    RevisionNotReached,
)
from loremesh_agents.domain.filter import EVERYTHING, MetadataFilter
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.ports.graph import PassageWords, TextChanges, VectorChanges

_POLL_INTERVAL = 0.02
_WATCH_DEADLINE = 10.0
_MOST_COLLECTIONS = 16
_SHORT_READS = 2

_SUMMARY = (
    "SELECT d.document_id, d.title, d.uri, d.source_version, d.content_hash, d.media_type, d.passage_count, d.revision,"
    " d.update_time, d.id FROM document d"
)


@dataclass(frozen=True, slots=True)
class _PassagePage:
    """What a derived index must apply next, as rows of the database."""

    newest: CollectionRevision
    last: int
    rows: Sequence[tuple[Any, ...]]
    removed: tuple[PassageRef, ...]


class SqliteGraphStore:
    """See `ports.graph.GraphStore`.

    Args:
        path: The database file.
        snapshots: Snapshots that are open at once.
    """

    def __init__(self, path: Path, *, snapshots: int = 6) -> None:
        # A snapshot keeps its connection while its caller makes short reads besides: these must never wait for snapshots.
        self._snapshots = asyncio.Semaphore(snapshots)
        self._connections = Connections(path, snapshots + _SHORT_READS)
        self._memory = WriterMemory()
        self._features = FeatureCache()

    @property
    def connections(self) -> Connections:
        """For the text index and the sets of vectors, which live in the same file."""
        return self._connections

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

        def work(connection: sqlite3.Connection) -> tuple[Writer, tuple[WriteResult, ...]]:
            writer = open_collection(connection, collection, self._memory, create=options)
            return writer, writer.write(documents, embedding_model)

        writer, results = await self._connections.write(work, deadline)
        writer.committed()
        return writer.reached, results

    async def delete_documents(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> tuple[CollectionRevision, int]:
        """See the port."""

        def work(connection: sqlite3.Connection) -> tuple[Writer, int]:
            writer = open_collection(connection, collection, self._memory)
            return writer, writer.delete(document_ids)

        writer, deleted = await self._connections.write(work, deadline)
        writer.committed()
        return writer.reached, deleted

    async def delete_collection(self, collection: str, *, deadline: Deadline) -> bool:
        """See the port."""
        return await self._connections.write(lambda connection: delete_collection(connection, collection), deadline)

    async def collections(self, *, after: str, limit: int, deadline: Deadline) -> tuple[Collection, ...]:
        """See the port."""

        def work(connection: sqlite3.Connection) -> tuple[Collection, ...]:
            rows = connection.execute(f"{COLLECTION_COLUMNS} WHERE name > ? ORDER BY name LIMIT ?", (after, limit))
            return tuple(collection_of(row) for row in rows.fetchall())

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    async def collection(self, name: str, *, deadline: Deadline) -> Collection:
        """See the port."""

        def work(connection: sqlite3.Connection) -> Collection:
            return read_collection(connection, name)

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    async def vectors(self, collection: str, *, deadline: Deadline) -> CollectionVectors:
        """See the port."""
        found = await self.collection(collection, deadline=deadline)
        reached = CollectionRevision(collection, found.collection_uid, found.revision)
        return CollectionVectors(reached, found.embedding_model, found.passage_count, found.reembedding)

    async def revision(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See the port."""
        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, lambda opened: _resolve(opened, collection)[1], deadline)

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

        def work(
            connection: sqlite3.Connection,
        ) -> tuple[CollectionRevision, DocumentSummary, tuple[Passage, ...]]:
            connection.execute("BEGIN")
            try:
                row_id, revision = _resolve(connection, collection)
                visible = Visibility.of(principal, EVERYTHING, restricted=True)
                row = connection.execute(
                    f"{_SUMMARY} WHERE d.collection = ? AND d.document_id = ? AND {visible.condition}",
                    (row_id, document_id, *visible.parameters),
                ).fetchone()
                if row is None:
                    raise DocumentNotFound(collection, document_id)
                passages = connection.execute(
                    f"{PASSAGE_COLUMNS} WHERE p.document = ? AND p.ordinal >= ? ORDER BY p.ordinal LIMIT ?",
                    (row[9], first_passage, passage_limit),
                ).fetchall()
                found = passages_of(connection, passages)
                return revision, _summary_of(connection, row), found
            finally:
                connection.execute("ROLLBACK")

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    async def content_hashes(
        self, collection: str, document_ids: Sequence[str], *, deadline: Deadline
    ) -> Mapping[str, tuple[str, int | None]]:
        """See the port."""

        def work(connection: sqlite3.Connection) -> dict[str, tuple[str, int | None]]:
            rows = connection.execute(
                "SELECT d.document_id, d.content_hash, d.source_version FROM document d JOIN collection c ON c.id = d.collection"
                " WHERE c.name = ? AND d.document_id IN (SELECT value FROM json_each(?))",
                (collection, json.dumps(list(document_ids))),
            )
            return {document_id: (content_hash, version) for document_id, content_hash, version in rows.fetchall()}

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    async def changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> tuple[CollectionRevision, tuple[Change, ...]]:
        """See the port."""

        def work(connection: sqlite3.Connection) -> tuple[CollectionRevision, tuple[Change, ...]]:
            connection.execute("BEGIN")
            try:
                row_id, newest = _resolve(connection, collection)
                revisions = connection.execute(
                    "SELECT revision FROM (SELECT revision FROM document WHERE collection = ?1 AND revision > ?2 UNION ALL"
                    " SELECT revision FROM tombstone WHERE collection = ?1 AND revision > ?2) ORDER BY revision LIMIT ?3",
                    (row_id, after_revision, limit + 1),
                ).fetchall()
                last = newest.revision
                if len(revisions) > limit:
                    last = _whole_revision([revision for (revision,) in revisions])
                written = connection.execute(
                    f"{_SUMMARY} WHERE d.collection = ? AND d.revision > ? AND d.revision <= ?",
                    (row_id, after_revision, last),
                ).fetchall()
                found = [Change(row[0], row[7], time_of(row[8]), _summary_of(connection, row)) for row in written]
                deleted = connection.execute(
                    "SELECT document_id, revision, time FROM tombstone WHERE collection = ? AND revision > ? AND revision <= ?",
                    (row_id, after_revision, last),
                ).fetchall()
                found += [Change(document_id, revision, time_of(at), None) for document_id, revision, at in deleted]
                found.sort(key=lambda change: (change.revision, change.document_id))
                return CollectionRevision(collection, newest.collection_uid, last), tuple(found)
            finally:
                connection.execute("ROLLBACK")

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    async def vector_changes(
        self, collection: str, *, model: str | None = None, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        """See the port."""

        def selection(connection: sqlite3.Connection) -> str:
            table = vector_table(connection, collection, model)
            return (
                "SELECT p.id, v.vector FROM document d JOIN passage p ON p.document = d.id"
                f" JOIN {table} v ON v.passage = p.id"
            )

        page = await self._passage_page(
            collection,
            selection,
            after_revision=after_revision,
            limit=limit,
            deadline=deadline,
        )
        vectors = np.zeros((0, 0), dtype=np.float32)
        if page.rows:
            joined = np.frombuffer(b"".join(vector for _, vector in page.rows), dtype="<f4")
            vectors = joined.reshape(len(page.rows), -1).astype(np.float32)
        return VectorChanges(
            collection_uid=page.newest.collection_uid,
            revision=page.last,
            removed=page.removed,
            added=tuple(PassageRef(ref) for ref, _ in page.rows),
            vectors=vectors,
            more=page.last < page.newest.revision,
        )

    async def text_changes(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> TextChanges:
        """See the port."""
        page = await self._passage_page(
            collection,
            lambda _: (
                "SELECT p.id, t.words, t.extra_terms FROM document d JOIN passage p ON p.document = d.id"
                " JOIN passage_text t ON t.passage = p.id"
            ),
            after_revision=after_revision,
            limit=limit,
            deadline=deadline,
        )
        return TextChanges(
            collection_uid=page.newest.collection_uid,
            revision=page.last,
            removed=page.removed,
            added=tuple(PassageWords(PassageRef(ref), words, further) for ref, words, further in page.rows),
            more=page.last < page.newest.revision,
        )

    async def _passage_page(
        self,
        collection: str,
        selection: Callable[[sqlite3.Connection], str],
        *,
        after_revision: int,
        limit: int,
        deadline: Deadline,
    ) -> "_PassagePage":
        """The next page of a derived index: what `selection` gives of the passages added, and those removed."""

        def work(connection: sqlite3.Connection) -> _PassagePage:
            connection.execute("BEGIN")
            try:
                row_id, newest = _resolve(connection, collection)
                revisions = connection.execute(
                    "SELECT d.revision FROM document d JOIN passage p ON p.document = d.id"
                    " WHERE d.collection = ? AND d.revision > ? ORDER BY d.revision LIMIT ?",
                    (row_id, after_revision, limit + 1),
                ).fetchall()
                last = newest.revision
                if len(revisions) > limit:
                    last = _whole_revision([revision for (revision,) in revisions])
                rows = connection.execute(
                    f"{selection(connection)} WHERE d.collection = ? AND d.revision > ? AND d.revision <= ? ORDER BY p.id",
                    (row_id, after_revision, last),
                ).fetchall()
                removed = connection.execute(
                    "SELECT passage FROM removed_passage WHERE collection = ? AND revision > ? AND revision <= ?",
                    (row_id, after_revision, last),
                ).fetchall()
            finally:
                connection.execute("ROLLBACK")
            return _PassagePage(newest, last, rows, tuple(PassageRef(ref) for (ref,) in removed))

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    @asynccontextmanager
    async def snapshot(
        self,
        collections: Sequence[str],
        *,
        principal: Principal,
        filter: MetadataFilter,
        consistency: Consistency,
        deadline: Deadline,
    ) -> AsyncGenerator[SqliteSnapshot]:
        """See the port."""
        for required in consistency.min_revisions.values():
            await self._wait_for(required, deadline)

        def begin(
            connection: sqlite3.Connection,
        ) -> tuple[dict[int, CollectionRevision], dict[int, CurrentVectors], Visibility, Statistics]:
            connection.execute("BEGIN")
            names = list(collections) or [
                name
                for (name,) in connection.execute(
                    "SELECT name FROM collection ORDER BY name LIMIT ?", (_MOST_COLLECTIONS,)
                )
            ]
            found = dict(_resolve(connection, name) for name in names)
            restricted, divided = connection.execute(
                "SELECT coalesce(sum(restricted_count), 0), total(restricted_count * reader_statistics) FROM collection WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(found)),),
            ).fetchone()
            rows = connection.execute(
                "SELECT id, name, embedding_model, vector_slot FROM collection WHERE id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(found)),),
            )
            vectors = {row[0]: CurrentVectors(*row[1:]) for row in rows.fetchall()}
            visibility = Visibility.of(principal, filter, restricted=restricted > 0)
            statistics = Statistics.of(connection, found, principal) if divided else Statistics(found)
            return found, vectors, visibility, statistics

        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._snapshots.acquire()
        except TimeoutError:
            raise BudgetExhausted("graph store", "waiting for a snapshot") from None
        try:
            async with self._connections.reader(deadline) as connection:
                found, vectors, visibility, statistics = await self._connections.read(connection, begin, deadline)
                yield SqliteSnapshot(
                    self._connections,
                    connection,
                    found,
                    vectors,
                    visibility=visibility,
                    statistics=statistics,
                    cache=self._features,
                )
        finally:
            self._snapshots.release()

    async def _wait_for(self, required: CollectionRevision, deadline: Deadline) -> None:
        while True:
            try:
                current = await self.revision(required.collection, deadline=deadline)
            except BudgetExhausted:
                raise RevisionNotReached(required.collection, required.revision, 0) from None
            if required.collection_uid and current.collection_uid != required.collection_uid:
                raise CollectionRecreated(required.collection, required.collection_uid, current.collection_uid)
            if current.revision >= required.revision:
                return
            left = deadline.remaining()
            # The last check leaves time for the answer that it was in vain.
            if left <= 2 * _POLL_INTERVAL:
                raise RevisionNotReached(required.collection, required.revision, current.revision)
            await asyncio.sleep(min(_POLL_INTERVAL, left))

    async def watch(self, collection: str, *, after_revision: int) -> AsyncGenerator[CollectionRevision]:
        """See the port."""
        seen = after_revision
        uid = ""
        while True:
            current = await self.revision(collection, deadline=Deadline.after(_WATCH_DEADLINE))
            if uid and current.collection_uid != uid:
                raise CollectionNotFound(collection)
            uid = current.collection_uid
            if current.revision > seen:
                seen = current.revision
                yield current
            await asyncio.sleep(_POLL_INTERVAL)

    async def check(self, *, deadline: Deadline) -> None:
        """See the port."""
        async with self._connections.reader(deadline) as connection:
            await self._connections.read(
                connection, lambda opened: opened.execute("SELECT count(*) FROM collection").fetchone(), deadline
            )

    async def close(self) -> None:
        """See the port."""
        await self._connections.close()


def _resolve(connection: sqlite3.Connection, name: str) -> tuple[int, CollectionRevision]:
    row = connection.execute("SELECT id, uid, revision FROM collection WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise CollectionNotFound(name)
    return row[0], CollectionRevision(name, row[1], row[2])


def _whole_revision(revisions: Sequence[int]) -> int:
    """The last revision that is whole among the first ones in order; the first one even where it is cut."""
    complete = [revision for revision in revisions if revision < revisions[-1]]
    return complete[-1] if complete else revisions[0]


def _summary_of(connection: sqlite3.Connection, row: Sequence[Any]) -> DocumentSummary:
    document_id, title, uri, version, content_hash, media_type, passages, revision, at, row_id = row
    readers = connection.execute("SELECT reader FROM document_reader WHERE document = ?", (row_id,)).fetchall()
    metadata = connection.execute("SELECT key, value FROM document_metadata WHERE document = ?", (row_id,)).fetchall()
    return DocumentSummary(
        document_id=document_id,
        title=title,
        uri=uri,
        source_version=version,
        metadata=dict(metadata),
        readers=frozenset(reader for (reader,) in readers),
        content_hash=content_hash,
        media_type=media_type,
        passage_count=passages,
        revision=revision,
        update_time=time_of(at),
    )
