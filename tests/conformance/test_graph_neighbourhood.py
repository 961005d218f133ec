"""What every property graph says of passages that may be seen, and of what lies around them."""

from dataclasses import fields, replace

import pytest

from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Edge,
    GraphEngine,
    Neighbourhood,
    PassageRow,
    Vertex,
)
from loremesh_agents.domain.graph_schema import EdgeLabel, VertexLabel
from tests.conformance.small_graphs import (
    EVERYTHING,
    around,
    bears,
    entity,
    mentions,
    passage,
    plain,
    put,
    seen,
    soon,
)

# Which passages may be seen.


@pytest.fixture
async def guarded(engine: GraphEngine) -> GraphEngine:
    await put(
        engine,
        passage(1, readers=["*"], metadata=["lang\x1fen", "team\x1fa"]),
        passage(2, readers=["g:staff"], metadata=["lang\x1fde", "team\x1fa"]),
        passage(3, readers=["g:staff", "g:legal"], metadata=["lang\x1fen"]),
        passage(4, uid="u2", readers=["*"], metadata=["lang\x1fen", "team\x1fa"]),
        passage(5, readers=[], metadata=[]),
    )
    return engine


@pytest.mark.parametrize(
    ("access", "expected"),
    [
        (EVERYTHING, {1, 2, 3, 5}),
        (replace(EVERYTHING, uids=("u1", "u2")), {1, 2, 3, 4, 5}),
        (replace(EVERYTHING, uids=("u2",)), {4}),
        (replace(EVERYTHING, uids=("u3",)), set()),
        (replace(EVERYTHING, uids=()), set()),
        (replace(EVERYTHING, before=3), {1, 2}),
        (replace(EVERYTHING, before=0), set()),
        (replace(EVERYTHING, readers=("*",)), {1}),
        (replace(EVERYTHING, readers=("*", "g:legal")), {1, 3}),
        (replace(EVERYTHING, readers={"g:staff"}), {2, 3}),
        (replace(EVERYTHING, readers=()), set()),
        (replace(EVERYTHING, conditions=(("lang\x1fen",),)), {1, 3}),
        (replace(EVERYTHING, conditions=(("lang\x1fen", "lang\x1fde"),)), {1, 2, 3}),
        (replace(EVERYTHING, conditions=(("lang\x1fen", "lang\x1fde"), ("team\x1fa",))), {1, 2}),
        (replace(EVERYTHING, conditions=(("lang\x1fen",), ("lang\x1fde",))), set()),
        (replace(EVERYTHING, conditions=((),)), set()),
        (Access(("u1", "u2"), 4, ("*", "g:legal"), (("team\x1fa", "lang\x1fen"),)), {1, 3}),
    ],
)
async def test_access_is_applied_to_passages_and_to_every_edge(
    guarded: GraphEngine, access: Access, expected: set[int]
) -> None:
    refs = range(1, 7)
    assert await seen(guarded, access, refs) == expected
    edges = [edge for ref in range(1, 6) for edge in (bears(ref, "ada", 1.0), mentions(ref, "ada"))]
    links = [Edge(EdgeLabel.LINKS_TO, f"p{ref}", "a1", {"fragment": "f"}) for ref in range(1, 6)]
    address = Vertex(VertexLabel.ADDRESS, "a1", {"address": "x", "uid": "u1"})
    await put(guarded, entity("ada", size=5), address, *edges, *links)
    found = await around(guarded, list(refs), access=access)
    assert {row.passage.ref for row in found.seed_mentions} == expected
    assert {row.passage.ref for row in found.seed_titles} == expected
    assert {row.passage for row in found.links} == expected
    for part in (found.titles, found.mentions):
        assert {row.passage.ref for row in part} == expected
    assert set(found.entities) == ({"eada"} if expected else set())
    named = await around(guarded, (), ["ada"], access=access)
    for part in (named.titles, named.mentions):
        assert {row.passage.ref for row in part} == expected
    assert set(named.entities) == {"eada"}


async def test_passages_have_their_ends_and_the_fields_asked_for(engine: GraphEngine) -> None:
    await put(engine, passage(1, ends=["5:", "6:"], body="text", words="a b"), passage(2))
    rows = {
        row.ref: row for row in await engine.passages([1, 2, 3], EVERYTHING, fields=["body", "uid"], deadline=soon())
    }
    assert set(rows) == {1, 2}
    assert set(rows[1].ends) == {"5:", "6:"}
    assert rows[1].properties == {"body": "text", "uid": "u1"}
    assert rows[2] == PassageRow(2, (), {"uid": "u1"})
    assert await engine.passages([], EVERYTHING, fields=["body"], deadline=soon()) == []


# The neighbourhood.


