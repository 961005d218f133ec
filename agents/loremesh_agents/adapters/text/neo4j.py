"""Text candidates from the full-text index of the Neo4j database that holds the graph."""

from collections.abc import Mapping, Sequence

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.adapters.graph.neo4j import statements
from loremesh_agents.adapters.graph.neo4j.candidates import NewestState, there
from loremesh_agents.adapters.graph.neo4j.connection import Connection
from loremesh_agents.adapters.text.rarest import rarest
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore

_WIDENED = 4
_MOST = 5_000


class Neo4jTextIndex(EmbeddedIndex):
    """See `ports.text.TextIndex`. Never behind: the index changes in the transactions that change the graph.

    Args:
        connection: Of the graph's engine, which closes it.
        graph: Whose passages these are.
        state: Of the graph store.
    """

    def __init__(self, connection: Connection, graph: GraphStore, state: NewestState) -> None:
        super().__init__(graph)
        self._connection = connection
        self._state = state

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        chosen = [term for term in rarest(terms) if term.strip()]
        uids = [revision.collection_uid for revision in revisions if self._state.holds(revision)]
        if deadline.expired:
            raise BudgetExhausted("text index", "search")
        if not chosen or not uids:
            return ()
        query, asked = _query(uids, chosen), limit
        while True:
            ((rows,),) = await self._connection.read(
                statements.WITH_WORDS, {"query": query, "limit": asked}, deadline=deadline
            )
            found = there(rows, self._state, limit)
            if len(found) == limit or len(rows) < asked or asked >= _MOST:
                return found
            asked = min(_MOST, asked * _WIDENED)


def _query(uids: Sequence[str], terms: Sequence[str]) -> str:
    """In Lucene's language: in one of the collections, which count for nothing in the score, and with some of the terms."""
    collections = " ".join(f"uid:{_phrase(uid)}" for uid in uids)
    words = " ".join(f"{name}:{_phrase(term)}" for term in terms for name in ("words", "further_words"))
    return f"+({collections})^0 +({words})"


def _phrase(text: str) -> str:
    """Text that Lucene takes as it is: between quotes only these two mean anything."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
