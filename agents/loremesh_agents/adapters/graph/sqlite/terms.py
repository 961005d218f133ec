"""Search terms: their ids, and in how many passages of a collection each is."""

import json
import sqlite3
from collections import ChainMap, Counter
from collections.abc import Iterable

import numpy as np

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
        self._resolve(set().union(*frequencies))
        ids = ChainMap(self.learned, self._known)
        stored: list[tuple[bytes, bytes]] = []
        for counts in frequencies:
            found = [ids[term] for term in counts]
            self._changes.update(found)
            occurrences = [min(count, _MOST_COUNTED) for count in counts.values()]
            stored.append((np.array(found, dtype="<u4").tobytes(), np.array(occurrences, dtype="<u2").tobytes()))
        return stored

    def remove(self, stored: Iterable[bytes]) -> None:
        """Takes away the terms of passages, given as the ids that `insert` gave."""
        for ids in stored:
            self._changes.subtract(np.frombuffer(ids, dtype="<u4").tolist())

    def store(self) -> None:
        """Writes the counts."""
        self._connection.executemany(
            "INSERT INTO term_statistics VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
            " SET passage_count = passage_count + excluded.passage_count",
            [(self._collection, term, change) for term, change in sorted(self._changes.items()) if change],
        )
        self._connection.executemany(
            "DELETE FROM term_statistics WHERE collection = ? AND term = ? AND passage_count = 0",
            [(self._collection, term) for term, change in self._changes.items() if change < 0],
        )

    def _resolve(self, terms: Iterable[str]) -> None:
        unknown = [term for term in terms if term not in self._known and term not in self.learned]
        rows = self._connection.execute(
            "SELECT t.term, t.id FROM json_each(?) j CROSS JOIN term t WHERE t.term = j.value", (json.dumps(unknown),)
        )
        self.learned.update(rows.fetchall())
        new = [term for term in unknown if term not in self.learned]
        made = range(self._next, self._next + len(new))
        self._next += len(new)
        self.learned.update(zip(new, made, strict=True))
        self._connection.executemany("INSERT INTO term (id, term) VALUES (?, ?)", zip(made, new, strict=True))
