"""Document frequencies of some collections, as far as they are a reader's."""

import json
import sqlite3
from collections.abc import Collection as Group
from collections.abc import Sequence
from typing import NamedTuple

from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.retrieval import TermStatistics

_COUNTED_LINKS = 1000


class EntityRow(NamedTuple):
    """An entity of a collection."""

    collection: int
    id: int
    key: str
    mentions: int
    titles: int


class Statistics:
    """What a snapshot tells of frequencies.

    A collection with `reader_statistics` of which the principal may not read some audience is a divided one: there the audiences that it may read are
    summed. Of all others the totals count.

    Args:
        whole: Ids of the collections whose totals count.
        divided: Ids of the others.
        audiences: Ids of the audiences that are summed.
        passage_count: Passages of these audiences.
        term_total: Their lengths together.
    """

    def __init__(
        self,
        whole: Group[int],
        divided: Group[int] = (),
        audiences: Group[int] = (),
        passage_count: int = 0,
        term_total: int = 0,
    ) -> None:
        self._all = json.dumps(sorted({*whole, *divided}))
        self._whole = json.dumps(sorted(whole))
        self._divided = frozenset(divided)
        self._divided_ids = json.dumps(sorted(divided))
        self._audiences = json.dumps(sorted(audiences))
        self._passage_count = passage_count
        self._term_total = term_total

    @classmethod
    def of(cls, connection: sqlite3.Connection, collections: Group[int], principal: Principal) -> "Statistics":
        """The statistics for a principal."""
        rows = connection.execute(
            "SELECT a.collection, a.id, a.readers, a.passage_count, a.term_total FROM json_each(?) j"
            " CROSS JOIN audience a ON a.collection = j.value",
            (json.dumps(list(collections)),),
        ).fetchall()
        readable = [row for row in rows if row[2] == "[]" or not principal.groups.isdisjoint(json.loads(row[2]))]
        divided = {row[0] for row in rows} & {row[0] for row in set(rows).difference(readable)}
        summed = [row for row in readable if row[0] in divided]
        return cls(
            set(collections) - divided,
            divided,
            [row[1] for row in summed],
            sum(row[3] for row in summed),
            sum(row[4] for row in summed),
        )

    def terms(self, connection: sqlite3.Connection, terms: Sequence[str]) -> TermStatistics:
        """What BM25 needs to know of terms."""
        passages, total = connection.execute(
            "SELECT coalesce(sum(passage_count), 0), coalesce(sum(term_total), 0) FROM collection"
            " WHERE id IN (SELECT value FROM json_each(?))",
            (self._whole,),
        ).fetchone()
        passages, total = passages + self._passage_count, total + self._term_total
        wanted = json.dumps(list(terms))
        found = dict(
            connection.execute(
                "SELECT t.term, sum(s.passage_count) FROM term t JOIN term_statistics s ON s.term = t.id"
                " WHERE t.term IN (SELECT value FROM json_each(?)) AND s.collection IN (SELECT value FROM json_each(?))"
                " GROUP BY t.term",
                (wanted, self._whole),
            ).fetchall()
        )
        frequencies = {term: int(found.get(term, 0)) for term in terms}
        if self._divided:
            rows = connection.execute(
                "SELECT t.term, sum(s.passage_count) FROM json_each(?) j CROSS JOIN term t ON t.term = j.value"
                " CROSS JOIN json_each(?) c CROSS JOIN audience_term s ON s.collection = c.value AND s.term = t.id"
                " WHERE s.audience IN (SELECT value FROM json_each(?)) GROUP BY t.term",
                (wanted, self._divided_ids, self._audiences),
            )
            for term, count in rows.fetchall():
                frequencies[term] += count
        return TermStatistics(passages, total / passages if passages else 0.0, frequencies)

    def entities(self, connection: sqlite3.Connection, keys: Group[str]) -> list[EntityRow]:
        """Those of the entities that are there, one row a collection."""
        rows = connection.execute(
            "SELECT e.collection, e.id, e.key, e.mention_count, e.title_count FROM json_each(?) k"
            " CROSS JOIN json_each(?) c CROSS JOIN entity e WHERE e.collection = c.value AND e.key = k.value",
            (json.dumps(sorted(keys)), self._all),
        )
        return self.counted(connection, [EntityRow(*row) for row in rows.fetchall()])

    def counted(self, connection: sqlite3.Connection, rows: Sequence[EntityRow]) -> list[EntityRow]:
        """The rows with what the reader may know in place of the totals; without those of which it may know nothing."""
        asked = {row.id for row in rows if row.collection in self._divided}
        if not asked:
            return list(rows)
        sums = connection.execute(
            "SELECT a.entity, sum(a.capitalised_count), sum(a.titled_count), sum(a.title_count) FROM json_each(?) j"
            " CROSS JOIN audience_entity a ON a.entity = j.value WHERE a.audience IN (SELECT value FROM json_each(?))"
            " GROUP BY a.entity",
            (json.dumps(list(asked)), self._audiences),
        )
        # What only a title makes a mention is none for somebody who may read no such title.
        known = {
            entity: (capitalised + (titled if titles else 0), titles)
            for entity, capitalised, titled, titles in sums.fetchall()
        }
        found: list[EntityRow] = []
        for row in rows:
            mentions, titles = known.get(row.id, (0, 0)) if row.id in asked else (row.mentions, row.titles)
            if mentions or titles:
                found.append(row._replace(mentions=mentions, titles=titles))
        return found

    def links(self, connection: sqlite3.Connection, collection: int, target: str) -> int:
        """How many passages link to an address; more than 1,000 count as so many."""
        if collection in self._divided:
            query = (
                "SELECT min(coalesce(sum(link_count), 0), ?3) FROM audience_link WHERE collection = ?1 AND target = ?2"
                " AND audience IN (SELECT value FROM json_each(?4))"
            )
            parameters: tuple[object, ...] = (collection, target, _COUNTED_LINKS, self._audiences)
        else:
            query = "SELECT count(*) FROM (SELECT 1 FROM link WHERE collection = ? AND target = ? LIMIT ?)"
            parameters = (collection, target, _COUNTED_LINKS)
        (count,) = connection.execute(query, parameters).fetchone()
        return int(count)
