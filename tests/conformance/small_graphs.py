"""Graphs of a few vertices, as they are written to an engine and read from it."""

from collections.abc import Iterable, Mapping, Sequence

from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Cell,
    Changes,
    Edge,
    GraphEngine,
    Neighbourhood,
    Record,
    Setting,
    Value,
    Vertex,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel

EVERYTHING = Access(uids=("u1",), before=1 << 62)
UNDECIDED = "d0"


def soon() -> Deadline:
    return Deadline.after(30)


def passage(
    ref: int,
    *,
    uid: str = "u1",
    readers: Sequence[str] = ("*",),
    metadata: Sequence[str] = (),
    ends: Sequence[str] = (),
    **properties: Value,
) -> Vertex:
    sets = {"readers": readers, "metadata": metadata, "ends": ends}
    return Vertex(
        VertexLabel.PASSAGE,
        f"p{ref}",
        {"ref": ref, "uid": uid, **properties},
        {name: values for name, values in sets.items() if values},
    )


def entity(name: str, *, size: int = 0, counts: Sequence[str] = ()) -> Vertex:
    properties: dict[str, Value] = {"entity_key": name, "uid": "u1", "size": size}
    return Vertex(VertexLabel.ENTITY, f"e{name}", properties, {"counts": counts} if counts else {})


def bears(ref: int, name: str, weight: float, title: str = "A title") -> Edge:
    return Edge(EdgeLabel.BEARS, f"p{ref}", f"e{name}", {"weight": weight, "title": title})


def mentions(ref: int, name: str, kind: int = 1) -> Edge:
    return Edge(EdgeLabel.MENTIONS, f"p{ref}", f"e{name}", {"kind": kind})


async def put(engine: GraphEngine, *things: Vertex | Edge | Cell | Setting, dropped: Sequence[Cell] = ()) -> None:
    changes = Changes(
        vertices=[thing for thing in things if isinstance(thing, Vertex)],
        edges=[thing for thing in things if isinstance(thing, Edge)],
        cells=[thing for thing in things if isinstance(thing, Cell)],
        dropped=dropped,
        settings=[thing for thing in things if isinstance(thing, Setting)],
    )
    await engine.apply(changes, unless=UNDECIDED, deadline=soon())


async def read(
    engine: GraphEngine, label: VertexLabel, *ids: str
) -> dict[str, tuple[dict[str, Value], dict[str, set[str]]]]:
    """Single values and sets that are not empty, by id."""
    return plain(await engine.records({label: ids}, deadline=soon()))


def plain(records: Mapping[str, Record]) -> dict[str, tuple[dict[str, Value], dict[str, set[str]]]]:
    found: dict[str, tuple[dict[str, Value], dict[str, set[str]]]] = {}
    for id_, record in records.items():
        for values in record.sets.values():
            assert len(set(values)) == len(values), "a set has a value twice"
        found[id_] = (
            dict(record.properties),
            {name: set(values) for name, values in record.sets.items() if values},
        )
    return found


async def seen(engine: GraphEngine, access: Access, refs: Iterable[int]) -> set[int]:
    return {row.ref for row in await engine.passages(list(refs), access, fields=[], deadline=soon())}


async def around(
    engine: GraphEngine,
    seeds: Sequence[int] = (),
    entities: Sequence[str] = (),
    access: Access = EVERYTHING,
    *,
    title_limit: int = 10,
    mention_limit: int = 100,
) -> Neighbourhood:
    return await engine.neighbourhood(
        seeds,
        [f"e{name}" for name in entities],
        access,
        title_limit=title_limit,
        mention_limit=mention_limit,
        deadline=soon(),
    )


async def woven(engine: GraphEngine) -> GraphEngine:
    """Passages 1 and 2 are seeds; 3 to 6 lie around them."""
    await put(
        engine,
        *(passage(ref, ends=["9:"] if ref == 3 else []) for ref in range(1, 7)),
        entity("ada", size=3, counts=["1:2,1,0"]),
        entity("bob", size=2),
        entity("many", size=50),
        entity("far", size=1),
        bears(1, "ada", 2.0, "Ada"),
        bears(3, "ada", 5.0, "Ada Lovelace"),
        bears(4, "ada", 5.0, "ADA"),
        bears(5, "bob", 1.0, "Bob"),
        bears(6, "far", 1.0, "Far"),
        mentions(1, "bob"),
        mentions(2, "bob", 2),
        mentions(2, "many"),
        mentions(4, "many"),
        mentions(5, "ada", 2),
        mentions(6, "far"),
        Vertex(VertexLabel.ADDRESS, "a1", {"address": "http://one", "uid": "u1"}, {"counts": ["1:1"]}),
        Vertex(VertexLabel.ADDRESS, "a2", {"address": "http://two", "uid": "u1"}),
        Vertex(VertexLabel.DOCUMENT, "d1", {"document_id": "one", "uid": "u1"}, {"states": ["1:{}"]}),
        Vertex(VertexLabel.DOCUMENT, "d2", {"document_id": "two", "uid": "u1"}, {"states": ["1:{}", "2:{}"]}),
        Edge(EdgeLabel.HAS_PASSAGE, "d1", "p1"),
        Edge(EdgeLabel.LINKS_TO, "p1", "a1", {"fragment": "top"}),
        Edge(EdgeLabel.LINKS_TO, "p1", "a1", {"fragment": "end"}),
        Edge(EdgeLabel.LINKS_TO, "p2", "a2", {"fragment": ""}),
        Edge(EdgeLabel.NAMED_BY, "d1", "a1"),
        Edge(EdgeLabel.NAMED_BY, "d2", "a1"),
    )
    return engine
