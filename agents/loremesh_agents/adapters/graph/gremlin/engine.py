"""What the versioned store needs of a property graph, over Gremlin: the reads, common to all servers."""

from abc import abstractmethod
from collections.abc import Collection as Group
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loremesh_agents.adapters.graph.gremlin import errors, rows, traversals
from loremesh_agents.adapters.graph.gremlin.concurrency import at_once
from loremesh_agents.adapters.graph.gremlin.connection import Connections
from loremesh_agents.adapters.graph.gremlin.endpoint import Endpoint
from loremesh_agents.adapters.graph.gremlin.traversals import Addressing, Reads
from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Changes,
    GraphEngine,
    LinkRow,
    MentionRow,
    Neighbourhood,
    PassageRow,
    Passages,
    Record,
    TitleRow,
    Vertex,
)
from loremesh_agents.adapters.graph.versioned.identifiers import passage_vertex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel

_IDS_A_REQUEST = 1000
REQUESTS_AT_ONCE = 6
"""Of one call."""


class GremlinEngine(GraphEngine):
    """A property graph behind a Gremlin server.

    Changes are not made in one transaction: a batch is cut into requests, several at once, and `unless` is not looked at. The store does not need it.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connections = Connections(endpoint)

    @property
    def name(self) -> str:
        """What errors call the engine."""
        return self._endpoint.name

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        return self._connections.requests

    @abstractmethod
    async def schema_version(self, *, deadline: Deadline) -> int:
        """Version of the schema that is in force; 0 where there is none."""

    @abstractmethod
    async def migrate(self, version: int, *, deadline: Deadline) -> None:
        """Takes the schema from the version before to this one; may be repeated after it broke off."""

    @abstractmethod
    async def create(self, vertex: Vertex, *, deadline: Deadline) -> bool:
        """Makes a vertex unless there is one of its id: of all that ever try, exactly one is told True."""

    @abstractmethod
    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        """Makes changes."""

    @abstractmethod
    async def addressing(self, deadline: Deadline) -> Addressing:
        """How the graph finds vertices."""

    async def records(
        self, ids: Mapping[VertexLabel, Group[str]], *, fields: Group[str] | None = None, deadline: Deadline
    ) -> Mapping[str, Record]:
        """Those of the vertices that are there, by id."""
        wanted = {id_: label.value for label, group in ids.items() for id_ in traversals.well_formed(group)}
        reads = await self._reads(deadline)
        asked = None if fields is None else frozenset(fields)
        records: dict[str, Record] = {}
        for row in await self._ask((reads.records(part, fields) for part in _parts(wanted)), deadline):
            id_, label = rows.identified(row)
            if wanted[id_] == label:
                records[id_] = rows.record(row, asked)
        return records

    async def passages(
        self, refs: Group[int], access: Access, *, fields: Group[str], deadline: Deadline
    ) -> Sequence[PassageRow]:
        """Those of the passages that are there and may be seen, in any order."""
        reads = await self._reads(deadline)
        if traversals.nothing_visible(access):
            return []
        asked = frozenset(fields)
        parts = _parts(_passage_ids(refs))
        found = await self._ask((reads.passages(part, access, fields) for part in parts), deadline)
        return [rows.passage(row, asked) for part in found for row in part]

    async def neighbourhood(
        self,
        seeds: Group[int],
        entities: Group[str],
        access: Access,
        *,
        title_limit: int,
        mention_limit: int,
        deadline: Deadline,
    ) -> Neighbourhood:
        """What lies around passages and entities."""
        reads = await self._reads(deadline)
        hidden = traversals.nothing_visible(access)
        starts = [] if hidden else _passage_ids(seeds)
        found = await self._ask((reads.seeds(part, access) for part in _parts(starts)), deadline)
        from_seeds = [seed for part in found for seed in part]
        targets = {to: label for _, _, edges in from_seeds for label, to, _ in edges}
        addresses = [id_ for id_, label in targets.items() if label == EdgeLabel.LINKS_TO.value]
        reached = (id_ for id_, label in targets.items() if label != EdgeLabel.LINKS_TO.value)
        asked: list[tuple[str, Any]] = []
        for part in _parts(dict.fromkeys((*reached, *traversals.well_formed(entities)))):
            asked.append(("entities", reads.entities(part)))
            if not hidden and title_limit > 0:
                asked.append(("titles", reads.titles(part, access, title_limit)))
            if not hidden:
                asked.append(("mentions", reads.mentions(part, access, mention_limit)))
        for part in _parts(addresses):
            asked.append(("addresses", reads.addresses(part)))
            asked.append(("documents", reads.documents(part)))
        answers: dict[str, list[Any]] = {}
        given = await at_once(asked, lambda one: self._submit(one[1], deadline), limit=REQUESTS_AT_ONCE)
        for (kind, _), answer in zip(asked, given, strict=True):
            answers.setdefault(kind, []).extend(answer)
        return _neighbourhood(from_seeds, answers)

    async def remove(self, ids: Mapping[VertexLabel, Group[str]], *, deadline: Deadline) -> None:
        """Removes vertices with their edges; not an error where they are gone."""
        reads = await self._reads(deadline)
        drops = (
            reads.vertices(part).has_label(label.value).drop()
            for label, group in ids.items()
            for part in _parts(traversals.well_formed(group))
        )
        await self._ask(drops, deadline)

    async def close(self) -> None:
        """Frees the engine's connections."""
        await self._connections.close()

    async def _submit(self, request: Any, deadline: Deadline) -> list[Any]:
        return await self._connections.submit(request, deadline=deadline)

    async def _reads(self, deadline: Deadline) -> Reads:
        if deadline.expired:
            raise errors.expired()
        return Reads(await self.addressing(deadline))

    async def _ask(self, asked: Iterable[Any], deadline: Deadline) -> list[Any]:
        answers = await at_once(asked, lambda traversal: self._submit(traversal, deadline), limit=REQUESTS_AT_ONCE)
        return [row for answer in answers for row in answer]


