"""What one write transaction does. Runs in the writer's thread."""

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urldefrag

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.filters import PhraseFilter, TitleFilter
from loremesh_agents.adapters.graph.sqlite.audiences import AudienceChanges
from loremesh_agents.adapters.graph.sqlite.connection import BACKEND
from loremesh_agents.adapters.graph.sqlite.entities import EntityChanges
from loremesh_agents.adapters.graph.sqlite.rows import execute_rows
from loremesh_agents.adapters.graph.sqlite.schema import VECTOR_TABLES, create_full_text, full_text_table, next_id
from loremesh_agents.adapters.graph.sqlite.terms import TermChanges, TermIds
from loremesh_agents.domain.document import (
    CollectionOptions,
    DocumentWrite,
    Link,
    Outcome,
    PassageWrite,
    ReembeddingPhase,
    WriteResult,
)
from loremesh_agents.domain.errors import CollectionNotFound, EmbeddingMismatch, WriteConflict
from loremesh_agents.domain.revision import CollectionRevision

_FILTERED_COLLECTIONS = 4


@dataclass(frozen=True, slots=True)
class _Collection:
    id: int
    name: str
    uid: str
    revision: int
    embedding_model: str
    reader_statistics: int
    passage_count: int
    vector_slot: int
    other_model: str
    other_phase: str

    @property
    def other_written(self) -> bool:
        """Whether new passages get a vector of the other model."""
        return self.other_phase not in ("", ReembeddingPhase.DROPPING.value)


@dataclass(slots=True)
class _Totals:
    """By how much the collection's counts change."""

    documents: int = 0
    restricted: int = 0
    passages: int = 0
    terms: int = 0
    other_vectors: int = 0


@dataclass(frozen=True, slots=True)
class _Stored:
    """What is stored under a document's id; `row` is None where that is only a tombstone."""

    row: int | None
    content_hash: str
    source_version: int | None
    revision: int
    passage_count: int
    restricted: int
    audience: int


@dataclass(frozen=True, slots=True)
class _Filters:
    titles: TitleFilter
    phrases: PhraseFilter


class WriterMemory:
    """What a store's writer remembers from one transaction to the next, only to be faster."""

    def __init__(self) -> None:
        self.terms = TermIds()
        self._filters: dict[tuple[str, int], _Filters] = {}

    def filters(self, connection: sqlite3.Connection, collection: _Collection, next_passage: int) -> _Filters:
        """The filters of a collection in its present state; new ones where another process has changed it."""
        known = self._filters.pop((collection.uid, collection.revision), None)
        if known is not None and not known.titles.full:
            return known
        rows = connection.execute("SELECT key FROM entity WHERE collection = ? AND title_count > 0", (collection.id,))
        titles = TitleFilter([key for (key,) in rows.fetchall()])
        if known is not None:
            return _Filters(titles, known.phrases)
        return _Filters(titles, PhraseFilter(next_passage if collection.passage_count else 0))

    def committed(self, reached: CollectionRevision, filters: _Filters, terms: dict[str, int]) -> None:
        """Takes what a transaction leaves that is now in the store."""
        self.terms.remember(terms)
        self._filters[reached.collection_uid, reached.revision] = filters
        while len(self._filters) > _FILTERED_COLLECTIONS:
            del self._filters[next(iter(self._filters))]


