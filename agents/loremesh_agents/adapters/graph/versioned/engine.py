"""What the versioned store needs of a property graph: batches of reads and writes, each one request to the engine."""

from collections.abc import Collection as Group
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel

Value = str | int | float | bytes


@dataclass(frozen=True, slots=True)
class Vertex:
    """A vertex to be made.

    Attributes:
        label: Its kind.
        id: Its `element_id`.
        properties: Of single values.
        sets: Of sets of values.
    """

    label: VertexLabel
    id: str
    properties: Mapping[str, Value] = field(default_factory=dict[str, Value])
    sets: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge to be made, between vertices that are there or are made with it."""

    label: EdgeLabel
    source: str
    target: str
    properties: Mapping[str, Value] = field(default_factory=dict[str, Value])


@dataclass(frozen=True, slots=True)
class Cell:
    """A value of a set property of a vertex that is there or is made with it."""

    label: VertexLabel
    vertex: str
    property: str
    value: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A single value of a vertex that is there, to be put in place of what it has. Two writers may overwrite each other's: for hints, and for what nobody reads any more.

    A `vector` that is set empty is gone from the engine's own index of vectors as well.
    """

    label: VertexLabel
    vertex: str
    property: str
    value: Value


@dataclass(frozen=True, slots=True)
class Changes:
    """A batch of changes; a part of it may be seen before the rest, and after a crash without the rest.

    Attributes:
        vertices: New ones. Where one of the id is there already, its sets grow by what is given and the rest stays or is overwritten.
        edges: New ones; none of them is there already.
        cells: Values that sets gain.
        dropped: Values that sets lose; not an error where they are gone.
        settings: Hints.
    """

    vertices: Sequence[Vertex] = ()
    edges: Sequence[Edge] = ()
    cells: Sequence[Cell] = ()
    dropped: Sequence[Cell] = ()
    settings: Sequence[Setting] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """A vertex as it is read: its single values and its sets."""

    properties: Mapping[str, Value]
    sets: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Access:
    """Which passages a read may see; the engine applies it, inside every traversal and before every limit.

    Attributes:
        uids: Of the collections.
        before: Only passages with a smaller `ref`.
        readers: Only passages that have one of these among their `readers`; None for all.
        conditions: Of each, only passages that have one of these among their `metadata`.
    """

    uids: Sequence[str]
    before: int
    readers: Group[str] | None = None
    conditions: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class PassageRow:
    """A passage as it is read.

    Attributes:
        ref: Its handle.
        ends: Its cells of that name: what may have ended it.
        properties: Those asked for which it has.
    """

    ref: int
    ends: tuple[str, ...]
    properties: Mapping[str, Value]


class Passages:
    """The passages of an answer, without properties: one row for each, however many edges lead to it."""

    def __init__(self) -> None:
        self._rows: dict[int, PassageRow] = {}

    def __call__(self, ref: int, ends: Sequence[str] | None) -> PassageRow:
        """The row of a passage."""
        row = self._rows.get(ref)
        if row is None:
            row = self._rows[ref] = PassageRow(ref, tuple(ends or ()), {})
        return row


@dataclass(frozen=True, slots=True)
class TitleRow:
    """A BEARS edge to an entity (its id) from a passage that may be seen."""

    entity: str
    passage: PassageRow
    weight: float
    title: str


@dataclass(frozen=True, slots=True)
class MentionRow:
    """A MENTIONS edge to an entity (its id) from a passage that may be seen."""

    entity: str
    passage: PassageRow
    kind: int


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A LINKS_TO edge from a passage (its handle) to an address (its id)."""

    passage: int
    address: str
    fragment: str


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What lies around seeds.

    Attributes:
        seed_mentions: MENTIONS edges from seeds that may be seen.
        seed_titles: BEARS edges from seeds that may be seen.
        links: LINKS_TO edges from seeds that may be seen.
        entities: The entities of all these edges and those asked for that are there, by id, with `entity_key`, `uid`, `size` and `counts`.
        titles: BEARS edges to these entities; of each the weightiest first, then by `ref`, and at most a given number.
        mentions: MENTIONS edges to those of the entities whose `size` is within a given one.
        addresses: The addresses of the links, by id, with `address`, `uid` and `counts`.
        documents: Documents that these addresses name, by the address's id: `document_id`, `uid` and `states` of each.
    """

    seed_mentions: Sequence[MentionRow]
    seed_titles: Sequence[TitleRow]
    links: Sequence[LinkRow]
    entities: Mapping[str, Record]
    titles: Sequence[TitleRow]
    mentions: Sequence[MentionRow]
    addresses: Mapping[str, Record]
    documents: Mapping[str, Sequence[Record]]


class GraphEngine(Protocol):
    """A property graph that somebody runs.

    A read sees everything whose write has returned before it began. Errors raised by all methods: `BackendUnavailable`, `BudgetExhausted`
    when the deadline passes (the engine then stops working on the request, too), `StorageFull`.
    """

    @property
    def name(self) -> str:
        """What errors call the engine."""
        ...

    @property
    def requests(self) -> int:
        """Requests sent so far."""
        ...

    async def schema_version(self, *, deadline: Deadline) -> int:
        """Version of the schema that is in force; 0 where there is none."""
        ...

    async def migrate(self, version: int, *, deadline: Deadline) -> None:
        """Takes the schema from the version before to this one; may be repeated after it broke off."""
        ...

    async def create(self, vertex: Vertex, *, deadline: Deadline) -> bool:
        """Makes a vertex unless there is one of its id: of all that ever try, exactly one is told True.

        Raises:
            BackendUnavailable: It failed, or it is not known whether it was made.
        """
        ...

    async def records(
        self, ids: Mapping[VertexLabel, Group[str]], *, fields: Group[str] | None = None, deadline: Deadline
    ) -> Mapping[str, Record]:
        """Those of the vertices that are there, by id.

        Args:
            ids: By label.
            fields: Properties to read; None for all.
            deadline: When the answer is of no more use.
        """
        ...

    async def passages(
        self, refs: Group[int], access: Access, *, fields: Group[str], deadline: Deadline
    ) -> Sequence[PassageRow]:
        """Those of the passages that are there and may be seen, in any order."""
        ...

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
        """What lies around passages and entities.

        Args:
            seeds: Handles of passages.
            entities: Ids of entities besides.
            access: Which passages may be seen.
            title_limit: Most BEARS edges followed from an entity.
            mention_limit: Greatest `size` of an entity whose MENTIONS edges are followed.
            deadline: When the answer is of no more use.
        """
        ...

    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        """Makes changes.

        Args:
            changes: What to change.
            unless: Id of the decision on these changes: an engine with transactions refuses them where that vertex is there.
            deadline: When to give up; parts of the changes may be there then.

        Raises:
            WriteConflict: The decision has been made.
        """
        ...

    async def remove(self, ids: Mapping[VertexLabel, Group[str]], *, deadline: Deadline) -> None:
        """Removes vertices with their edges; not an error where they are gone."""
        ...

    async def close(self) -> None:
        """Frees the engine's connections."""
        ...
