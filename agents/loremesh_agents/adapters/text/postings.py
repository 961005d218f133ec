"""Text candidates from the postings of a graph store whose engine has no text index of its own."""

import math
from collections import defaultdict
from collections.abc import Mapping

from loremesh_agents.adapters.derived.embedded import EmbeddedIndex
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.text.rarest import rarest
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision

_SATURATION = 1.2
_LIKELY_PASSAGES = 1_000_000
"""What a term's rarity is judged against; only the order of the candidates depends on it."""


class PostingsTextIndex(EmbeddedIndex):
    """See `ports.text.TextIndex`. Never behind: postings are written with the passages.

    Args:
        graph: Whose passages to search.
    """

    def __init__(self, graph: VersionedGraphStore) -> None:
        super().__init__(graph)
        self._graph = graph

    async def search(
        self, terms: Mapping[str, int], *, revisions: tuple[CollectionRevision, ...], limit: int, deadline: Deadline
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        chosen = rarest(terms)
        scores: dict[int, float] = defaultdict(float)
        for revision in revisions:
            held = await self._graph.postings(revision, chosen, deadline=deadline)
            for term, (refs, counts) in held.items():
                rarity = math.log(1 + _LIKELY_PASSAGES / terms[term])
                for ref, count in zip(refs.tolist(), counts.tolist(), strict=True):
                    if count:
                        scores[ref] += rarity * count / (count + _SATURATION)
        return tuple(PassageRef(ref) for ref in sorted(scores, key=lambda ref: (-scores[ref], ref))[:limit])
