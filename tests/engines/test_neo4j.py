"""What is Neo4j's alone: its server, its plans, its indexes."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from neo4j import AsyncDriver, AsyncGraphDatabase

from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.graph.neo4j import Address, Connection, Neo4jEngine, statements
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import Access, Cell, Changes, PassageRow, Setting, Value, Vertex
from loremesh_agents.adapters.graph.versioned.vectors import VectorPlaces
from loremesh_agents.adapters.text.neo4j import Neo4jTextIndex
from loremesh_agents.adapters.vector.neo4j import Neo4jVectorIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, ConfigurationError
from loremesh_agents.domain.graph_schema import VERSION, EdgeLabel, VertexLabel
from loremesh_agents.domain.revision import CollectionRevision
from tests.documents import document, writes
from tests.engines.graph_engines import opened_neo4j
from tests.engines.servers import neo4j
from tests.engines.servers.process import free_port

EVERYTHING = Access(("u1",), 1 << 62)


def soon() -> Deadline:
    return Deadline.after(20)


def passage(ref: int, **properties: Value) -> Vertex:
    return Vertex(VertexLabel.PASSAGE, f"p{ref}", {"ref": ref, "uid": "u1", **properties})


def engine_of(url: str, password: str = neo4j.Neo4jServer.password) -> Neo4jEngine:
    return Neo4jEngine(Connection(Address.parse("stores.graph", url), password))


@pytest.fixture
async def engine() -> AsyncIterator[Neo4jEngine]:
    async with opened_neo4j() as opened:
        yield opened


@pytest.fixture
async def administrator(engine: Neo4jEngine) -> AsyncIterator[AsyncDriver]:
    server = neo4j.shared()
    auth = (server.user, server.password)
    async with AsyncGraphDatabase.driver(f"bolt://127.0.0.1:{server.port}", auth=auth) as driver:
        yield driver


async def seen(engine: Neo4jEngine, *refs: int) -> set[int]:
    return {row.ref for row in await engine.passages(refs, EVERYTHING, fields=[], deadline=soon())}


async def put(engine: Neo4jEngine, *vertices: Vertex) -> None:
    await engine.apply(Changes(vertices), unless="d0", deadline=soon())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it holds."""
    async with asyncio.timeout(15):
        while not await condition():
            await asyncio.sleep(0.02)


# Settings that cannot work.