class Writer:
    """One write transaction on one collection.

    Args:
        connection: Within the transaction.
        collection: The collection as it is.
        memory: Of the store.
    """

    def __init__(self, connection: sqlite3.Connection, collection: _Collection, memory: WriterMemory) -> None:
        self._connection = connection
        self._collection = collection
        self._memory = memory
        self._next_document = next_id(connection, "document")
        self._next_passage = next_id(connection, "passage")
        self._filters = memory.filters(connection, collection, self._next_passage)
        self._audiences = AudienceChanges(connection, collection.id, kept=bool(collection.reader_statistics))
        self._entities = EntityChanges(
            connection, collection.id, self._audiences, self._filters.titles, self._filters.phrases
        )
        self._terms = TermChanges(connection, collection.id, memory.terms)
        self._totals = _Totals()
        self._now = time.time()
        self._changed = False

    @property
    def reached(self) -> CollectionRevision:
        """The state of the collection after the transaction."""
        revision = self._collection.revision + self._changed
        return CollectionRevision(self._collection.name, self._collection.uid, revision)

    def committed(self) -> None:
        """To be called when the transaction is committed."""
        self._memory.committed(self.reached, self._filters, self._terms.learned)

    def write(self, documents: Sequence[DocumentWrite], embedding_model: str) -> tuple[WriteResult, ...]:
        """Writes documents in order."""
        results: list[WriteResult] = []
        for run in _without_repeats(documents):
            results += self._write(run, embedding_model)
        self._finish()
        return tuple(results)

    def delete(self, document_ids: Sequence[str]) -> int:
        """Deletes documents; gives how many there were."""
        stored = {
            document_id: found for document_id, found in self._stored(document_ids).items() if found.row is not None
        }
        for found in stored.values():
            self._audiences.leave(found.audience)
        self._remove(list(stored.values()))
        execute_rows(
            self._connection,
            "INSERT OR REPLACE INTO tombstone VALUES {rows}",
            [
                (self._collection.id, document_id, self._collection.revision + 1, found.source_version, self._now)
                for document_id, found in stored.items()
            ],
        )
        self._entities.settle()
        self._finish()
        return len(stored)

    def _write(self, documents: Sequence[DocumentWrite], embedding_model: str) -> list[WriteResult]:
        """Writes documents with different ids."""
        stored = self._stored([write.document.document_id for write in documents])
        results: list[WriteResult] = []
        replaced: list[_Stored] = []
        taken: list[DocumentWrite] = []
        for write in documents:
            found = stored.get(write.document.document_id)
            result = self._admit(self._judge(write, found), write, found)
            results.append(result)
            if result.outcome in (Outcome.CREATED, Outcome.UPDATED):
                taken.append(write)
                replaced += [found] if found is not None and found.row is not None else []
        if taken:
            self._check_embedding(embedding_model, taken)
            self._remove(replaced)
            self._insert(taken, embedding_model)
            self._entities.settle()
        return results

    def _admit(self, result: WriteResult, write: DocumentWrite, stored: _Stored | None) -> WriteResult:
        """The result, or that there is no room for the document's set of readers."""
        if result.outcome not in (Outcome.CREATED, Outcome.UPDATED):
            return result
        if self._audiences.take(write.document.readers, stored.audience if stored is not None else 0):
            return result
        exists = stored is not None and stored.row is not None
        revision = stored.revision if stored is not None and exists else self._collection.revision
        passages, known = (stored.passage_count, stored.source_version) if stored is not None else (0, None)
        return WriteResult(write.document.document_id, Outcome.REFUSED, revision, passages, known)

    def _stored(self, document_ids: Sequence[str]) -> dict[str, _Stored]:
        ids = json.dumps(list(document_ids))
        rows = self._connection.execute(
            "SELECT t.document_id, NULL, '', t.source_version, t.revision, 0, 0, 0 FROM json_each(?1) j CROSS JOIN tombstone t"
            " WHERE t.collection = ?2 AND t.document_id = j.value UNION ALL"
            " SELECT d.document_id, d.id, d.content_hash, d.source_version, d.revision, d.passage_count, d.restricted, d.audience"
            " FROM json_each(?1) j CROSS JOIN document d WHERE d.collection = ?2 AND d.document_id = j.value",
            (ids, self._collection.id),
        )
        return {document_id: _Stored(*columns) for document_id, *columns in rows.fetchall()}

    def _judge(self, write: DocumentWrite, stored: _Stored | None) -> WriteResult:
        """What becomes of a document."""
        document, version = write.document, write.document.source_version
        known = stored.source_version if stored is not None else None
        exists = stored is not None and stored.row is not None
        if stored is not None and version is not None and known is not None and version < known:
            revision = stored.revision if exists else self._collection.revision
            return WriteResult(document.document_id, Outcome.STALE, revision, stored.passage_count, known)
        if stored is not None and exists and stored.content_hash == document.content_hash:
            if version is not None and version != known:
                # Not a change that a reader can see; it only keeps older versions out.
                self._connection.execute("UPDATE document SET source_version = ? WHERE id = ?", (version, stored.row))
            held = known if version is None else version
            return WriteResult(document.document_id, Outcome.UNCHANGED, stored.revision, stored.passage_count, held)
        if not write.passages:
            # Its writer saw it unchanged and left the passages out; meanwhile another stream has changed it.
            raise WriteConflict(BACKEND)
        outcome = Outcome.UPDATED if exists else Outcome.CREATED
        return WriteResult(document.document_id, outcome, self._collection.revision + 1, len(write.passages), version)

    def _check_embedding(self, model: str, writes: Sequence[DocumentWrite]) -> None:
        """Settles of which model the vectors are that count; `model` is that of the writes' own vectors."""
        collection = self._collection
        if model == collection.embedding_model:
            return
        if not collection.passage_count and not self._totals.passages:
            # Nothing has a vector: neither those that count nor those of another model.
            self._connection.execute(
                "UPDATE collection SET embedding_model = ?, other_model = '', other_phase = '', other_count = 0 WHERE id = ?",
                (model, collection.id),
            )
            self._collection = _load(self._connection, collection.name) or collection
        elif not all(
            collection.embedding_model in passage.further_vectors for write in writes for passage in write.passages
        ):
            raise EmbeddingMismatch(collection.name, collection.embedding_model or "none", model or "none")

    def _insert(self, writes: Sequence[DocumentWrite], embedding_model: str) -> None:
        self._changed = True
        connection = self._connection
        rows = list(enumerate(writes, self._next_document))
        self._next_document += len(rows)
        connection.execute(
            "DELETE FROM tombstone WHERE collection = ? AND document_id IN (SELECT value FROM json_each(?))",
            (self._collection.id, json.dumps([write.document.document_id for write in writes])),
        )
        execute_rows(
            connection,
            "INSERT INTO document (id, collection, document_id, title, uri, source_version, content_hash, media_type,"
            " passage_count, restricted, audience, revision, update_time) VALUES {rows}",
            [self._document_row(row, write) for row, write in rows],
        )
        execute_rows(
            connection,
            "INSERT INTO document_reader VALUES {rows}",
            [(row, reader) for row, write in rows for reader in sorted(write.document.readers)],
        )
        execute_rows(
            connection,
            "INSERT INTO document_metadata VALUES {rows}",
            [(row, key, value) for row, write in rows for key, value in sorted(write.document.metadata.items())],
        )
        self._totals.documents += len(rows)
        self._totals.restricted += sum(bool(write.document.readers) for write in writes)
        audiences = {row: self._audiences.of(write.document.readers) for row, write in rows}
        refs = self._insert_passages([(row, passage) for row, write in rows for passage in write.passages], audiences)
        self._insert_vectors(refs, embedding_model)

    def _document_row(self, row: int, write: DocumentWrite) -> tuple[object, ...]:
        document = write.document
        return (
            row,
            self._collection.id,
            document.document_id,
            document.shown_title,
            document.uri,
            document.source_version,
            document.content_hash,
            document.media_type,
            len(write.passages),
            bool(document.readers),
            self._audiences.of(document.readers),
            self._collection.revision + 1,
            self._now,
        )

    def _insert_vectors(self, passages: Sequence[tuple[int, PassageWrite]], given_model: str) -> None:
        """Stores the vectors that count, and those of the other model as far as they were given."""
        collection = self._collection

        def of(passage: PassageWrite, model: str) -> NDArray[np.float32] | None:
            return passage.vector if model == given_model else passage.further_vectors.get(model)

        def insert(slot: int, model: str) -> int:
            found = [(ref, of(passage, model)) for ref, passage in passages]
            rows = [(ref, vector_bytes(vector)) for ref, vector in found if vector is not None]
            execute_rows(self._connection, f"INSERT INTO {VECTOR_TABLES[slot]} VALUES {{rows}}", rows)
            return len(rows)

        insert(collection.vector_slot, collection.embedding_model)
        if collection.other_written:
            given = insert(1 - collection.vector_slot, collection.other_model)
            self._totals.other_vectors += given
            if given < len(passages) and collection.other_phase == ReembeddingPhase.KEPT.value:
                self._connection.execute(
                    "UPDATE collection SET other_phase = ? WHERE id = ?",
                    (ReembeddingPhase.LAPSED.value, collection.id),
                )

    def _insert_passages(
        self, writes: Sequence[tuple[int, PassageWrite]], audiences: Mapping[int, int]
    ) -> list[tuple[int, PassageWrite]]:
        """Stores passages without their vectors; gives them with their ids."""
        connection = self._connection
        rows = [(ref, *write) for ref, write in enumerate(writes, self._next_passage)]
        self._next_passage += len(rows)
        terms = self._terms.insert([write for _, _, write in rows])
        self._audiences.insert(
            (ref, audiences[document], write.length, ids)
            for (ref, document, write), (ids, _) in zip(rows, terms, strict=True)
        )
        execute_rows(
            connection,
            "INSERT INTO passage (id, collection, document, ordinal, length, terms, counts) VALUES {rows}",
            [
                (ref, self._collection.id, document, write.passage.ordinal, write.length, ids, counts)
                for (ref, document, write), (ids, counts) in zip(rows, terms, strict=True)
            ],
        )
        searched = [(ref, *_searched(write)) for ref, _, write in rows]
        execute_rows(
            connection,
            "INSERT INTO passage_text VALUES {rows}",
            [
                (
                    ref,
                    json.dumps(write.passage.headings),
                    write.passage.text,
                    write.passage.start_byte,
                    write.passage.end_byte,
                    *columns,
                )
                for (ref, _, write), (_, *columns) in zip(rows, searched, strict=True)
            ],
        )
        table = full_text_table(self._collection.id)
        execute_rows(connection, f"INSERT INTO {table} (rowid, words, extra_terms, names) VALUES {{rows}}", searched)
        links = [(ref, *found) for ref, _, write in rows for found in {*map(_target, write.passage.links)}]
        execute_rows(
            connection,
            "INSERT INTO link (passage, collection, target, fragment) VALUES {rows}",
            [(ref, self._collection.id, target, fragment) for ref, target, fragment in links],
        )
        self._audiences.link([(ref, target) for ref, target, _ in links])
        self._entities.insert([(ref, write) for ref, _, write in rows])
        self._totals.passages += len(rows)
        self._totals.terms += sum(write.length for _, _, write in rows)
        return [(ref, write) for ref, _, write in rows]

    def _remove(self, stored: Sequence[_Stored]) -> None:
        if not stored:
            return
        self._changed = True
        connection = self._connection
        documents = json.dumps([found.row for found in stored])
        self._totals.documents -= len(stored)
        self._totals.restricted -= sum(found.restricted for found in stored)
        rows = connection.execute(
            "SELECT p.id, p.length, p.terms, t.words, t.extra_terms, t.names, p.document FROM json_each(?) j"
            " CROSS JOIN passage p ON p.document = j.value JOIN passage_text t ON t.passage = p.id ORDER BY p.id",
            (documents,),
        ).fetchall()
        refs = [row[0] for row in rows]
        self._totals.passages -= len(rows)
        self._totals.terms -= sum(row[1] for row in rows)
        self._terms.remove(row[2] for row in rows)
        audiences = {found.row: found.audience for found in stored}
        self._audiences.remove((row[0], audiences[row[6]], row[1], row[2]) for row in rows)
        self._entities.remove(refs)
        table = full_text_table(self._collection.id)
        execute_rows(
            connection,
            f"INSERT INTO {table} ({table}, rowid, words, extra_terms, names) VALUES {{rows}}",
            [("delete", row[0], *row[3:6]) for row in rows],
        )
        gone = json.dumps(refs)
        deleted = {
            name: connection.execute(
                f"DELETE FROM {name} WHERE passage IN (SELECT value FROM json_each(?))", (gone,)
            ).rowcount
            for name in (*VECTOR_TABLES, "link", "passage_text")
        }
        self._totals.other_vectors -= deleted[VECTOR_TABLES[1 - self._collection.vector_slot]]
        execute_rows(
            connection,
            "INSERT INTO removed_passage VALUES {rows}",
            [(self._collection.id, self._collection.revision + 1, ref) for ref in refs],
        )
        connection.execute("DELETE FROM passage WHERE id IN (SELECT value FROM json_each(?))", (gone,))
        for name in ("document_reader", "document_metadata"):
            connection.execute(f"DELETE FROM {name} WHERE document IN (SELECT value FROM json_each(?))", (documents,))
        connection.execute("DELETE FROM document WHERE id IN (SELECT value FROM json_each(?))", (documents,))

    def _finish(self) -> None:
        """Stores the statistics and the revision."""
        if not self._changed:
            return
        self._terms.store()
        self._audiences.store()
        totals = self._totals
        self._connection.execute(
            "UPDATE collection SET revision = ?, document_count = document_count + ?, restricted_count = restricted_count + ?,"
            " passage_count = passage_count + ?, entity_count = entity_count + ?, term_total = term_total + ?,"
            " other_count = other_count + ?, update_time = ? WHERE id = ?",
            (
                self._collection.revision + 1,
                totals.documents,
                totals.restricted,
                totals.passages,
                self._entities.added,
                totals.terms,
                totals.other_vectors,
                self._now,
                self._collection.id,
            ),
        )


