"""What every property graph does for the versioned store."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest

from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Cell,
    Changes,
    Edge,
    GraphEngine,
    PassageRow,
    Setting,
    Value,
    Vertex,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, WriteConflict
from loremesh_agents.domain.graph_schema import VERSION, VERTICES, EdgeLabel, ValueType, VertexLabel
from tests.conformance.small_graphs import (
    EVERYTHING,
    UNDECIDED,
    around,
    bears,
    entity,
    mentions,
    passage,
    plain,
    put,
    read,
    seen,
    soon,
)

# The driver of neo4j leaves its socket to the garbage collector where the caller leaves while it connects.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

NASTY = [
    "plain",
    "",
    " ",
    "'",
    '"',
    "`",
    "\\",
    "\\'",
    "$id",
    "${id}",
    "{id: 1}",
    "') RETURN 1 //",
    "'}) DETACH DELETE n //",
    "`) DETACH DELETE (n",
    "g.V().drop()",
    "'); g.V().drop(); ('",
    "line\nbreak\ttab",
    "日本語",
    "e\u0301 and é",
    "😀",
    "\u2028",
    "\x1f",
    "\x7f",
    "x" * 40_000,
]


# The schema.


async def test_the_schema_is_in_force_and_its_migration_may_be_repeated(engine: GraphEngine) -> None:
    assert await engine.schema_version(deadline=soon()) == VERSION
    await put(engine, passage(1))
    for version in range(1, VERSION + 1):
        await engine.migrate(version, deadline=Deadline.after(60))
    assert await engine.schema_version(deadline=soon()) == VERSION
    assert await seen(engine, EVERYTHING, [1]) == {1}


async def test_an_engine_has_a_name_and_counts_its_requests(engine: GraphEngine) -> None:
    assert engine.name
    before = engine.requests
    await engine.records({VertexLabel.CLAIM: ["c1"]}, deadline=soon())
    assert engine.requests > before


# Creating.


async def test_the_first_to_create_is_told_so_and_nobody_else(engine: GraphEngine) -> None:
    claims = [Vertex(VertexLabel.CLAIM, "c1", {"claim": f"{number}"}) for number in range(12)]
    told = await asyncio.gather(*(engine.create(claim, deadline=soon()) for claim in claims))
    assert sorted(told) == [False] * 11 + [True]
    assert await engine.create(claims[0], deadline=soon()) is False
    winner = claims[told.index(True)]
    assert await read(engine, VertexLabel.CLAIM, "c1") == {"c1": (dict(winner.properties), {})}


async def test_of_many_creations_each_has_its_one_winner(engine: GraphEngine) -> None:
    ids = [f"c{number}" for number in range(20) for _ in range(3)]
    told = await asyncio.gather(*(engine.create(Vertex(VertexLabel.CLAIM, id_), deadline=soon()) for id_ in ids))
    assert sum(told) == 20
    assert {id_ for id_, won in zip(ids, told, strict=True) if won} == set(ids)


async def test_the_same_id_under_two_labels_is_two_vertices_or_refused(engine: GraphEngine) -> None:
    # Ids are unique in the store, so nobody relies on either; but a lookup by label never finds a vertex of another.
    assert await engine.create(Vertex(VertexLabel.CLAIM, "same", {"claim": "c"}), deadline=soon())
    assert await read(engine, VertexLabel.DECISION, "same") == {}


# Reading vertices.


async def test_records_are_read_by_id_over_several_labels(engine: GraphEngine) -> None:
    document = Vertex(VertexLabel.DOCUMENT, "d1", {"document_id": "one", "uid": "u1"}, {"states": ["1:{}", "2:{}"]})
    await put(engine, document, entity("ada", size=7, counts=["1:1,0,0"]), passage(3, ends=["4:"]))
    found = await engine.records(
        {
            VertexLabel.DOCUMENT: ["d1", "d2"],
            VertexLabel.ENTITY: ["eada"],
            VertexLabel.PASSAGE: [],
            VertexLabel.BUCKET: ["b1"],
        },
        deadline=soon(),
    )
    assert plain(found) == {
        "d1": ({"document_id": "one", "uid": "u1"}, {"states": {"1:{}", "2:{}"}}),
        "eada": ({"entity_key": "ada", "uid": "u1", "size": 7}, {"counts": {"1:1,0,0"}}),
    }
    assert await engine.records({}, deadline=soon()) == {}


async def test_only_the_fields_asked_for_are_read(engine: GraphEngine) -> None:
    await put(engine, passage(3, ends=["4:"], body="long", words="w"), entity("ada", size=7, counts=["1:1,0,0"]))
    found = await engine.records(
        {VertexLabel.PASSAGE: ["p3"], VertexLabel.ENTITY: ["eada"]}, fields=["uid", "ends", "size"], deadline=soon()
    )
    assert plain(found) == {"p3": ({"uid": "u1"}, {"ends": {"4:"}}), "eada": ({"uid": "u1", "size": 7}, {})}
    assert plain(await engine.records({VertexLabel.ENTITY: ["eada"]}, fields=[], deadline=soon())) == {"eada": ({}, {})}


async def test_numbers_keep_64_bits_and_vectors_their_bytes(engine: GraphEngine) -> None:
    largest, smallest = (1 << 63) - 1, -(1 << 63)
    vector = np.array([0.1, -1.5, 1e-20, 0.0, np.float32(math.pi)], dtype="<f4").tobytes()
    await put(
        engine,
        passage(largest, vector=vector),
        entity("least", size=smallest),
        entity("beyond32", size=1 << 40),
        passage(1 << 31),
        bears(largest, "least", 1 / 3),
    )
    assert (await read(engine, VertexLabel.PASSAGE, f"p{largest}"))[f"p{largest}"][0] == {
        "ref": largest,
        "uid": "u1",
        "vector": vector,
    }
    sizes = await read(engine, VertexLabel.ENTITY, "eleast", "ebeyond32")
    assert {id_: properties["size"] for id_, (properties, _) in sizes.items()} == {
        "eleast": smallest,
        "ebeyond32": 1 << 40,
    }
    access = replace(EVERYTHING, before=largest)
    assert await seen(engine, access, [largest, 1 << 31, 1]) == {1 << 31}
    access = Access(("u1",), before=(1 << 31) + 1)
    (row,) = await engine.passages([1 << 31], access, fields=["vector", "ref"], deadline=soon())
    assert row == PassageRow(1 << 31, (), {"ref": 1 << 31})


async def test_a_vector_of_another_set_is_its_own_vertex_whoever_gives_it(engine: GraphEngine) -> None:
    vector = np.array([0.25, -1.5], dtype="<f4").tobytes()
    properties: dict[str, Value] = {"ref": 1, "uid": "u1", "generation": 3, "model": "m 'ü", "vector": vector}
    given = Vertex(VertexLabel.VECTOR, "v3x1", properties, {"made": ["4:"]})
    await put(engine, passage(1, vector=vector), passage(2), given)
    # Once more, by another version.
    await put(engine, replace(given, sets={"made": ["5:"]}))
    wanted = {VertexLabel.VECTOR: ["v3x1", "v3x2"]}
    found = await engine.records(wanted, deadline=soon())
    assert found.keys() == {"v3x1"}
    assert {name: found["v3x1"].properties[name] for name in properties} == properties
    assert set(found["v3x1"].sets["made"]) == {"4:", "5:"}
    # What passages hold themselves goes when nobody needs it.
    await put(engine, *(Setting(VertexLabel.PASSAGE, f"p{ref}", "vector", b"") for ref in (1, 2, 3)))
    rows = await engine.passages([1, 2, 3], EVERYTHING, fields=["vector"], deadline=soon())
    assert {row.ref for row in rows} == {1, 2}
    assert not any(row.properties.get("vector") for row in rows)
    await engine.remove(wanted, deadline=soon())
    assert await engine.records(wanted, deadline=soon()) == {}


@pytest.mark.parametrize("dimension", [1, 2, 384])
async def test_vectors_of_any_length_are_read_as_they_were_written(engine: GraphEngine, dimension: int) -> None:
    vectors = np.random.default_rng(dimension).standard_normal((20, dimension)).astype("<f4")
    await put(engine, *(passage(ref, vector=vectors[ref].tobytes()) for ref in range(20)))
    rows = await engine.passages(range(20), EVERYTHING, fields=["vector"], deadline=soon())
    assert {row.ref: row.properties["vector"] for row in rows} == {ref: vectors[ref].tobytes() for ref in range(20)}


# Sets.


async def test_sets_grow_and_shrink_and_have_each_value_once(engine: GraphEngine) -> None:
    def cell(value: str) -> Cell:
        return Cell(VertexLabel.ENTITY, "eada", "counts", value)

    await put(engine, entity("ada", counts=["1:a"]), cell("2:b"))
    await put(engine, cell("2:b"), cell("3:c"), cell("3:c"))
    assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {"counts": {"1:a", "2:b", "3:c"}}
    await put(
        engine, cell("4:d"), dropped=[cell("1:a"), cell("2:b"), cell("9:never"), replace(cell("1:a"), vertex="egone")]
    )
    assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {"counts": {"3:c", "4:d"}}
    await put(engine, dropped=[cell("3:c"), cell("4:d")])
    assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {}
    await put(engine, cell("5:e"))
    assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {"counts": {"5:e"}}


async def test_a_vertex_that_is_there_keeps_its_sets_and_gains(engine: GraphEngine) -> None:
    await put(engine, passage(1, readers=["*"], ends=["4:"], body="old"))
    await put(engine, passage(1, readers=["*", "g:staff"], metadata=["k\x1fv"], body="new"))
    properties, sets = (await read(engine, VertexLabel.PASSAGE, "p1"))["p1"]
    assert properties["body"] in {"old", "new"}
    assert sets == {"readers": {"*", "g:staff"}, "metadata": {"k\x1fv"}, "ends": {"4:"}}


async def test_writers_at_once_lose_nothing_that_sets_gain(engine: GraphEngine) -> None:
    await put(engine, entity("ada"))
    cells = [Cell(VertexLabel.ENTITY, "eada", "counts", f"{number}:x") for number in range(24)]
    await asyncio.gather(*(put(engine, cell) for cell in cells))
    assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {"counts": {cell.value for cell in cells}}
    await asyncio.gather(*(put(engine, dropped=[cell]) for cell in cells[:12]))
    assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {
        "counts": {cell.value for cell in cells[12:]}
    }


async def test_a_set_holds_many_and_long_values(engine: GraphEngine) -> None:
    values = [f"{number}:{'é' * 3_000}" for number in range(60)]
    await put(
        engine,
        Vertex(VertexLabel.BUCKET, "b1"),
        *(Cell(VertexLabel.BUCKET, "b1", "postings", value) for value in values),
    )
    assert (await read(engine, VertexLabel.BUCKET, "b1"))["b1"] == ({}, {"postings": set(values)})


async def test_settings_replace_a_value_and_make_no_vertex(engine: GraphEngine) -> None:
    await put(engine, entity("ada", size=1))
    await put(
        engine,
        Setting(VertexLabel.ENTITY, "eada", "size", 5),
        Setting(VertexLabel.ENTITY, "enone", "size", 5),
    )
    found = await read(engine, VertexLabel.ENTITY, "eada", "enone")
    assert found == {"eada": ({"entity_key": "ada", "uid": "u1", "size": 5}, {})}


# Writing.


async def test_a_big_batch_is_there_when_apply_has_returned(engine: GraphEngine) -> None:
    passages = [passage(ref, body="text " * 20, words="w" * 50) for ref in range(1_500)]
    entities = [entity(f"{number}", size=20) for number in range(500)]
    edges = [mentions(ref, f"{(ref + step) % 500}") for ref in range(1_000) for step in range(10)]
    await put(engine, *passages, *entities, *edges)
    assert await seen(engine, EVERYTHING, range(1_600)) == set(range(1_500))
    found = await around(engine, range(1_000), mention_limit=0)
    assert len(found.seed_mentions) == 10_000
    assert len(found.entities) == 500
    assert len((await around(engine, (), ["7"])).mentions) == 20


async def test_parts_of_one_batch_may_need_one_another(engine: GraphEngine) -> None:
    await put(
        engine,
        mentions(1, "ada"),
        Cell(VertexLabel.ENTITY, "eada", "counts", "1:1,0,0"),
        passage(1),
        entity("ada", size=1),
    )
    found = await around(engine, [1])
    assert [row.passage.ref for row in found.mentions] == [1]
    assert found.entities["eada"].sets["counts"] == ("1:1,0,0",)


async def test_nothing_to_change_is_no_error(engine: GraphEngine) -> None:
    await engine.apply(Changes(), unless=UNDECIDED, deadline=soon())


async def test_vertices_are_removed_with_their_edges(web: GraphEngine) -> None:
    await web.remove({VertexLabel.PASSAGE: ["p3", "p77"], VertexLabel.ENTITY: ["ebob"]}, deadline=soon())
    found = await around(web, [1, 2], ["bob"])
    assert set(found.entities) == {"eada", "emany"}
    assert [row.passage.ref for row in found.titles] == [4, 1]
    assert {(row.entity, row.passage.ref) for row in found.mentions} == {("emany", 2), ("emany", 4), ("eada", 5)}
    assert await seen(web, EVERYTHING, range(9)) == {1, 2, 4, 5, 6}
    await web.remove({VertexLabel.PASSAGE: ["p3"]}, deadline=soon())
    await web.remove({}, deadline=soon())
    # What comes again under an old id has nothing of what was there.
    await put(web, entity("bob", size=0))
    assert list((await around(web, (), ["bob"])).mentions) == []


async def test_a_vertex_with_many_edges_is_removed(engine: GraphEngine) -> None:
    refs = range(12_000)
    await put(engine, entity("hub", size=12_000), *(passage(ref) for ref in refs))
    await put(engine, *(mentions(ref, "hub") for ref in refs))
    await engine.remove({VertexLabel.ENTITY: ["ehub"]}, deadline=soon())
    assert await read(engine, VertexLabel.ENTITY, "ehub") == {}
    assert list((await around(engine, range(50))).seed_mentions) == []
    assert await seen(engine, EVERYTHING, range(50)) == set(range(50))


# What comes from outside is data.


def _texts() -> list[tuple[VertexLabel, str, bool]]:
    return [
        (label, declared.name, declared.many)
        for label, properties in VERTICES.items()
        for declared in properties
        if declared.type is ValueType.TEXT
    ]


@pytest.mark.parametrize(("label", "name", "many"), _texts(), ids=lambda value: getattr(value, "value", value))
async def test_any_text_is_kept_as_it_is(engine: GraphEngine, label: VertexLabel, name: str, many: bool) -> None:
    if many:
        values = [f"1:{text}" for text in NASTY]
        await put(
            engine, Vertex(label, "v", {}, {name: values[:5]}), *(Cell(label, "v", name, value) for value in values[5:])
        )
        assert (await read(engine, label, "v"))["v"][1] == {name: set(values)}
        await put(engine, dropped=[Cell(label, "v", name, value) for value in values[1:]])
        assert (await read(engine, label, "v"))["v"][1] == {name: set(values[:1])}
    else:
        # The uid of a collection is ours, and short: engines may keep an index of it.
        texts = [text for text in NASTY if name != "uid" or len(text) < 1_000]
        await put(engine, *(Vertex(label, f"v{number}", {name: text}) for number, text in enumerate(texts)))
        await put(engine, *(Setting(label, f"v{number}", name, text) for number, text in enumerate(reversed(texts))))
        found = await read(engine, label, *(f"v{number}" for number in range(len(texts))))
        assert [found[f"v{number}"][0][name] for number in range(len(texts))] == texts[::-1]


async def test_any_text_of_edges_and_of_access_is_data(engine: GraphEngine) -> None:
    texts = [text for text in NASTY if 0 < len(text) < 1_000]
    address = Vertex(VertexLabel.ADDRESS, "a1", {"address": "x", "uid": "u1"})
    await put(
        engine,
        entity("ada"),
        address,
        *(passage(ref, uid=text, readers=[text], metadata=[text]) for ref, text in enumerate(texts)),
        *(bears(ref, "ada", 1.0, text) for ref, text in enumerate(texts)),
        *(Edge(EdgeLabel.LINKS_TO, f"p{ref}", "a1", {"fragment": text}) for ref, text in enumerate(texts)),
    )
    for ref, text in enumerate(texts):
        access = Access((text,), 1 << 40, (text, "other"), ((text,),))
        found = await around(engine, range(len(texts)), access=access)
        assert [(row.passage.ref, row.title) for row in found.titles] == [(ref, text)]
        assert [(row.passage, row.fragment) for row in found.links] == [(ref, text)]
    assert await seen(engine, replace(EVERYTHING, uids=texts), range(len(texts))) == set(range(len(texts)))


async def test_an_id_from_outside_is_data(engine: GraphEngine) -> None:
    await put(engine, passage(1))
    assert await read(engine, VertexLabel.PASSAGE, *(text for text in NASTY if text)) == {}
    await engine.remove({VertexLabel.PASSAGE: [text for text in NASTY if text]}, deadline=soon())
    assert await seen(engine, EVERYTHING, [1]) == {1}


# Decisions and time.


async def test_changes_are_refused_once_they_are_decided(engine: GraphEngine) -> None:
    await put(engine, entity("ada"))
    assert await engine.create(Vertex(VertexLabel.DECISION, "d5", {"decision": "{}"}), deadline=soon())
    changes = Changes(vertices=[passage(1)], cells=[Cell(VertexLabel.ENTITY, "eada", "counts", "5:1")])
    try:
        await engine.apply(changes, unless="d5", deadline=soon())
    except WriteConflict:
        assert await seen(engine, EVERYTHING, [1]) == set()
        assert (await read(engine, VertexLabel.ENTITY, "eada"))["eada"][1] == {}
    else:
        # An engine without transactions: its facts are there and count for nothing.
        assert await seen(engine, EVERYTHING, [1]) == {1}
    await engine.apply(changes, unless="d6", deadline=soon())
    assert await seen(engine, EVERYTHING, [1]) == {1}


def _calls(engine: GraphEngine, deadline: Deadline) -> dict[str, Callable[[], Awaitable[object]]]:
    limits = {"title_limit": 5, "mention_limit": 5}
    changes = Changes(vertices=[passage(9)])
    return {
        "create": lambda: engine.create(Vertex(VertexLabel.CLAIM, "c9"), deadline=deadline),
        "records": lambda: engine.records({VertexLabel.PASSAGE: ["p1"]}, deadline=deadline),
        "passages": lambda: engine.passages([1], EVERYTHING, fields=[], deadline=deadline),
        "neighbourhood": lambda: engine.neighbourhood([1], ["eada"], EVERYTHING, **limits, deadline=deadline),
        "apply": lambda: engine.apply(changes, unless=UNDECIDED, deadline=deadline),
        "remove": lambda: engine.remove({VertexLabel.PASSAGE: ["p1"]}, deadline=deadline),
        "schema_version": lambda: engine.schema_version(deadline=deadline),
    }


@pytest.mark.parametrize(
    "name", ["create", "records", "passages", "neighbourhood", "apply", "remove", "schema_version"]
)
async def test_a_passed_deadline_is_said_and_nothing_is_done(engine: GraphEngine, name: str) -> None:
    await put(engine, passage(1))
    with pytest.raises(BudgetExhausted):
        await _calls(engine, Deadline.after(-1))[name]()
    assert await seen(engine, EVERYTHING, [1, 9]) == {1}
    assert await read(engine, VertexLabel.CLAIM, "c9") == {}


async def test_a_deadline_in_mid_call_ends_it_and_harms_nobody(engine: GraphEngine) -> None:
    changes = Changes(vertices=[passage(ref, body="x" * 1_000) for ref in range(20_000)])
    begun = time.monotonic()
    with pytest.raises(BudgetExhausted):
        await engine.apply(changes, unless=UNDECIDED, deadline=Deadline.after(0.1))
    assert time.monotonic() - begun < 5
    await put(engine, passage(50_000))
    assert await seen(engine, EVERYTHING, [50_000]) == {50_000}


async def test_reads_end_at_their_deadline_too(engine: GraphEngine) -> None:
    await put(engine, *(passage(ref) for ref in range(3_000)), entity("hub", size=3_000))
    await put(engine, *(mentions(ref, "hub") for ref in range(3_000)))
    with pytest.raises(BudgetExhausted):
        await engine.neighbourhood(
            range(3_000), ["ehub"], EVERYTHING, title_limit=5, mention_limit=5_000, deadline=Deadline.after(0.003)
        )
    assert len((await around(engine, (), ["hub"], mention_limit=5_000)).mentions) == 3_000


async def test_callers_that_leave_harm_nobody(engine: GraphEngine) -> None:
    await put(engine, *(passage(ref) for ref in range(2_000)))

    async def work() -> None:
        await engine.passages(range(2_000), EVERYTHING, fields=["uid"], deadline=soon())

    left = 0
    for turns in range(12):
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        # On a busy machine a turn may take longer than the answer.
        task.cancel()
        await asyncio.wait([task])
        left += task.cancelled()
    assert left
    rounds = await asyncio.gather(*(seen(engine, EVERYTHING, range(ref, ref + 5)) for ref in range(20)))
    assert rounds == [set(range(ref, ref + 5)) for ref in range(20)]


async def test_many_reads_at_once_are_served(engine: GraphEngine) -> None:
    await put(engine, *(passage(ref) for ref in range(100)))
    rounds = await asyncio.gather(*(seen(engine, EVERYTHING, [ref]) for ref in range(100)))
    assert rounds == [{ref} for ref in range(100)]


async def test_a_read_sees_what_was_written_before_it_began(engine: GraphEngine) -> None:
    for ref in range(30):
        await put(engine, passage(ref))
        assert await seen(engine, EVERYTHING, range(31)) == set(range(ref + 1))