def _passage_ids(refs: Iterable[int]) -> list[str]:
    return [passage_vertex(ref) for ref in dict.fromkeys(refs)]


def _parts(ids: Iterable[str]) -> Iterator[list[str]]:
    listed = list(ids)
    for begin in range(0, len(listed), _IDS_A_REQUEST):
        yield listed[begin : begin + _IDS_A_REQUEST]


def _neighbourhood(from_seeds: Sequence[Any], answers: Mapping[str, Sequence[Any]]) -> Neighbourhood:
    seed_mentions: list[MentionRow] = []
    seed_titles: list[TitleRow] = []
    links: list[LinkRow] = []
    passage = Passages()
    for ref, ends, edges in from_seeds:
        seed = passage(ref, ends)
        for label, target, values in edges:
            if label == EdgeLabel.MENTIONS.value:
                seed_mentions.append(MentionRow(target, seed, values["kind"]))
            elif label == EdgeLabel.BEARS.value:
                seed_titles.append(TitleRow(target, seed, values["weight"], values["title"]))
            else:
                links.append(LinkRow(ref, target, values["fragment"]))
    documents: dict[str, list[Record]] = {}
    for row in answers.get("documents", ()):
        documents.setdefault(row["address"], []).append(rows.record(row["document"]))
    return Neighbourhood(
        seed_mentions=seed_mentions,
        seed_titles=seed_titles,
        links=links,
        entities=_by_id(answers.get("entities", ())),
        titles=[
            TitleRow(entity, passage(ref, ends), weight, title)
            for part in answers.get("titles", ())
            for of_entity in part
            for entity, weight, title, ref, ends in of_entity
        ],
        mentions=[
            MentionRow(entity, passage(ref, ends), kind)
            for part in answers.get("mentions", ())
            for entity, kind, ref, ends in part
        ],
        addresses=_by_id(answers.get("addresses", ())),
        documents=documents,
    )


def _by_id(found: Iterable[Any]) -> dict[str, Record]:
    return {rows.identified(row)[0]: rows.record(row) for row in found}
