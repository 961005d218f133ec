"""What one write transaction does. Runs in the writer's thread."""

import json
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urldefrag

import numpy as np

from loremesh_agents.adapters.graph.sqlite.connection import BACKEND
from loremesh_agents.adapters.graph.sqlite.schema import CAPITALISED, TITLED, create_full_text, full_text_table
from loremesh_agents.domain.document import DocumentWrite, Outcome, PassageWrite, TextSpans, WriteResult
from loremesh_agents.domain.errors import CollectionNotFound, EmbeddingMismatch, WriteConflict
from loremesh_agents.domain.mentions import is_matchable, occurs, text_spans, title_candidates
from loremesh_agents.domain.revision import CollectionRevision


@dataclass(frozen=True, slots=True)
class _Collection:
    id: int
    name: str
    uid: str
    revision: int
    embedding_model: str
    passage_count: int


@dataclass(slots=True)
class _Totals:
    """By how much the collection's counts change."""

    documents: int = 0
    restricted: int = 0
    passages: int = 0
    entities: int = 0
    terms: int = 0


@dataclass(slots=True)
class Writer:
    """One write transaction on one collection."""

    connection: sqlite3.Connection
    collection: _Collection
    now: float = field(default_factory=time.time)
    totals: _Totals = field(default_factory=_Totals)
    term_changes: Counter[int] = field(default_factory=Counter[int])
    inserted: dict[int, TextSpans] = field(default_factory=dict[int, TextSpans])
    entity_ids: dict[str, int] = field(default_factory=dict[str, int])
    term_ids: dict[str, int] = field(default_factory=dict[str, int])
    mention_changes: Counter[int] = field(default_factory=Counter[int])
    title_changes: Counter[int] = field(default_factory=Counter[int])
    changed: bool = False

    @property
    def next_revision(self) -> int:
        """The revision that this transaction makes."""
        return self.collection.revision + 1

    def write(self, documents: Sequence[DocumentWrite], embedding_model: str) -> tuple[WriteResult, ...]:
        """Writes documents in order."""
        results = [self._write(document, embedding_model) for document in documents]
        self._finish()
        return tuple(results)

    def delete(self, document_ids: Iterable[str]) -> int:
        """Deletes documents; gives how many there were."""
        deleted = 0
        for document_id in document_ids:
            row = self.connection.execute(
                "SELECT id, source_version FROM document WHERE collection = ? AND document_id = ?",
                (self.collection.id, document_id),
            ).fetchone()
            if row is None:
                continue
            self._remove(row[0])
            self.connection.execute(
                "INSERT OR REPLACE INTO tombstone VALUES (?, ?, ?, ?, ?)",
                (self.collection.id, document_id, self.next_revision, row[1], self.now),
            )
            deleted += 1
        self._finish()
        return deleted

    def _write(self, write: DocumentWrite, embedding_model: str) -> WriteResult:
        document = write.document
        stored = self.connection.execute(
            "SELECT id, content_hash, source_version, revision, passage_count FROM document"
            " WHERE collection = ? AND document_id = ?",
            (self.collection.id, document.document_id),
        ).fetchone()
        known = stored[2] if stored else None
        if stored is None:
            row = self.connection.execute(
                "SELECT source_version FROM tombstone WHERE collection = ? AND document_id = ?",
                (self.collection.id, document.document_id),
            ).fetchone()
            known = row[0] if row else None
        version = document.source_version
        if version is not None and known is not None and version < known:
            revision, count = (stored[3], stored[4]) if stored else (self.collection.revision, 0)
            return WriteResult(document.document_id, Outcome.STALE, revision, count, known)
        if stored is not None and stored[1] == document.content_hash:
            if version is not None and version != known:
                # Not a change that a reader can see; it only keeps older versions out.
                self.connection.execute("UPDATE document SET source_version = ? WHERE id = ?", (version, stored[0]))
            held = known if version is None else version
            return WriteResult(document.document_id, Outcome.UNCHANGED, stored[3], stored[4], held)
        if not write.passages:
            # Its writer saw it unchanged and left the passages out; meanwhile another stream has changed it.
            raise WriteConflict(BACKEND)
        self._check_embedding(embedding_model)
        if stored is not None:
            self._remove(stored[0])
        else:
            self.connection.execute(
                "DELETE FROM tombstone WHERE collection = ? AND document_id = ?",
                (self.collection.id, document.document_id),
            )
        self._insert(write)
        outcome = Outcome.CREATED if stored is None else Outcome.UPDATED
        return WriteResult(document.document_id, outcome, self.next_revision, len(write.passages), version)

    def _check_embedding(self, model: str) -> None:
        if not self.collection.passage_count and not self.totals.passages:
            self.connection.execute(
                "UPDATE collection SET embedding_model = ? WHERE id = ?", (model, self.collection.id)
            )
            self.collection = _load(self.connection, self.collection.name) or self.collection
        elif model != self.collection.embedding_model:
            raise EmbeddingMismatch(self.collection.name, self.collection.embedding_model or "none", model or "none")

    def _insert(self, write: DocumentWrite) -> None:
        document = write.document
        self.changed = True
        self.totals.documents += 1
        self.totals.restricted += bool(document.readers)
        cursor = self.connection.execute(
            "INSERT INTO document (collection, document_id, title, uri, source_version, content_hash, media_type,"
            " passage_count, restricted, revision, update_time) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.collection.id,
                document.document_id,
                document.title,
                document.uri,
                document.source_version,
                document.content_hash,
                document.media_type,
                len(write.passages),
                bool(document.readers),
                self.next_revision,
                self.now,
            ),
        )
        row = cursor.lastrowid
        self.connection.executemany(
            "INSERT INTO document_reader VALUES (?, ?)", [(row, reader) for reader in sorted(document.readers)]
        )
        self.connection.executemany(
            "INSERT INTO document_metadata VALUES (?, ?, ?)",
            [(row, key, value) for key, value in document.metadata.items()],
        )
        for passage in write.passages:
            self._insert_passage(int(row or 0), passage)

    def _insert_passage(self, document: int, write: PassageWrite) -> None:
        passage = write.passage
        terms = sorted((self._term(term), count) for term, count in write.term_frequencies.items())
        cursor = self.connection.execute(
            "INSERT INTO passage (collection, document, ordinal, length, terms, counts) VALUES (?, ?, ?, ?, ?, ?)",
            (
                self.collection.id,
                document,
                passage.ordinal,
                write.length,
                np.array([term for term, _ in terms], dtype="<u4").tobytes(),
                np.array([min(count, 0xFFFF) for _, count in terms], dtype="<u2").tobytes(),
            ),
        )
        ref = int(cursor.lastrowid or 0)
        words = " ".join(write.spans.words)
        extra = " ".join(sorted(set(write.term_frequencies).difference(write.spans.words)))
        self.connection.execute(
            "INSERT INTO passage_text VALUES (?, ?, ?, ?, ?, ?, ?)",
            (ref, json.dumps(passage.headings), passage.text, passage.start_byte, passage.end_byte, words, extra),
        )
        self.connection.execute(
            f"INSERT INTO {full_text_table(self.collection.id)} (rowid, words, extra_terms) VALUES (?, ?, ?)",
            (ref, words, extra),
        )
        if write.vector is not None:
            vector = np.ascontiguousarray(write.vector, dtype="<f4").tobytes()
            self.connection.execute("INSERT INTO vector VALUES (?, ?)", (ref, vector))
        for title in passage.titles:
            entity = self._entity(title.key)
            before = self.connection.execute(
                "SELECT weight FROM title WHERE entity = ? AND passage = ?", (entity, ref)
            ).fetchone()
            if before is None:
                self.connection.execute(
                    "INSERT INTO title VALUES (?, ?, ?, ?)", (entity, ref, title.weight, title.name)
                )
                self.title_changes[entity] += 1
            elif before[0] < title.weight:
                self.connection.execute(
                    "UPDATE title SET weight = ?, name = ? WHERE entity = ? AND passage = ?",
                    (title.weight, title.name, entity, ref),
                )
        for key in write.spans.capitalised:
            self._mention(self._entity(key), ref, CAPITALISED)
        for link in passage.links:
            target, fragment = urldefrag(link.target)
            self.connection.execute(
                "INSERT OR IGNORE INTO link VALUES (?, ?, ?, ?)", (ref, self.collection.id, target, fragment)
            )
        self.term_changes.update({term: 1 for term, _ in terms})
        self.totals.passages += 1
        self.totals.terms += write.length
        self.inserted[ref] = write.spans

    def _remove(self, document: int) -> None:
        self.changed = True
        connection = self.connection
        restricted = connection.execute("SELECT restricted FROM document WHERE id = ?", (document,)).fetchone()[0]
        self.totals.documents -= 1
        self.totals.restricted -= restricted
        rows = connection.execute(
            "SELECT p.id, p.length, p.terms, t.words, t.extra_terms FROM passage p JOIN passage_text t ON t.passage = p.id"
            " WHERE p.document = ? ORDER BY p.id",
            (document,),
        ).fetchall()
        for ref, length, terms, words, extra in rows:
            self.inserted.pop(ref, None)
            self.totals.passages -= 1
            self.totals.terms -= length
            self.term_changes.update({int(term): -1 for term in np.frombuffer(terms, dtype="<u4")})
            connection.execute(
                f"INSERT INTO {full_text_table(self.collection.id)} ({full_text_table(self.collection.id)}, rowid, words,"
                " extra_terms) VALUES ('delete', ?, ?, ?)",
                (ref, words, extra),
            )
            for (entity,) in connection.execute("SELECT entity FROM mention WHERE passage = ?", (ref,)).fetchall():
                self.mention_changes[entity] -= 1
            for (entity,) in connection.execute("SELECT entity FROM title WHERE passage = ?", (ref,)).fetchall():
                self.title_changes[entity] -= 1
            for table in ("mention", "title", "vector", "link", "passage_text"):
                connection.execute(f"DELETE FROM {table} WHERE passage = ?", (ref,))
            connection.execute(
                "INSERT INTO removed_passage VALUES (?, ?, ?)", (self.collection.id, self.next_revision, ref)
            )
        connection.execute("DELETE FROM passage WHERE document = ?", (document,))
        connection.execute("DELETE FROM document_reader WHERE document = ?", (document,))
        connection.execute("DELETE FROM document_metadata WHERE document = ?", (document,))
        connection.execute("DELETE FROM document WHERE id = ?", (document,))

    def _term(self, term: str) -> int:
        known = self.term_ids.get(term)
        if known is not None:
            return known
        row = self.connection.execute("SELECT id FROM term WHERE term = ?", (term,)).fetchone()
        if row is None:
            found = int(self.connection.execute("INSERT INTO term (term) VALUES (?)", (term,)).lastrowid or 0)
        else:
            found = int(row[0])
        self.term_ids[term] = found
        return found

    def _entity(self, key: str) -> int:
        known = self.entity_ids.get(key)
        if known is not None:
            return known
        row = self.connection.execute(
            "SELECT id FROM entity WHERE collection = ? AND key = ?", (self.collection.id, key)
        ).fetchone()
        if row is None:
            cursor = self.connection.execute(
                "INSERT INTO entity (collection, key) VALUES (?, ?)", (self.collection.id, key)
            )
            self.totals.entities += 1
            found = int(cursor.lastrowid or 0)
        else:
            found = int(row[0])
        self.entity_ids[key] = found
        return found

    def _mention(self, entity: int, ref: int, kind: int) -> None:
        row = self.connection.execute(
            "SELECT kind FROM mention WHERE entity = ? AND passage = ?", (entity, ref)
        ).fetchone()
        if row is None:
            self.connection.execute("INSERT INTO mention VALUES (?, ?, ?)", (entity, ref, kind))
            self.mention_changes[entity] += 1
        elif not row[0] & kind:
            self.connection.execute(
                "UPDATE mention SET kind = ? WHERE entity = ? AND passage = ?", (row[0] | kind, entity, ref)
            )

    def _finish(self) -> None:
        """Brings mentions by title, statistics and the revision in line with what was written."""
        if not self.changed:
            return
        self._match_titles()
        self._apply_entity_counts()
        self.connection.executemany(
            "INSERT INTO term_statistics VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET passage_count = passage_count + excluded.passage_count",
            [(self.collection.id, term, change) for term, change in self.term_changes.items() if change],
        )
        gone = [(self.collection.id, term) for term, change in self.term_changes.items() if change < 0]
        self.connection.executemany(
            "DELETE FROM term_statistics WHERE collection = ? AND term = ? AND passage_count = 0", gone
        )
        totals = self.totals
        self.connection.execute(
            "UPDATE collection SET revision = ?, document_count = document_count + ?, restricted_count = restricted_count + ?,"
            " passage_count = passage_count + ?, entity_count = entity_count + ?, term_total = term_total + ?, update_time = ?"
            " WHERE id = ?",
            (
                self.next_revision,
                totals.documents,
                totals.restricted,
                totals.passages,
                totals.entities,
                totals.terms,
                self.now,
                self.collection.id,
            ),
        )

    def _match_titles(self) -> None:
        became: list[tuple[int, str]] = []
        ceased: list[int] = []
        for entity, change in self.title_changes.items():
            if not change:
                continue
            key, before = self.connection.execute(
                "SELECT key, title_count FROM entity WHERE id = ?", (entity,)
            ).fetchone()
            if not before and is_matchable(key):
                became.append((entity, key))
            elif before and before + change == 0:
                ceased.append(entity)
        for entity in ceased:
            lost = self.connection.execute(
                "DELETE FROM mention WHERE entity = ? AND kind = ?", (entity, TITLED)
            ).rowcount
            self.mention_changes[entity] -= lost
            self.connection.execute("UPDATE mention SET kind = ? WHERE entity = ?", (CAPITALISED, entity))
        titles = dict(self._titles_in(self.inserted.values()))
        titles.update({key: entity for entity, key in became})
        for entity in ceased:
            titles = {key: titled for key, titled in titles.items() if titled != entity}
        keys = frozenset(titles)
        for ref, spans in self.inserted.items():
            for key in keys.intersection(title_candidates(spans)):
                if is_matchable(key):
                    self._mention(titles[key], ref, TITLED)
        for entity, key in became:
            self._match_earlier(entity, key)

    def _titles_in(self, texts: Iterable[TextSpans]) -> list[tuple[str, int]]:
        candidates = {key for spans in texts for key in title_candidates(spans)}
        return self.connection.execute(
            "SELECT e.key, e.id FROM json_each(?) AS j CROSS JOIN entity AS e"
            " WHERE e.collection = ? AND e.key = j.value AND e.title_count > 0",
            (json.dumps(list(candidates)), self.collection.id),
        ).fetchall()

    def _match_earlier(self, entity: int, key: str) -> None:
        """Finds a new title in the passages that were there before it."""
        phrase = '"' + key.replace('"', '""') + '"'
        rows = self.connection.execute(
            f"SELECT f.rowid, t.text FROM {full_text_table(self.collection.id)} AS f JOIN passage_text AS t ON t.passage = f.rowid"
            f" WHERE {full_text_table(self.collection.id)} MATCH ?",
            (f"words : {phrase}",),
        ).fetchall()
        for ref, text in rows:
            if ref not in self.inserted and occurs(key, text_spans(text)):
                self._mention(entity, ref, TITLED)

    def _apply_entity_counts(self) -> None:
        changed = list({*self.mention_changes, *self.title_changes})
        self.connection.executemany(
            "UPDATE entity SET mention_count = mention_count + ?, title_count = title_count + ? WHERE id = ?",
            [(self.mention_changes[entity], self.title_changes[entity], entity) for entity in changed],
        )
        for entity in changed:
            self.totals.entities -= self.connection.execute(
                "DELETE FROM entity WHERE id = ? AND mention_count = 0 AND title_count = 0", (entity,)
            ).rowcount


