"""A double of a property graph: the protocol of the versioned store, over dictionaries, with the faults that real ones have."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from collections.abc import Collection as Group
from dataclasses import dataclass, field, replace

from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Cell,
    Changes,
    Edge,
    LinkRow,
    MentionRow,
    Neighbourhood,
    PassageRow,
    Record,
    TitleRow,
    Value,
    Vertex,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, WriteConflict
from loremesh_agents.domain.graph_schema import EDGES, VERSION, VERTICES, EdgeLabel, VertexLabel


@dataclass
class Node:
    label: VertexLabel
    id: str
    properties: dict[str, Value]
    sets: dict[str, set[str]]


@dataclass
class Graph:
    """What the engine has stored; several sessions may share it."""

    version: int = VERSION
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: dict[EdgeLabel, list[Edge]] = field(default_factory=lambda: {label: [] for label in EdgeLabel})
    outgoing: dict[tuple[EdgeLabel, str], list[Edge]] = field(default_factory=dict)
    incoming: dict[tuple[EdgeLabel, str], list[Edge]] = field(default_factory=dict)

    def add_vertex(self, vertex: Vertex) -> None:
        allowed = {declared.name: declared for declared in VERTICES[vertex.label]}
        node = self.nodes.setdefault(vertex.id, Node(vertex.label, vertex.id, {}, {}))
        assert node.label is vertex.label, (node.label, vertex)
        for name, value in vertex.properties.items():
            assert not allowed[name].many, name
            node.properties[name] = value
        for name, values in vertex.sets.items():
            assert allowed[name].many, name
            node.sets.setdefault(name, set()).update(values)

    def add_edge(self, edge: Edge) -> None:
        assert edge.source in self.nodes, edge
        assert edge.target in self.nodes, edge
        assert set(edge.properties) == {declared.name for declared in EDGES[edge.label]}, edge
        self.outgoing.setdefault((edge.label, edge.source), []).append(edge)
        self.incoming.setdefault((edge.label, edge.target), []).append(edge)

    def add_cell(self, cell: Cell) -> None:
        assert self.nodes[cell.vertex].label is cell.label
        self.nodes[cell.vertex].sets.setdefault(cell.property, set()).add(cell.value)

    def drop_cell(self, cell: Cell) -> None:
        if cell.vertex in self.nodes:
            self.nodes[cell.vertex].sets.get(cell.property, set()).discard(cell.value)

    def remove(self, vertex: str) -> None:
        self.nodes.pop(vertex, None)
        for label in EdgeLabel:
            for edge in self.outgoing.pop((label, vertex), []):
                self.incoming[label, edge.target].remove(edge)
            for edge in self.incoming.pop((label, vertex), []):
                self.outgoing[label, edge.source].remove(edge)

    def count(self, label: VertexLabel) -> int:
        return sum(node.label is label for node in self.nodes.values())


Fault = Callable[[str, int], Awaitable[None]]
"""Called with the name of a method and the number of the call, before its work; what it raises the method raises."""


async def no_fault(name: str, number: int) -> None:
    await asyncio.sleep(0)


def steps_of(changes: Changes) -> Iterator[tuple[str, object]]:
    """The parts of a batch in an order in which an engine may make them."""
    for vertex in changes.vertices:
        yield "vertex", replace(vertex, sets={})
        for name, values in vertex.sets.items():
            yield from (("cell", Cell(vertex.label, vertex.id, name, value)) for value in values)
    yield from (("cell", found) for found in changes.cells)
    yield from (("edge", edge) for edge in changes.edges)
    yield from (("setting", setting) for setting in changes.settings)
    yield from (("drop", found) for found in changes.dropped)


class MemoryEngine:
    """A session of one process with the engine.

    Args:
        graph: What is stored.
        fault: What happens at a call.
        transactions: Whether a batch is applied whole or not at all, and refused once it is decided upon.
        shuffle: Seed of the order of answers, which no engine promises.
    """

    def __init__(
        self, graph: Graph, *, fault: Fault = no_fault, transactions: bool = False, shuffle: int | None = None
    ) -> None:
        self.graph = graph
        self.fault = fault
        self.dead = False
        self.requests = 0
        self.split: Callable[[int], int] = lambda size: size
        self.parked: list[tuple[str, object]] = []
        self._transactions = transactions
        self._random = random.Random(shuffle)
        self._shuffled = shuffle is not None

    @property
    def name(self) -> str:
        return "memory engine"

    async def _begin(self, method: str, deadline: Deadline) -> None:
        if deadline.expired:
            raise BudgetExhausted("graph store", "query")
        if self.dead:
            raise BackendUnavailable(self.name)
        self.requests += 1
        await self.fault(method, self.requests)
        if self.dead:
            raise BackendUnavailable(self.name)

    def _order(self, rows: list) -> list:
        if self._shuffled:
            self._random.shuffle(rows)
        return rows

    async def schema_version(self, *, deadline: Deadline) -> int:
        await self._begin("schema_version", deadline)
        return self.graph.version

    async def migrate(self, version: int, *, deadline: Deadline) -> None:
        await self._begin("migrate", deadline)
        self.graph.version = version

    async def create(self, vertex: Vertex, *, deadline: Deadline) -> bool:
        await self._begin("create", deadline)
        if vertex.id in self.graph.nodes:
            return False
        self.graph.add_vertex(vertex)
        await self.fault("created", self.requests)
        return True

    async def records(
        self, ids: Mapping[VertexLabel, Group[str]], *, fields: Group[str] | None = None, deadline: Deadline
    ) -> Mapping[str, Record]:
        await self._begin("records", deadline)
        found = {}
        for label, group in ids.items():
            assert group, label
            for vertex in group:
                node = self.graph.nodes.get(vertex)
                if node is not None and node.label is label:
                    found[vertex] = self._record(node, fields)
        return found

    def _record(self, node: Node, fields: Group[str] | None = None) -> Record:
        return Record(
            {name: value for name, value in node.properties.items() if fields is None or name in fields},
            {
                name: tuple(self._order(list(values)))
                for name, values in node.sets.items()
                if fields is None or name in fields
            },
        )

    def _row(self, node: Node, fields: Group[str] = ()) -> PassageRow:
        properties = {name: value for name, value in node.properties.items() if name in fields}
        return PassageRow(int(node.properties["ref"]), tuple(node.sets.get("ends", ())), properties)

    def _visible(self, vertex: str, access: Access) -> Node | None:
        node = self.graph.nodes.get(vertex)
        if node is None or node.properties["uid"] not in access.uids or int(node.properties["ref"]) >= access.before:
            return None
        if access.readers is not None and not node.sets.get("readers", set()) & set(access.readers):
            return None
        if any(not node.sets.get("metadata", set()) & set(condition) for condition in access.conditions):
            return None
        return node

    async def passages(
        self, refs: Group[int], access: Access, *, fields: Group[str], deadline: Deadline
    ) -> Sequence[PassageRow]:
        await self._begin("passages", deadline)
        found = [self._visible(f"p{ref}", access) for ref in refs]
        return self._order([self._row(node, fields) for node in found if node is not None])

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
        await self._begin("neighbourhood", deadline)
        graph = self.graph
        nodes = [node for ref in seeds if (node := self._visible(f"p{ref}", access)) is not None]
        out = graph.outgoing
        seed_mentions = [
            MentionRow(edge.target, self._row(node), int(edge.properties["kind"]))
            for node in nodes
            for edge in out.get((EdgeLabel.MENTIONS, node.id), [])
        ]
        seed_titles = [
            TitleRow(edge.target, self._row(node), float(edge.properties["weight"]), str(edge.properties["title"]))
            for node in nodes
            for edge in out.get((EdgeLabel.BEARS, node.id), [])
        ]
        links = [
            LinkRow(int(node.properties["ref"]), edge.target, str(edge.properties["fragment"]))
            for node in nodes
            for edge in out.get((EdgeLabel.LINKS_TO, node.id), [])
        ]
        ids = {row.entity for row in seed_mentions} | {row.entity for row in seed_titles} | set(entities)
        found = {vertex: graph.nodes[vertex] for vertex in sorted(ids) if vertex in graph.nodes}
        titles: list[TitleRow] = []
        mentions: list[MentionRow] = []
        for vertex, entity in found.items():
            borne = [
                TitleRow(vertex, self._row(node), float(edge.properties["weight"]), str(edge.properties["title"]))
                for edge in graph.incoming.get((EdgeLabel.BEARS, vertex), [])
                if (node := self._visible(edge.source, access)) is not None
            ]
            titles += sorted(borne, key=lambda row: (-row.weight, row.passage.ref))[:title_limit]
            if int(entity.properties["size"]) <= mention_limit:
                mentions += [
                    MentionRow(vertex, self._row(node), int(edge.properties["kind"]))
                    for edge in graph.incoming.get((EdgeLabel.MENTIONS, vertex), [])
                    if (node := self._visible(edge.source, access)) is not None
                ]
        addresses = {row.address: self._record(graph.nodes[row.address]) for row in links}
        documents = {
            address: [
                self._record(graph.nodes[edge.source]) for edge in graph.incoming.get((EdgeLabel.NAMED_BY, address), [])
            ]
            for address in addresses
        }
        return Neighbourhood(
            self._order(seed_mentions),
            self._order(seed_titles),
            self._order(links),
            {vertex: self._record(node) for vertex, node in found.items()},
            self._order(titles),
            self._order(mentions),
            addresses,
            documents,
        )

    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        await self._begin("apply", deadline)
        steps = list(steps_of(changes))
        if self._transactions:
            if unless in self.graph.nodes:
                raise WriteConflict(self.name)
            self._make(steps)
            return
        now = self.split(len(steps))
        self._make(steps[:now])
        self.parked += steps[now:]
        await self.fault("applied", self.requests)
        if self.dead:
            raise BackendUnavailable(self.name)
        self.release()

    def release(self) -> None:
        """Makes what is left of a batch: what a dead process has sent may arrive late."""
        steps, self.parked = self.parked, []
        self._make(steps)

    def _make(self, steps: Sequence[tuple[str, object]]) -> None:
        graph = self.graph
        for kind, step in steps:
            if kind == "vertex":
                graph.add_vertex(step)
            elif kind == "cell":
                if step.vertex in graph.nodes:
                    graph.add_cell(step)
            elif kind == "edge":
                if step.source in graph.nodes and step.target in graph.nodes:
                    graph.add_edge(step)
            elif kind == "drop":
                graph.drop_cell(step)
            elif step.vertex in graph.nodes:
                graph.nodes[step.vertex].properties[step.property] = step.value

    async def remove(self, ids: Mapping[VertexLabel, Group[str]], *, deadline: Deadline) -> None:
        await self._begin("remove", deadline)
        for group in ids.values():
            for vertex in group:
                self.graph.remove(vertex)

    async def close(self) -> None:
        self.dead = True
