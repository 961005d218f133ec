"""The text index over the graph store in memory: looks at every passage."""

import math
from collections.abc import Mapping

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision

_SATURATION = 1.2


class MemoryTextIndex(EmbeddedIndex):
    """See `ports.text.TextIndex`. Never behind: it reads the graph's own states.

    Args:
        graph: Whose passages to search.
    """

    def __init__(self, graph: MemoryGraphStore) -> None:
        super().__init__(graph)
        self._graph = graph

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        if deadline.expired:
            raise BudgetExhausted("text index", "search")
        found: list[tuple[float, PassageRef]] = []
        for revision in revisions:
            state = self._graph.state(revision.collection)
            if state is None or state.uid != revision.collection_uid:
                continue
            for ref, passage in state.passages.items():
                score = _score(passage.content.term_frequencies, terms, len(state.passages))
                if score:
                    found.append((-score, ref))
        return tuple(ref for _, ref in sorted(found)[:limit])


def _score(frequencies: Mapping[str, int], terms: Mapping[str, int], passages: int) -> float:
    """Rare terms count more than common ones, and the first occurrence more than the next: enough to propose, for `domain/ranking.py` scores exactly."""
    return sum(
        math.log(1 + passages / holding) * frequencies[term] / (frequencies[term] + _SATURATION)
        for term, holding in terms.items()
        if holding and term in frequencies
    )