@pytest.mark.parametrize(
    ("url", "password", "named"),
    [
        ("bolt://neo4j@127.0.0.1:{port}/neo4j", "wrong", "stores.graph_password"),
        ("bolt://nobody@127.0.0.1:{port}/neo4j", neo4j.Neo4jServer.password, "stores.graph_password"),
        ("bolt://127.0.0.1:{port}/neo4j", "", "stores.graph"),
        ("bolt://neo4j@127.0.0.1:{port}/lore", neo4j.Neo4jServer.password, "stores.graph"),
    ],
    ids=["password", "user", "no user", "database"],
)
async def test_settings_that_the_server_refuses_are_named_at_the_start(
    engine: Neo4jEngine, url: str, password: str, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    refused = engine_of(url.format(port=neo4j.shared().port), password)
    with pytest.raises(ConfigurationError, match=named) as error:
        await refused.schema_version(deadline=soon())
    assert "wrong" not in str(error.value)
    with pytest.raises(BackendUnavailable):
        await refused.records({VertexLabel.CLAIM: ["c"]}, deadline=soon())
    assert named in caplog.text
    await refused.close()
    assert await engine.schema_version(deadline=soon()) == VERSION


@pytest.mark.parametrize("scheme", ["bolt", "neo4j"])
async def test_where_nobody_listens_is_said_at_once(scheme: str) -> None:
    lost = engine_of(f"{scheme}://neo4j@127.0.0.1:{free_port()}/neo4j")
    begun = time.monotonic()
    with pytest.raises(BackendUnavailable):
        await lost.schema_version(deadline=soon())
    assert time.monotonic() - begun < 5
    await lost.close()


async def test_a_certificate_of_an_unknown_authority_is_refused(engine: Neo4jEngine) -> None:
    server = neo4j.shared()
    strict, lenient = engine_of(server.url("bolt+s")), engine_of(server.url("bolt+ssc"))
    with pytest.raises(BackendUnavailable):
        await strict.schema_version(deadline=soon())
    assert await lenient.schema_version(deadline=soon()) == VERSION
    await strict.close()
    await lenient.close()


async def test_a_database_without_schema_takes_no_writes(
    engine: Neo4jEngine, administrator: AsyncDriver, caplog: pytest.LogCaptureFixture
) -> None:
    await administrator.execute_query("MATCH (s:Schema) DELETE s")
    assert await engine.schema_version(deadline=soon()) == 0
    for work in (put(engine, passage(1)), engine.create(Vertex(VertexLabel.CLAIM, "c1"), deadline=soon())):
        with pytest.raises(BackendUnavailable):
            await work
    assert "loremesh graph migrate" in caplog.text
    assert await seen(engine, 1) == set()


# A server that goes away.


async def test_a_server_that_was_killed_and_comes_back_is_used_again(engine: Neo4jEngine) -> None:
    server = neo4j.shared()
    written = set(range(40))
    for ref in written:
        await put(engine, passage(ref))
    # More than one connection is open when it goes.
    await asyncio.gather(*(seen(engine, ref) for ref in range(20)))
    server.kill()
    try:
        for _ in range(3):
            with pytest.raises(BackendUnavailable):
                await seen(engine, 1)
        with pytest.raises(BackendUnavailable):
            await put(engine, passage(100))
        with pytest.raises(BackendUnavailable):
            await engine.create(Vertex(VertexLabel.CLAIM, "c1"), deadline=soon())
    finally:
        server.start()
    assert await seen(engine, *range(200)) == written
    await put(engine, passage(100))
    assert await seen(engine, 100) == {100}


@pytest.mark.parametrize(("scheme", "first"), [("bolt", "read"), ("bolt", "change"), ("neo4j", "creation")])
async def test_nobody_notices_a_restart_between_two_requests(scheme: str, first: str) -> None:
    server = neo4j.shared()
    async with opened_neo4j(scheme) as engine:
        await put(engine, passage(1))
        # More than one connection is open, and rests, when it goes.
        await asyncio.gather(*(seen(engine, 1) for _ in range(8)))
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        if first == "read":
            assert await seen(engine, 1) == {1}
        elif first == "change":
            await put(engine, passage(2))
        else:
            assert await engine.create(Vertex(VertexLabel.CLAIM, "c1"), deadline=soon())
        assert await asyncio.gather(*(seen(engine, 1) for _ in range(8))) == [{1}] * 8


async def test_a_server_that_stands_still_costs_no_more_than_the_deadline(engine: Neo4jEngine) -> None:
    await put(engine, passage(1))
    server = neo4j.shared()
    server.freeze()
    try:
        for call in (
            engine.passages([1], EVERYTHING, fields=[], deadline=Deadline.after(0.3)),
            engine.apply(Changes([passage(2)]), unless="d0", deadline=Deadline.after(0.3)),
        ):
            begun = time.monotonic()
            with pytest.raises(BudgetExhausted):
                await call
            assert time.monotonic() - begun < 2
    finally:
        server.thaw()
    assert 1 in await seen(engine, 1, 2)


@pytest.mark.timeout(480)
async def test_where_the_disk_is_full_a_write_fails_and_nobody_sees_half_of_it() -> None:
    server = neo4j.shared()
    async with opened_neo4j() as engine:
        store = VersionedGraphStore(engine)

        async def put(*names: str) -> None:
            found = writes(*(document(name, name, f"The {name} stands near the Thames.") for name in names))
            # More than the time after which others give up the turn of a writer that could not say that it has failed.
            await store.write("c", found, embedding_model="", deadline=Deadline.after(120))

        async def held() -> set[str]:
            return set(await store.content_hashes("c", ["tower", "bridge", "gate"], deadline=Deadline.after(60)))

        await put("tower")
        server.fill_disk()
        try:
            # The second one as well, and all reads: the database wants to be started again.
            for work in (put("bridge", "gate"), put("bridge"), held()):
                with pytest.raises(BackendUnavailable):
                    await work
        finally:
            server.kill()
            # It learns of its old connections' end.
            with pytest.raises(BackendUnavailable):
                await held()
            server.start()
        assert await held() == {"tower"}
        await put("bridge", "gate")
        assert await held() == {"tower", "bridge", "gate"}


# What the server does for those who left.


@asynccontextmanager
async def locked(administrator: AsyncDriver) -> AsyncIterator[None]:
    """Writers wait meanwhile."""
    async with administrator.session() as session, await session.begin_transaction() as holder:
        await (await holder.run("MATCH (s:Schema) SET s.locked = true")).consume()
        yield
        await holder.rollback()


async def _running(administrator: AsyncDriver) -> int:
    """Transactions of ours that the server works on."""
    found = await administrator.execute_query(
        "SHOW TRANSACTIONS YIELD currentQuery, status WHERE currentQuery CONTAINS 'CREATE (v:Claim' RETURN count(*)"
    )
    # This query has the same words in it.
    return found.records[0][0] - 1


@pytest.mark.parametrize("leaves", ["its time is up", "it is cancelled"])
async def test_the_server_stops_working_for_a_caller_that_left(
    engine: Neo4jEngine, administrator: AsyncDriver, leaves: str
) -> None:
    claim = Vertex(VertexLabel.CLAIM, "c1")
    async with locked(administrator):
        seconds = 1.0 if leaves == "its time is up" else 20.0
        task = asyncio.create_task(engine.create(claim, deadline=Deadline.after(seconds)))

        async def works() -> bool:
            return await _running(administrator) == 1

        async def rests() -> bool:
            return await _running(administrator) == 0

        await until(works)
        if leaves == "it is cancelled":
            task.cancel()
        with pytest.raises(BudgetExhausted if leaves == "its time is up" else asyncio.CancelledError):
            await task
        await until(rests)
    assert await engine.create(claim, deadline=soon()) is True


# Two processes.


@pytest.mark.parametrize("scheme", ["bolt", "neo4j"])
async def test_what_one_process_has_written_another_reads(engine: Neo4jEngine, scheme: str) -> None:
    other = engine_of(neo4j.shared().url(scheme))
    for ref in range(20):
        writer, reader = (engine, other) if ref % 2 else (other, engine)
        await put(writer, passage(ref))
        assert await seen(reader, ref) == {ref}
    await other.close()


async def test_of_two_processes_one_creates(engine: Neo4jEngine) -> None:
    other = engine_of(neo4j.shared().url())
    for number in range(20):
        claim = Vertex(VertexLabel.CLAIM, f"c{number}")
        told = await asyncio.gather(*(each.create(claim, deadline=soon()) for each in (engine, other, engine, other)))
        assert sorted(told) == [False, False, False, True]
    await other.close()


async def test_two_processes_lose_nothing_that_sets_gain(engine: Neo4jEngine) -> None:
    other = engine_of(neo4j.shared().url())
    await put(engine, Vertex(VertexLabel.ENTITY, "e1"))

    async def gain(writer: Neo4jEngine, number: int) -> None:
        cell = Cell(VertexLabel.ENTITY, "e1", "counts", f"{number}:1")
        await writer.apply(Changes(cells=[cell]), unless="d0", deadline=soon())

    await asyncio.gather(*(gain((engine, other)[number % 2], number) for number in range(30)))
    found = await engine.records({VertexLabel.ENTITY: ["e1"]}, deadline=soon())
    assert set(found["e1"].sets["counts"]) == {f"{number}:1" for number in range(30)}
    await other.close()


# Plans.


def _texts() -> Iterator[tuple[str, Mapping[str, Any]]]:
    access = {"uids": ["u1"], "before": 5, "readers": ["*"], "conditions": [["x"]]}
    schema = {"schema": statements.SCHEMA_ID}
    for label in VertexLabel:
        fields = tuple(declared.name for declared in (*statements.single(label), *statements.many(label)))
        yield statements.records(((label, fields),)), {statements.ids_parameter(label): ["a"]}
        yield statements.create(label), {**schema, "properties": {"element_id": "a"}}
        yield statements.remove(label), {**schema, "ids": ["a"], "most": 10}
        for name in (statements.vertices_parameter(label), statements.changes_parameter(label)):
            yield statements.apply(frozenset({name})), {**schema, "unless": "d", name: []}
    for edge in EdgeLabel:
        name = statements.edges_parameter(edge)
        yield statements.apply(frozenset({name})), {**schema, "unless": "d", name: []}
    for readers, conditions in product((False, True), repeat=2):
        yield statements.passages(("body",), readers=readers, conditions=conditions), {"refs": [1], **access}
        limits = {"title_limit": 5, "mention_limit": 5}
        text = statements.neighbourhood(readers=readers, conditions=conditions)
        yield text, {"seeds": [1], "entities": ["e"], **limits, **access}
    for number in (None, 0, 1):
        held = {"uids": ["u"], "sets": [["u", 1]]}
        yield statements.near(number), {**held, "candidates": 5, "vector": [1.0]}
        yield statements.compared(number), {**held, "limit": 5, "most": 5, "vector": [1.0]}
        yield statements.dimension(number), held
    yield statements.WITH_WORDS, {"query": "a", "limit": 5}


def _operators(plan: Mapping[str, Any]) -> Iterator[str]:
    yield str(plan["operatorType"]).partition("@")[0]
    for child in plan.get("children", ()):
        yield from _operators(child)


async def test_no_query_scans_even_in_an_empty_store(engine: Neo4jEngine, administrator: AsyncDriver) -> None:
    for text, parameters in _texts():
        # Planned anew, as in a database that has just been made.
        found = await administrator.execute_query(f"EXPLAIN {text}", {"given": dict(parameters)})  # type: ignore[arg-type]
        plan = found.summary.plan
        assert plan is not None
        operators = set(_operators(plan))
        assert not {name for name in operators if "Scan" in name}, f"{sorted(operators)}\n{text}"


async def _planned(administrator: AsyncDriver) -> int:
    """Plans that the server has made since this was last asked."""
    found = await administrator.execute_query("CALL db.clearQueryCaches()")
    (said,) = found.records[0].values()
    return int("".join(filter(str.isdigit, said)))


async def test_a_query_is_planned_once_however_much_it_is_asked_for(
    engine: Neo4jEngine, administrator: AsyncDriver
) -> None:
    async def ask(count: int) -> None:
        refs, names = range(count), [f"e{number}" for number in range(count)]
        access = replace(EVERYTHING, uids=tuple(f"u{number}" for number in range(count)))
        await engine.passages(refs, access, fields=["body"], deadline=soon())
        await engine.neighbourhood(refs, names, access, title_limit=5, mention_limit=5, deadline=soon())
        await engine.records({VertexLabel.ENTITY: names, VertexLabel.CLAIM: names}, deadline=soon())
        entities = [Vertex(VertexLabel.ENTITY, name) for name in names]
        await engine.apply(Changes([*(passage(ref) for ref in refs), *entities]), unless="d" * count, deadline=soon())
        await _words(engine, names, "u1", state=Newest())

    await _planned(administrator)
    await ask(1)
    once = await _planned(administrator)
    for count in (1, 2, 20, 200):
        await ask(count)
    assert await _planned(administrator) == once


# The indexes.


class Newest:
    """A store's newest state: a double."""

    def __init__(self, *ended: int) -> None:
        self.ended = set(ended)

    def holds(self, revision: CollectionRevision) -> bool:
        return revision.collection_uid != "gone"

    def is_there(self, row: PassageRow) -> bool:
        return row.ref not in self.ended


def revision(uid: str) -> CollectionRevision:
    return CollectionRevision(f"collection {uid}", uid, 1)


async def _words(engine: Neo4jEngine, terms: Sequence[str], *uids: str, state: Newest, limit: int = 10) -> list[int]:
    index = Neo4jTextIndex(engine.connection, MemoryGraphStore(), state)
    counts = dict.fromkeys(terms, 1)
    return list(await index.search(counts, revisions=tuple(map(revision, uids)), limit=limit, deadline=soon()))


async def test_words_are_found_as_soon_as_they_are_written_and_only_in_their_collection(engine: Neo4jEngine) -> None:
    state = Newest()
    for ref in range(30):
        vertex = Vertex(
            VertexLabel.PASSAGE,
            f"p{ref}",
            {"ref": ref, "uid": f"u{ref % 2}", "words": f"word{ref} Common", "further_words": "x.y"},
        )
        await put(engine, vertex)
        assert await _words(engine, [f"word{ref}"], "u0", "u1", state=state) == [ref]
    assert set(await _words(engine, ["Common"], "u1", state=state, limit=50)) == set(range(1, 30, 2))
    assert set(await _words(engine, ["x.y"], "u0", state=state, limit=50)) == set(range(0, 30, 2))
    assert await _words(engine, ["common", "x", "u1"], "u0", "u1", state=state) == []
    assert await _words(engine, ["Common"], "gone", "u2", state=state) == []


async def test_what_has_ended_takes_no_place_among_the_proposed(engine: Neo4jEngine) -> None:
    await put(engine, *(passage(ref, words="same words", body="b") for ref in range(60)))
    found = await _words(engine, ["same"], "u1", state=Newest(*range(50)), limit=5)
    assert len(found) == 5
    assert set(found) <= set(range(50, 60))


class Vectors(Newest):
    """A store of which some collections have another set of vectors."""

    def __init__(self, **places: VectorPlaces) -> None:
        super().__init__()
        self.places = places

    def vector_places(self, revision: CollectionRevision, model: str) -> VectorPlaces:
        return self.places.get(revision.collection_uid, VectorPlaces(own=True, number=None))


async def test_each_set_of_vectors_is_searched_by_itself(engine: Neo4jEngine) -> None:
    def vector(degrees: float) -> bytes:
        radians = np.radians(degrees)
        return np.array([np.cos(radians), np.sin(radians)], dtype="<f4").tobytes()

    def of_set(number: int, ref: int, degrees: float, uid: str = "u1") -> Vertex:
        values = {"ref": ref, "uid": uid, "generation": number, "model": "m", "vector": vector(degrees)}
        return Vertex(VertexLabel.VECTOR, f"v{number}x{ref}", values, {"made": ["1:"]})

    await put(engine, *(passage(ref, vector=vector(10 * ref)) for ref in range(4)), passage(4), passage(5, uid="u2"))
    await put(engine, *(of_set(1, ref, 90 - 10 * ref) for ref in range(5)))
    await put(engine, of_set(2, 5, 45, "u2"), of_set(0, 4, 25), of_set(3, 0, 0), of_set(2, 0, 0, "u3"))

    async def near(degrees: float, *uids: str, limit: int = 10, **places: VectorPlaces) -> list[int]:
        index = Neo4jVectorIndex(engine.connection, MemoryGraphStore(), Vectors(**places))
        asked = np.frombuffer(vector(degrees), dtype="<f4")
        revisions = tuple(map(revision, uids))
        return list(await index.search(asked, model="m", revisions=revisions, limit=limit, deadline=soon()))

    assert await near(0, "u1") == [0, 1, 2, 3]
    # What the first set has gained is a vertex.
    assert await near(0, "u1", u1=VectorPlaces(own=True, number=0)) == [0, 1, 2, 4, 3]
    first, second = VectorPlaces(own=False, number=1), VectorPlaces(own=False, number=2)
    assert await near(0, "u1", u1=first) == [4, 3, 2, 1, 0]
    assert await near(90, "u1", limit=2, u1=first) == [0, 1]
    assert await near(46, "u1", "u2", limit=3, u1=first, u2=second) == [5, 4, 3]
    # Those of the first set are let go of, as a sweep does.
    await engine.apply(
        Changes(settings=[Setting(VertexLabel.PASSAGE, f"p{ref}", "vector", b"") for ref in range(3)]),
        unless="d0",
        deadline=soon(),
    )
    assert await near(0, "u1") == [3]
    assert await near(0, "u1", u1=first) == [4, 3, 2, 1, 0]
