"""Search terms: their ids, and in how many passages of a collection each is."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable

import numpy as np

from loremesh_agents.adapters.graph.sqlite.rows import execute_rows
from loremesh_agents.adapters.graph.sqlite.schema import next_id
from loremesh_agents.domain.document import PassageWrite

_REMEMBERED = 1 << 17
_MOST_COUNTED = 0xFFFF


class TermIds:
    """The ids of terms that were met lately. A term keeps its id for ever, once the transaction that made it is committed."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def remember(self, committed: dict[str, int]) -> None:
        """Takes ids of terms that are stored."""
        if len(self.known) + len(committed) > _REMEMBERED:
            self.known = {}
        self.known.update(committed)


class TermChanges:
    """What a transaction changes of a collection's terms.

    Args:
        connection: Within the transaction.
        collection: Id of the collection.
        known: Ids from earlier transactions.
    """

    def __init__(self, connection: sqlite3.Connection, collection: int, known: TermIds) -> None:
        self._connection = connection
        self._collection = collection
        self._known = known.known
        self._next = next_id(connection, "term")
        self._changes: Counter[int] = Counter()
        self.learned: dict[str, int] = {}

    def insert(self, passages: Iterable[PassageWrite]) -> list[tuple[bytes, bytes]]:
        """Counts the terms of new passages; gives each passage's term ids (u32) and how often each occurs (u16), little-endian."""
        frequencies = [passage.term_frequencies for passage in passages]
        ids = self._resolve(set[str]().union(*frequencies))
        stored: list[tuple[bytes, bytes]] = []
        for counts in frequencies:
            found = [ids[term] for term in counts]
            self._changes.update(found)
            occurrences = np.minimum(np.fromiter(counts.values(), dtype=np.int64), _MOST_COUNTED)
            stored.append((np.array(found, dtype="<u4").tobytes(), occurrences.astype("<u2").tobytes()))
        return stored

    def remove(self, stored: Iterable[bytes]) -> None:
        """Takes away the terms of passages, given as the ids that `insert` gave."""
        for ids in stored:
            self._changes.subtract(np.frombuffer(ids, dtype="<u4").tolist())

    def store(self) -> None:
        """Writes the counts."""
        execute_rows(
            self._connection,
            "INSERT INTO term_statistics VALUES {rows} ON CONFLICT DO UPDATE"
            " SET passage_count = passage_count + excluded.passage_count",
            [(self._collection, term, change) for term, change in sorted(self._changes.items()) if change],
        )
        self._connection.execute(
            "DELETE FROM term_statistics WHERE collection = ? AND term IN (SELECT value FROM json_each(?)) AND passage_count = 0",
            (self._collection, json.dumps([term for term, change in self._changes.items() if change < 0])),
        )

    def _resolve(self, terms: Iterable[str]) -> dict[str, int]:
        """The ids of terms; those without one get one."""
        ids = {term: self._known.get(term) or self.learned.get(term, 0) for term in terms}
        unknown = [term for term, known in ids.items() if not known]
        rows = self._connection.execute(
            "SELECT t.term, t.id FROM json_each(?) j CROSS JOIN term t WHERE t.term = j.value", (json.dumps(unknown),)
        )
        stored = dict(rows.fetchall())
        new = [term for term in unknown if term not in stored]
        made = dict(zip(new, range(self._next, self._next + len(new)), strict=True))
        self._next += len(new)
        execute_rows(self._connection, "INSERT INTO term (term, id) VALUES {rows}", list(made.items()))
        self.learned |= stored | made
        return ids | stored | made
