"""`opensearch+http(s)://`: words in OpenSearch, scored by its BM25."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loremesh_agents.adapters.derived.keeping import Keeping, TextSource
from loremesh_agents.adapters.derived.opensearch import (
    OpenSearchConnection,
    OpenSearchIndex,
    OpenSearchServers,
    OpenSearchStore,
    text_field,
    text_settings,
)
from loremesh_agents.adapters.text.rarest import rarest
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore, TextChanges

_FORMAT = 1
_PAGE = 5_000


class _Words(OpenSearchStore[TextChanges]):
    def entries(self, page: TextChanges) -> Iterator[tuple[PassageRef, Mapping[str, Any]]]:
        for entry in page.added:
            yield entry.ref, {"words": [entry.words, entry.further_words]}

    def removed(self, page: TextChanges) -> Sequence[PassageRef]:
        return page.removed


class OpenSearchTextIndex(Keeping[TextChanges]):
    """See `ports.text.TextIndex`.

    Args:
        graph: Where words come from.
        servers: Where OpenSearch is.
        prefix: The index is called `{prefix}-text`.
        settings: Of a new index: numbers of shards and replicas.
    """

    def __init__(
        self, graph: GraphStore, servers: OpenSearchServers, prefix: str, *, settings: Mapping[str, int] | None = None
    ) -> None:
        self._connection = OpenSearchConnection(servers)
        index = OpenSearchIndex(
            f"{prefix}-text", _FORMAT, {"words": text_field()}, {**text_settings(), **(settings or {})}
        )
        self._words = _Words(self._connection, index)
        super().__init__(graph, TextSource(graph), self._words, page=_PAGE)

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        reached = await self.reached(revisions, deadline=deadline)
        shelves = [state.shelf for _, state in reached]
        chosen = rarest(terms)
        if not chosen or not shelves:
            return ()
        query = {
            "bool": {
                "filter": [{"terms": {"uid": shelves}}],
                "should": [{"term": {"words": {"value": term}}} for term in chosen],
                "minimum_should_match": 1,
            }
        }
        return await self._words.search(query, limit=limit, deadline=deadline)

    async def close(self) -> None:
        """See the port."""
        await self._connection.close()
