"""The neighbourhood of entities and passages, breadth first, for front ends that draw it."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from loremesh_agents.domain.answer import Completion, FinishReason
from loremesh_agents.domain.conversation import PassageReference
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.errors import EntityNotFound, PassageNotFound
from loremesh_agents.domain.evidence import EdgeKind
from loremesh_agents.domain.filter import MetadataFilter
from loremesh_agents.domain.lexicon import entity_key
from loremesh_agents.domain.ranking import MENTION_LIMIT
from loremesh_agents.domain.retrieval import EntityStatistics, PassageRef
from loremesh_agents.domain.revision import Consistency
from loremesh_agents.ports.graph import GraphSnapshot


@dataclass(frozen=True, slots=True)
class ExpandRequest:
    """Where to look around; see `loremesh.v1.ExpandRequest`."""

    collections: tuple[str, ...]
    entities: tuple[str, ...]
    passages: tuple[PassageReference, ...]
    depth: int
    limit: int
    filter: MetadataFilter
    consistency: Consistency


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a neighbourhood: an entity or a passage, and its steps from the start."""

    node_id: str
    distance: int
    content: EntityStatistics | Passage


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge between nodes that came before."""

    start: str
    end: str
    kind: EdgeKind
    weight: float


class Walk:
    """One look around, breadth first."""

    def __init__(
        self, snapshot: GraphSnapshot, request: ExpandRequest, titles_per_entity: int, deadline: Deadline
    ) -> None:
        self._snapshot = snapshot
        self._request = request
        self._titles_per_entity = titles_per_entity
        self._deadline = deadline
        self._seen: set[str] = set()
        self._edges: set[tuple[str, str, EdgeKind]] = set()

    async def run(self) -> AsyncGenerator[Node | Edge | Completion]:
        """The nodes and the edges between them, then a completion.

        Raises:
            EntityNotFound: An entity to start from is not there.
            PassageNotFound: A passage to start from is not there, or may not be read.
        """
        request = self._request
        keys = {entity_key(name): name for name in request.entities}
        wanted = [(passage.collection, passage.passage_id) for passage in request.passages]
        entry = await self._snapshot.enter(entities=keys.keys() - {""}, passages=wanted, deadline=self._deadline)
        for key, name in keys.items():
            if key not in entry.entities:
                raise EntityNotFound(name)
        for collection, passage_id in wanted:
            if (collection, passage_id) not in entry.passages:
                raise PassageNotFound(collection, passage_id)
        for entity in entry.entities.values():
            for node in self._new(_entity_id(entity.key), 0, entity):
                yield node
        frontier = tuple(dict.fromkeys(entry.passages.values()))
        async for node in self._passages(frontier, 0):
            yield node
        entities: set[str] = set(entry.entities)
        for distance in range(1, request.depth + 1):
            expansion = await self._snapshot.expand(
                frontier,
                (),
                entities=entities,
                known=(),
                mention_limit=MENTION_LIMIT,
                title_limit=self._titles_per_entity,
                deadline=self._deadline,
            )
            reached = dict.fromkeys(
                [
                    *(edge.passage for edge in expansion.titles),
                    *(ref for refs in expansion.mentions.values() for ref in refs),
                    *(edge.target for edge in expansion.references),
                ]
            )
            for entity in expansion.entities.values():
                for node in self._new(_entity_id(entity.key), distance, entity):
                    yield node
            async for node in self._passages(tuple(reached), distance):
                yield node
            joins = [
                *((edge.passage, _entity_id(edge.entity), EdgeKind.MENTIONS, 1.0) for edge in expansion.seed_mentions),
                *(
                    (edge.passage, _entity_id(edge.entity), EdgeKind.TITLE, edge.weight)
                    for edge in expansion.seed_titles
                ),
                *((edge.passage, _entity_id(edge.entity), EdgeKind.TITLE, edge.weight) for edge in expansion.titles),
                *(
                    (ref, _entity_id(key), EdgeKind.MENTIONS, 1.0)
                    for key, refs in expansion.mentions.items()
                    for ref in refs
                ),
                *((edge.source, _passage_id(edge.target), EdgeKind.REFERS_TO, 1.0) for edge in expansion.references),
            ]
            for source, target, kind, weight in joins:
                start = _passage_id(source)
                if {start, target} <= self._seen and (start, target, kind) not in self._edges:
                    self._edges.add((start, target, kind))
                    yield Edge(start, target, kind, weight)
            # What was not given is not gone on from: so the limit bounds the work as well.
            frontier = tuple(ref for ref in reached if _passage_id(ref) in self._seen)
            entities = {key for key in expansion.entities if _entity_id(key) in self._seen}
        yield Completion(FinishReason.STOP, revisions=self._snapshot.revisions)

    async def _passages(self, refs: Sequence[PassageRef], distance: int) -> AsyncGenerator[Node]:
        room = self._request.limit - len(self._seen)
        wanted = [ref for ref in refs if _passage_id(ref) not in self._seen][: max(room, 0)]
        found = await self._snapshot.fetch(wanted, deadline=self._deadline)
        for ref in wanted:
            if ref in found:
                for node in self._new(_passage_id(ref), distance, found[ref]):
                    yield node

    def _new(self, node_id: str, distance: int, content: EntityStatistics | Passage) -> list[Node]:
        if node_id in self._seen or len(self._seen) >= self._request.limit:
            return []
        self._seen.add(node_id)
        return [Node(node_id, distance, content)]


def _entity_id(key: str) -> str:
    return f"entity:{key}"


def _passage_id(ref: PassageRef) -> str:
    return f"passage:{ref}"