async def test_a_neighbourhood_has_all_its_parts(web: GraphEngine) -> None:
    found = await around(web, [1, 2], ["far", "unknown"], mention_limit=3)
    assert {(row.passage.ref, row.entity, row.kind) for row in found.seed_mentions} == {
        (1, "ebob", 1),
        (2, "ebob", 2),
        (2, "emany", 1),
    }
    assert [(row.passage.ref, row.entity, row.weight, row.title) for row in found.seed_titles] == [
        (1, "eada", 2.0, "Ada")
    ]
    assert sorted((row.passage, row.address, row.fragment) for row in found.links) == [
        (1, "a1", "end"),
        (1, "a1", "top"),
        (2, "a2", ""),
    ]
    assert plain(found.entities) == {
        "eada": ({"entity_key": "ada", "uid": "u1", "size": 3}, {"counts": {"1:2,1,0"}}),
        "ebob": ({"entity_key": "bob", "uid": "u1", "size": 2}, {}),
        "emany": ({"entity_key": "many", "uid": "u1", "size": 50}, {}),
        "efar": ({"entity_key": "far", "uid": "u1", "size": 1}, {}),
    }
    titles = [(row.entity, row.passage.ref, row.weight, row.title) for row in found.titles]
    assert [row for row in titles if row[0] == "eada"] == [
        ("eada", 3, 5.0, "Ada Lovelace"),
        ("eada", 4, 5.0, "ADA"),
        ("eada", 1, 2.0, "Ada"),
    ]
    assert sorted(row for row in titles if row[0] != "eada") == [("ebob", 5, 1.0, "Bob"), ("efar", 6, 1.0, "Far")]
    assert {(row.entity, row.passage.ref, row.kind) for row in found.mentions} == {
        ("eada", 5, 2),
        ("ebob", 1, 1),
        ("ebob", 2, 2),
        ("efar", 6, 1),
    }
    assert [row.passage for row in found.titles if row.passage.ref == 3] == [PassageRow(3, ("9:",), {})]
    assert plain(found.addresses) == {
        "a1": ({"address": "http://one", "uid": "u1"}, {"counts": {"1:1"}}),
        "a2": ({"address": "http://two", "uid": "u1"}, {}),
    }
    documents = {
        (address, str(document.properties["document_id"]), frozenset(document.sets["states"]))
        for address, group in found.documents.items()
        for document in group
    }
    assert documents == {("a1", "one", frozenset({"1:{}"})), ("a1", "two", frozenset({"1:{}", "2:{}"}))}


async def test_a_neighbourhood_of_nothing_is_empty(web: GraphEngine) -> None:
    for found in (await around(web), await around(web, [77], ["unknown"])):
        assert [len(getattr(found, part.name)) for part in fields(Neighbourhood)] == [0] * 8


async def test_entities_alone_have_their_titles_and_mentions(web: GraphEngine) -> None:
    found = await around(web, (), ["ada"])
    assert [row.passage.ref for row in found.titles] == [3, 4, 1]
    assert [row.passage.ref for row in found.mentions] == [5]
    assert (list(found.seed_mentions), list(found.seed_titles), list(found.links)) == ([], [], [])


async def test_mentions_are_followed_up_to_a_size_and_from_it_none(web: GraphEngine) -> None:
    assert {row.entity for row in (await around(web, [2], mention_limit=50)).mentions} == {"ebob", "emany"}
    assert {row.entity for row in (await around(web, [2], mention_limit=49)).mentions} == {"ebob"}
    found = await around(web, [2], mention_limit=1)
    assert list(found.mentions) == []
    assert set(found.entities) == {"ebob", "emany"}


async def test_of_each_entity_the_weightiest_titles_are_followed_after_access(engine: GraphEngine) -> None:
    hidden, shown = range(100, 110), range(110, 130)
    await put(
        engine,
        entity("ada", size=0),
        entity("bob", size=0),
        *(passage(ref, readers=["g:x"]) for ref in hidden),
        *(passage(ref) for ref in shown),
        *(bears(ref, "ada", 100.0) for ref in hidden),
        *(bears(ref, "ada", float(ref % 4)) for ref in reversed(shown)),
        *(bears(ref, "bob", 1.0) for ref in reversed(shown)),
    )
    found = await around(engine, (), ["ada", "bob"], replace(EVERYTHING, readers=("*",)), title_limit=7)
    order = sorted(shown, key=lambda ref: (-(ref % 4), ref))
    assert [row.passage.ref for row in found.titles if row.entity == "eada"] == order[:7]
    assert [row.passage.ref for row in found.titles if row.entity == "ebob"] == list(shown[:7])
    assert list((await around(engine, (), ["ada"], title_limit=0)).titles) == []


async def test_a_seed_that_may_not_be_seen_is_no_bridge(web: GraphEngine) -> None:
    found = await around(web, [1, 2], access=replace(EVERYTHING, before=2))
    assert set(found.entities) == {"eada", "ebob"}
    assert {row.passage.ref for row in found.seed_mentions} == {1}
    assert set(found.addresses) == {"a1"}
    assert {row.passage.ref for row in found.mentions} == {1}


async def test_a_seed_twice_changes_nothing(web: GraphEngine) -> None:
    once, twice = await around(web, [1], ["bob"]), await around(web, [1, 1], ["bob", "bob"])
    assert sorted(map(repr, once.titles)) == sorted(map(repr, twice.titles))
    assert sorted(map(repr, once.mentions)) == sorted(map(repr, twice.mentions))
    assert len(once.seed_mentions) == len(twice.seed_mentions)
