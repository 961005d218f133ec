"""How a collection lies in its graph: its partitions, and the entities that most passages mention."""

import hashlib
import heapq
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import DocumentSummary
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.revision import LATEST
from loremesh_agents.ports.graph import GraphStore

PARTITIONS = 64
SAMPLED = 512
"""Passages that are looked at for hot entities."""
_PAGE = 2000
_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class HotEntity:
    """An entity and how many passages of the collection mention it."""

    name: str
    mentions: int


@dataclass(frozen=True, slots=True)
class GraphShape:
    """How a collection lies in its graph.

    Attributes:
        smallest: Documents in the smallest of 64 partitions by the hash of their ids,
        median: in the median one,
        largest: and in the largest one.
        hot: Of the entities that a sample of the passages mentions, those with the most mentions in all of the collection, the hottest first.
        sampled: Passages of the sample.
    """

    smallest: int
    median: float
    largest: int
    hot: tuple[HotEntity, ...]
    sampled: int


async def graph_shape(graph: GraphStore, collection: str, *, top: int, deadline: Deadline) -> GraphShape:
    """Looks at a collection of any store.

    It reads the summary of every document, and of a random sample of 512 passages the edges alone: never the mentions of an entity, of which there may be any number.
    An entity that one passage in 100 mentions is in such a sample with a probability of 0.994.

    Args:
        graph: The store.
        collection: Name of the collection.
        top: Most entities to name.
        deadline: When to give up.

    Raises:
        LoremeshError: As `GraphStore.changes` and `GraphStore.snapshot`.
    """
    counts = [0] * PARTITIONS
    sample: list[DocumentSummary] = []
    # The same one each time, so that two looks can be compared.
    chance = random.Random(0)  # noqa: S311 - not for secrets
    revision, seen = 0, 0
    while True:
        reached, changes = await graph.changes(collection, after_revision=revision, limit=_PAGE, deadline=deadline)
        for document in (change.document for change in changes if change.document is not None):
            counts[_partition(document.document_id)] += 1
            seen += 1
            # Reservoir sampling: after n documents each is in the sample with the probability SAMPLED / n.
            if len(sample) < SAMPLED:
                sample.append(document)
            elif (place := chance.randrange(seen)) < SAMPLED:
                sample[place] = document
        if reached.revision <= revision:
            break
        revision = reached.revision
    hot, sampled = await _hot(graph, collection, sample, chance, deadline)
    best = heapq.nsmallest(top, hot, key=lambda entity: (-entity.mentions, entity.name))
    return GraphShape(min(counts), statistics.median(counts), max(counts), tuple(best), sampled)


async def _hot(
    graph: GraphStore, collection: str, sample: Sequence[DocumentSummary], chance: random.Random, deadline: Deadline
) -> tuple[list[HotEntity], int]:
    """The entities that one passage of each document mentions."""
    everybody = Principal("operator", frozenset(group for document in sample for group in document.readers))
    places = [
        (collection, f"{document.document_id}#{chance.randrange(document.passage_count)}")
        for document in sample
        if document.passage_count
    ]
    found: dict[str, HotEntity] = {}
    sampled = 0
    for start in range(0, len(places), _TOGETHER):
        # A snapshot of its own, for some stores keep one only for so long.
        async with graph.snapshot(
            [collection], principal=everybody, filter=EVERYTHING, consistency=LATEST, deadline=deadline
        ) as snapshot:
            entry = await snapshot.enter(passages=places[start : start + _TOGETHER], deadline=deadline)
            seeds = list(entry.passages.values())
            sampled += len(seeds)
            expansion = await snapshot.expand(
                seeds, (), entities=(), known=frozenset(seeds), mention_limit=0, title_limit=1, deadline=deadline
            )
        mentioned = {edge.entity for edge in expansion.seed_mentions}
        found |= {
            key: HotEntity(expansion.entities[key].name, expansion.entities[key].mention_count) for key in mentioned
        }
    return list(found.values()), sampled


def _partition(document_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(document_id.encode(), digest_size=4).digest()) % PARTITIONS