def _without_repeats(documents: Sequence[DocumentWrite]) -> Iterator[Sequence[DocumentWrite]]:
    """The documents in order, in runs of different ids."""
    start = 0
    seen: set[str] = set()
    for place, write in enumerate(documents):
        if write.document.document_id in seen:
            yield documents[start:place]
            start = place
            seen.clear()
        seen.add(write.document.document_id)
    if start < len(documents):
        yield documents[start:]


def _target(link: Link) -> tuple[str, str]:
    """The address that a link leads to, and its fragment."""
    address, fragment = urldefrag(link.target)
    return address, fragment


def _searched(write: PassageWrite) -> tuple[str, str, str]:
    """What the full-text table holds of a passage: its words, further search terms, words that single-word titles match."""
    return " ".join(write.spans.words), " ".join(write.further_terms), " ".join(write.spans.names)


def vector_bytes(vector: NDArray[np.float32]) -> bytes:
    """A vector as it is stored: little-endian float32."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def _load(connection: sqlite3.Connection, name: str) -> _Collection | None:
    row = connection.execute(
        "SELECT id, name, uid, revision, embedding_model, reader_statistics, passage_count, vector_slot, other_model, other_phase"
        " FROM collection WHERE name = ?",
        (name,),
    ).fetchone()
    return None if row is None else _Collection(*row)


def open_collection(
    connection: sqlite3.Connection, name: str, memory: WriterMemory, *, create: CollectionOptions | None = None
) -> Writer:
    """A writer of a collection.

    Args:
        connection: Within the transaction.
        name: Name of the collection.
        memory: Of the store.
        create: With which options to make it where it is not there; those of one that is there must be the same. None: it must be there.

    Raises:
        CollectionNotFound: It is not there, and is not to be made.
        CollectionOptionsMismatch: It has other options.
    """
    collection = _load(connection, name)
    if collection is not None and create is not None:
        CollectionOptions(bool(collection.reader_statistics)).require(name, create)
    if collection is None and create is not None:
        now = time.time()
        connection.execute(
            "INSERT INTO collection (name, uid, reader_statistics, create_time, update_time) VALUES (?, ?, ?, ?, ?)",
            (name, uuid.uuid4().hex, bool(create.reader_statistics), now, now),
        )
        collection = _load(connection, name)
        if collection is not None:
            create_full_text(connection, collection.id)
    if collection is None:
        raise CollectionNotFound(name)
    return Writer(connection, collection, memory)


def delete_collection(connection: sqlite3.Connection, name: str) -> bool:
    """Deletes a collection; gives whether it was there."""
    collection = _load(connection, name)
    if collection is None:
        return False
    by_passage = "(SELECT id FROM passage WHERE collection = ?)"
    by_document = "(SELECT id FROM document WHERE collection = ?)"
    for table in ("passage_text", *VECTOR_TABLES, "mention", "title"):
        connection.execute(f"DELETE FROM {table} WHERE passage IN {by_passage}", (collection.id,))
    for table in ("document_reader", "document_metadata"):
        connection.execute(f"DELETE FROM {table} WHERE document IN {by_document}", (collection.id,))
    by_entity = "(SELECT id FROM entity WHERE collection = ?)"
    connection.execute(f"DELETE FROM audience_entity WHERE entity IN {by_entity}", (collection.id,))
    for table in ("audience", "audience_term", "audience_link"):
        connection.execute(f"DELETE FROM {table} WHERE collection = ?", (collection.id,))
    for table in ("link", "passage", "document", "tombstone", "removed_passage", "term_statistics", "entity"):
        connection.execute(f"DELETE FROM {table} WHERE collection = ?", (collection.id,))
    connection.execute(f"DROP TABLE {full_text_table(collection.id)}")
    connection.execute("DELETE FROM collection WHERE id = ?", (collection.id,))
    return True
