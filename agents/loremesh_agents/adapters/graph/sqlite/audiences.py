"""Statistics per set of readers, in one write transaction."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from loremesh_agents.adapters.graph.sqlite.rows import execute_rows
from loremesh_agents.adapters.graph.sqlite.schema import CAPITALISED, TITLED, next_id
from loremesh_agents.domain.document import MOST_READER_SETS

_CAPITALISED_COUNT, _TITLED_COUNT, _TITLE_COUNT = range(3)
_DOCUMENT = "JOIN passage p ON p.id = j.value JOIN document d ON d.id = p.document"
"""From the id of a passage to its document."""


class AudienceChanges:
    """What a transaction changes of the audiences of a collection. Does nothing where the collection keeps no statistics of them.

    Args:
        connection: Within the transaction.
        collection: Id of the collection.
        kept: Whether it keeps them.
    """

    def __init__(self, connection: sqlite3.Connection, collection: int, *, kept: bool) -> None:
        self._connection = connection
        self._collection = collection
        self._kept = kept
        self._ids: dict[frozenset[str], int] = {}
        self._documents: Counter[int] = Counter()
        self._placed: dict[int, int] = {}
        self._passages: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()
        self._terms: Counter[tuple[int, int]] = Counter()
        self._entities: Counter[tuple[int, int, int]] = Counter()
        self._links: Counter[tuple[str, int]] = Counter()
        self._stored: dict[int, int] = {}
        if kept:
            self._next = next_id(connection, "audience")
            rows = connection.execute(
                "SELECT id, readers, document_count FROM audience WHERE collection = ?", (collection,)
            )
            for audience, readers, documents in rows.fetchall():
                self._ids[frozenset(json.loads(readers))] = audience
                self._documents[audience] = self._stored[audience] = documents

    def take(self, readers: frozenset[str], replaced: int) -> bool:
        """Counts a document with these readers in place of one of another audience (0 for none); gives whether there is room for it."""
        if not self._kept:
            return True
        self.leave(replaced)
        if readers not in self._ids:
            self._ids[readers] = self._next
            self._next += 1
        audience = self._ids[readers]
        if readers and not self._documents[audience] and self._restricted() == MOST_READER_SETS:
            self._documents[replaced] += 1
            return False
        self._documents[audience] += 1
        return True

    def leave(self, audience: int) -> None:
        """Counts a document less."""
        self._documents[audience] -= 1

    def of(self, readers: frozenset[str]) -> int:
        """The audience of documents that were taken with these readers; 0 where none are kept."""
        return self._ids[readers] if self._kept else 0

    def insert(self, passages: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Counts new passages: of each its id, audience, length and term ids."""
        if self._kept:
            self._placed |= self._count(passages, 1)

    def remove(self, passages: Iterable[tuple[int, int, int, bytes]]) -> None:
        """Takes away what `insert` has counted, and all edges and links of these passages; to be called while they are there."""
        if not self._kept:
            return
        refs = json.dumps(list(self._count(passages, -1)))
        self._take_away(
            "SELECT m.entity, d.audience, count(*) FILTER (WHERE m.kind & ?2), count(*) FILTER (WHERE NOT m.kind & ?2), 0"
            " FROM json_each(?1) j CROSS JOIN mention m ON m.passage = j.value"
            f" {_DOCUMENT} GROUP BY m.entity, d.audience",
            (refs, CAPITALISED),
        )
        self._take_away(
            "SELECT t.entity, d.audience, 0, 0, count(*) FROM json_each(?) j CROSS JOIN title t ON t.passage = j.value"
            f" {_DOCUMENT} GROUP BY t.entity, d.audience",
            (refs,),
        )
        links = self._connection.execute(
            "SELECT l.target, d.audience, count(*) FROM json_each(?) j CROSS JOIN link l ON l.passage = j.value"
            f" {_DOCUMENT} GROUP BY l.target, d.audience",
            (refs,),
        )
        for target, audience, count in links.fetchall():
            self._links[target, audience] -= count

    def forget_title(self, entity: int) -> None:
        """Takes away the mentions that only a title makes; to be called while they are there."""
        if self._kept:
            self._take_away(
                "SELECT m.entity, d.audience, 0, count(*), 0 FROM mention m JOIN passage p ON p.id = m.passage"
                " JOIN document d ON d.id = p.document WHERE m.entity = ? AND m.kind = ? GROUP BY d.audience",
                (entity, TITLED),
            )

    def mention(self, mentions: Sequence[tuple[int, int, int]]) -> None:
        """Counts new mentions, as (entity, passage, kind)."""
        if self._kept:
            audiences = self._audiences_of(ref for _, ref, _ in mentions)
            self._entities.update(
                (entity, audiences[ref], _CAPITALISED_COUNT if kind & CAPITALISED else _TITLED_COUNT)
                for entity, ref, kind in mentions
            )

    def title(self, titles: Sequence[tuple[int, int]]) -> None:
        """Counts new titles, as (entity, passage)."""
        if self._kept:
            audiences = self._audiences_of(ref for _, ref in titles)
            self._entities.update((entity, audiences[ref], _TITLE_COUNT) for entity, ref in titles)

    def link(self, links: Sequence[tuple[int, str]]) -> None:
        """Counts new links, as (passage, target)."""
        if self._kept:
            audiences = self._audiences_of(ref for ref, _ in links)
            self._links.update((target, audiences[ref]) for ref, target in links)

    def store(self) -> None:
        """Writes the counts."""
        if not self._kept:
            return
        self._store_audiences()
        self._store_terms()
        self._store_entities()
        self._store_links()

    def _restricted(self) -> int:
        """The audiences with documents, without that of everybody."""
        return sum(bool(readers) and self._documents[audience] > 0 for readers, audience in self._ids.items())

    def _count(self, passages: Iterable[tuple[int, int, int, bytes]], sign: int) -> dict[int, int]:
        """Counts passages and their terms; gives their audiences."""
        found: dict[int, int] = {}
        terms: defaultdict[int, list[bytes]] = defaultdict(list)
        for ref, audience, length, ids in passages:
            found[ref] = audience
            self._passages[audience] += sign
            self._lengths[audience] += sign * length
            terms[audience].append(ids)
        for audience, stored in terms.items():
            values, counts = np.unique(np.frombuffer(b"".join(stored), dtype="<u4"), return_counts=True)
            for term, count in zip(values.tolist(), counts.tolist(), strict=True):
                self._terms[term, audience] += sign * count
        return found

    def _take_away(self, query: str, parameters: tuple[object, ...]) -> None:
        """Takes away what a query gives, as (entity, audience, capitalised, titled, titles)."""
        for entity, audience, *counts in self._connection.execute(query, parameters).fetchall():
            for kind, count in enumerate(counts):
                self._entities[entity, audience, kind] -= count

    def _audiences_of(self, refs: Iterable[int]) -> Mapping[int, int]:
        """The audiences of passages, new ones and old ones."""
        wanted = set(refs)
        old = wanted.difference(self._placed)
        if not old:
            return self._placed
        rows = self._connection.execute(
            f"SELECT p.id, d.audience FROM json_each(?) j {_DOCUMENT}",
            (json.dumps(list(old)),),
        )
        return {**{ref: self._placed[ref] for ref in wanted - old}, **dict(rows.fetchall())}

    def _store_audiences(self) -> None:
        readers_of = {audience: readers for readers, audience in self._ids.items()}
        new = [audience for audience in readers_of if audience not in self._stored and self._documents[audience]]
        execute_rows(
            self._connection,
            "INSERT INTO audience VALUES {rows}",
            [(audience, self._collection, json.dumps(sorted(readers_of[audience])), 0, 0, 0) for audience in new],
        )
        execute_rows(
            self._connection,
            "UPDATE audience SET document_count = c.column2, passage_count = passage_count + c.column3,"
            " term_total = term_total + c.column4 FROM (VALUES {rows}) c WHERE audience.id = c.column1",
            [
                (audience, self._documents[audience], self._passages[audience], self._lengths[audience])
                for audience in readers_of
                if audience in self._passages or self._documents[audience] != self._stored.get(audience, 0)
            ],
        )
        self._connection.execute(
            "DELETE FROM audience WHERE collection = ? AND document_count = 0", (self._collection,)
        )

    def _store_terms(self) -> None:
        changes = sorted((term, audience, change) for (term, audience), change in self._terms.items() if change)
        execute_rows(
            self._connection,
            "INSERT INTO audience_term VALUES {rows} ON CONFLICT DO UPDATE SET passage_count = passage_count + excluded.passage_count",
            [(self._collection, *change) for change in changes],
        )
        self._connection.execute(
            "DELETE FROM audience_term WHERE collection = ? AND term IN (SELECT value FROM json_each(?)) AND passage_count = 0",
            (self._collection, json.dumps([term for term, _, change in changes if change < 0])),
        )

    def _store_entities(self) -> None:
        changes: defaultdict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        for (entity, audience, kind), change in self._entities.items():
            if change:
                changes[entity, audience][kind] = change
        execute_rows(
            self._connection,
            "INSERT INTO audience_entity VALUES {rows} ON CONFLICT DO UPDATE"
            " SET capitalised_count = capitalised_count + excluded.capitalised_count,"
            " titled_count = titled_count + excluded.titled_count, title_count = title_count + excluded.title_count",
            [(*key, *counts) for key, counts in sorted(changes.items())],
        )
        self._connection.execute(
            "DELETE FROM audience_entity WHERE entity IN (SELECT value FROM json_each(?))"
            " AND capitalised_count = 0 AND titled_count = 0 AND title_count = 0",
            (json.dumps([entity for (entity, _), counts in changes.items() if min(counts) < 0]),),
        )

    def _store_links(self) -> None:
        changes = sorted((target, audience, change) for (target, audience), change in self._links.items() if change)
        execute_rows(
            self._connection,
            "INSERT INTO audience_link VALUES {rows} ON CONFLICT DO UPDATE SET link_count = link_count + excluded.link_count",
            [(self._collection, *change) for change in changes],
        )
        self._connection.execute(
            "DELETE FROM audience_link WHERE collection = ? AND target IN (SELECT value FROM json_each(?)) AND link_count = 0",
            (self._collection, json.dumps([target for target, _, change in changes if change < 0])),
        )
