"""Text candidates from the full-text tables beside the embedded graph store."""

import sqlite3
from collections.abc import Mapping

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.adapters.graph.sqlite import SqliteGraphStore
from loremesh_agents.adapters.graph.sqlite.schema import full_text_table
from loremesh_agents.adapters.text.rarest import rarest
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision


class SqliteTextIndex(EmbeddedIndex):
    """See `ports.text.TextIndex`. Never behind: the tables change in the graph's own transactions.

    Args:
        graph: Whose passages to search.
    """

    def __init__(self, graph: SqliteGraphStore) -> None:
        super().__init__(graph)
        self._connections = graph.connections

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        chosen = rarest(terms)
        if not chosen:
            return ()
        query = " OR ".join('"' + term.replace('"', '""') + '"' for term in chosen)

        def work(connection: sqlite3.Connection) -> tuple[PassageRef, ...]:
            found: list[tuple[float, int]] = []
            for revision in revisions:
                row = connection.execute(
                    "SELECT id FROM collection WHERE name = ? AND uid = ?",
                    (revision.collection, revision.collection_uid),
                ).fetchone()
                if row is None:
                    continue
                table = full_text_table(row[0])
                found += connection.execute(
                    f"SELECT rank, rowid FROM {table} WHERE {table} MATCH ? ORDER BY rank, rowid LIMIT ?",
                    (query, limit),
                ).fetchall()
            return tuple(PassageRef(ref) for _, ref in sorted(found)[:limit])

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)