def _load(connection: sqlite3.Connection, name: str) -> _Collection | None:
    row = connection.execute(
        "SELECT id, name, uid, revision, embedding_model, passage_count FROM collection WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else _Collection(*row)


def write_documents(
    connection: sqlite3.Connection, name: str, documents: Sequence[DocumentWrite], embedding_model: str
) -> tuple[CollectionRevision, tuple[WriteResult, ...]]:
    """Writes documents into a collection, made where it does not exist."""
    collection = _load(connection, name)
    if collection is None:
        now = time.time()
        connection.execute(
            "INSERT INTO collection (name, uid, create_time, update_time) VALUES (?, ?, ?, ?)",
            (name, uuid.uuid4().hex, now, now),
        )
        collection = _load(connection, name)
        if collection is None:
            raise CollectionNotFound(name)
        create_full_text(connection, collection.id)
    writer = Writer(connection, collection)
    results = writer.write(documents, embedding_model)
    revision = writer.next_revision if writer.changed else collection.revision
    return CollectionRevision(name, collection.uid, revision), results


def delete_documents(
    connection: sqlite3.Connection, name: str, document_ids: Sequence[str]
) -> tuple[CollectionRevision, int]:
    """Deletes documents of a collection.

    Raises:
        CollectionNotFound: It is not there.
    """
    collection = _load(connection, name)
    if collection is None:
        raise CollectionNotFound(name)
    writer = Writer(connection, collection)
    deleted = writer.delete(document_ids)
    revision = writer.next_revision if writer.changed else collection.revision
    return CollectionRevision(name, collection.uid, revision), deleted


def delete_collection(connection: sqlite3.Connection, name: str) -> bool:
    """Deletes a collection; gives whether it was there."""
    collection = _load(connection, name)
    if collection is None:
        return False
    by_passage = "(SELECT id FROM passage WHERE collection = ?)"
    by_document = "(SELECT id FROM document WHERE collection = ?)"
    for table in ("passage_text", "vector", "mention", "title"):
        connection.execute(f"DELETE FROM {table} WHERE passage IN {by_passage}", (collection.id,))
    for table in ("document_reader", "document_metadata"):
        connection.execute(f"DELETE FROM {table} WHERE document IN {by_document}", (collection.id,))
    for table in ("link", "passage", "document", "tombstone", "removed_passage", "term_statistics", "entity"):
        connection.execute(f"DELETE FROM {table} WHERE collection = ?", (collection.id,))
    connection.execute(f"DROP TABLE {full_text_table(collection.id)}")
    connection.execute("DELETE FROM collection WHERE id = ?", (collection.id,))
    return True
