"""What is JanusGraph's alone: its server goes away, lacks a schema, takes only so much, and is asked for its plans."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trustme

from loremesh_agents.adapters.graph.gremlin import traversals
from loremesh_agents.adapters.graph.gremlin.connection import Connections, Script
from loremesh_agents.adapters.graph.gremlin.endpoint import janusgraph_endpoint
from loremesh_agents.adapters.graph.gremlin.janusgraph import JanusGraphEngine
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import Access, Changes, Edge, Vertex
from loremesh_agents.adapters.graph.versioned.schema import migrate, require_current
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, ConfigurationError, StorageFull
from loremesh_agents.domain.graph_schema import VERSION, EdgeLabel, VertexLabel
from tests.documents import document, writes
from tests.engines.gremlin_engines import opened_janusgraph
from tests.engines.search_indexes import define
from tests.engines.servers import janusgraph
from tests.engines.servers.cassandra import Cassandra
from tests.engines.servers.janusgraph import JanusGraph
from tests.engines.servers.process import free_port

pytestmark = pytest.mark.timeout(240)

SMALL_FRAME = 65_536

# Leaves the time of its last turn where another request can read it.
_ENDLESS = "for (;;) { System.setProperty('loremesh.turn', System.nanoTime() as String); Thread.sleep(1) }"
_SINCE_LAST_TURN = "(System.nanoTime() - (System.getProperty('loremesh.turn') as Long)).intdiv(1000000)"


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JanusGraph]:
    """A server of this module alone: killed, with small frames, at first without a schema."""
    found = JanusGraph(tmp_path_factory.mktemp("janusgraph"), frame=SMALL_FRAME)
    yield found
    found.stop()


@pytest.fixture
async def engine(server: JanusGraph) -> AsyncIterator[JanusGraphEngine]:
    found = JanusGraphEngine(janusgraph_endpoint("stores.graph", server.url, ""))
    yield found
    await found.close()


async def test_a_graph_without_a_schema_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    server = JanusGraph(tmp_path)
    engine = JanusGraphEngine(janusgraph_endpoint("stores.graph", server.url, ""))
    try:
        with pytest.raises(ConfigurationError, match="loremesh graph migrate"):
            await require_current(engine, deadline=soon())
        with pytest.raises(ConfigurationError, match="loremesh graph migrate"):
            await engine.apply(Changes(vertices=[Vertex(VertexLabel.CLAIM, "c1")]), unless="d1", deadline=soon())
        assert await migrate(engine, deadline=soon()) == tuple(range(1, VERSION + 1))
        await require_current(engine, deadline=soon())
        await engine.migrate(VERSION + 1, deadline=soon())
        with pytest.raises(ConfigurationError, match=f"graph schema {VERSION + 1}, which is newer than {VERSION}"):
            await require_current(engine, deadline=soon())
    finally:
        await engine.close()
        server.stop()


async def test_a_server_that_goes_away_is_said_at_once_and_found_again(
    server: JanusGraph, engine: JanusGraphEngine
) -> None:
    await migrate(engine, deadline=soon())
    waiting = asyncio.create_task(engine._connections.submit(Script(_ENDLESS), deadline=soon()))
    await engine.schema_version(deadline=soon())
    server.kill()
    with pytest.raises(BackendUnavailable):
        await waiting
    for _ in range(20):
        began = time.monotonic()
        with pytest.raises(BackendUnavailable):
            await engine.schema_version(deadline=soon())
        assert time.monotonic() - began < 5
    server.restart()
    end = soon()
    while not end.expired:
        try:
            version = await engine.schema_version(deadline=end)
            break
        except BackendUnavailable as error:
            await asyncio.sleep(error.retry_after or 0)
    assert version == 0, "in memory, nothing outlives the server"
    await migrate(engine, deadline=soon())
    assert await engine.create(Vertex(VertexLabel.CLAIM, "c1"), deadline=soon())


async def test_nobody_notices_a_restart_between_two_requests(tmp_path: Path) -> None:
    server = JanusGraph(tmp_path, "berkeleyje")
    engine = JanusGraphEngine(janusgraph_endpoint("stores.graph", server.url, ""))
    try:
        await migrate(engine, deadline=soon())
        for number in range(2):
            # More than one connection is open, and rests, when it goes.
            await asyncio.gather(*(engine.schema_version(deadline=soon()) for _ in range(8)))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)
            if number:
                assert await engine.create(Vertex(VertexLabel.CLAIM, "c1"), deadline=soon())
            await asyncio.gather(*(require_current(engine, deadline=soon()) for _ in range(8)))
    finally:
        await engine.close()
        server.stop()


async def test_a_port_that_nobody_listens_on_is_a_backend_that_does_not_answer() -> None:
    engine = JanusGraphEngine(janusgraph_endpoint("stores.graph", f"gremlin+ws://127.0.0.1:{free_port()}/g", ""))
    with pytest.raises(BackendUnavailable, match="janusgraph"):
        await engine.schema_version(deadline=soon())
    await engine.close()


async def test_a_server_of_another_kind_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        engine = JanusGraphEngine(janusgraph_endpoint("stores.graph", f"gremlin+ws://127.0.0.1:{port}/g", ""))
        with pytest.raises(ConfigurationError, match=f"{port}/gremlin is no janusgraph server: status 404"):
            await engine.schema_version(deadline=soon())
        await engine.close()


async def test_tls_to_a_server_without_it_and_a_certificate_of_strangers_are_named(server: JanusGraph) -> None:
    encrypted = server.url.replace("gremlin+ws:", "gremlin+wss:")
    engine = JanusGraphEngine(janusgraph_endpoint("stores.graph", encrypted, ""))
    with pytest.raises((ConfigurationError, BackendUnavailable)):
        await engine.schema_version(deadline=soon())
    await engine.close()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        engine = JanusGraphEngine(janusgraph_endpoint("stores.graph", f"gremlin+wss://127.0.0.1:{port}/g", ""))
        with pytest.raises(ConfigurationError, match="TLS"):
            await engine.schema_version(deadline=soon())
        await engine.close()


async def test_a_request_beyond_the_servers_frame_names_its_setting(
    server: JanusGraph, engine: JanusGraphEngine, caplog: pytest.LogCaptureFixture
) -> None:
    await migrate(engine, deadline=soon())
    large = Vertex(VertexLabel.PASSAGE, "p7", {"ref": 7, "uid": "u1", "body": "x" * 2 * SMALL_FRAME})
    with pytest.raises(BackendUnavailable):
        await engine.apply(Changes(vertices=[large]), unless="d1", deadline=soon())
    assert "maxContentLength" in caplog.text
    assert await engine.records({VertexLabel.PASSAGE: ["p7"]}, deadline=soon()) == {}


async def test_an_answer_beyond_our_frame_names_the_setting_and_leaves_the_engine_usable(server: JanusGraph) -> None:
    engine = JanusGraphEngine(
        replace(janusgraph_endpoint("stores.graph", server.url, ""), message_bytes=50_000, request_bytes=20_000)
    )
    await migrate(engine, deadline=soon())
    passages = [
        Vertex(VertexLabel.PASSAGE, f"p{ref}", {"ref": ref, "uid": "u1", "body": "x" * 2_000}) for ref in range(60)
    ]
    await engine.apply(Changes(vertices=passages), unless="d1", deadline=soon())
    access = Access(("u1",), 1 << 40)
    with pytest.raises(ConfigurationError, match=r"50000 bytes.*resultIterationBatchSize"):
        await engine.passages(range(60), access, fields=["body"], deadline=soon())
    assert len(await engine.passages(range(60), access, fields=[], deadline=soon())) == 60
    await engine.close()


async def test_the_servers_work_ends_at_the_deadline(server: JanusGraph) -> None:
    connections = Connections(janusgraph_endpoint("stores.graph", server.url, ""))
    with pytest.raises(BudgetExhausted):
        await connections.submit(Script(_ENDLESS), deadline=Deadline.after(1))
    end = soon()
    idle_ms = 0
    while idle_ms < 300 and not end.expired:
        (idle_ms,) = await connections.submit(Script(_SINCE_LAST_TURN), deadline=end)
    assert idle_ms >= 300, "the loop still turns"
    await connections.close()


async def test_of_two_clients_one_is_told_that_it_made_a_vertex() -> None:
    async with opened_janusgraph("inmemory") as first:
        second = JanusGraphEngine(janusgraph_endpoint("stores.graph", janusgraph.shared("inmemory").url, ""))
        try:
            await _race(first, second, 20)
        finally:
            await second.close()


async def test_of_two_servers_on_one_cassandra_one_client_is_told_that_it_made_a_vertex(tmp_path: Path) -> None:
    async with opened_janusgraph("cql") as first:
        other = JanusGraph(tmp_path, "cql", cassandra=janusgraph.shared("cql").cassandra)
        second = JanusGraphEngine(janusgraph_endpoint("stores.graph", other.url, ""))
        try:
            await _race(first, second, 10)
        finally:
            await second.close()
            other.stop()


@pytest.mark.timeout(540)
async def test_where_the_disk_of_cassandra_is_full_a_write_fails_and_nobody_sees_half_of_it(tmp_path: Path) -> None:
    node = Cassandra(tmp_path / "cassandra", authentication=True)
    graph = None
    try:
        await asyncio.to_thread(
            partial(
                define,
                node,
                # Whom Cassandra calls super it lets write on.
                "CREATE ROLE graph WITH PASSWORD = 'graph' AND LOGIN = true",
                "GRANT ALL PERMISSIONS ON ALL KEYSPACES TO graph",
                user="cassandra",
                password="cassandra",
            )
        )
        graph = JanusGraph(tmp_path / "janusgraph", "cql", cassandra=[node], user="graph")
        store = VersionedGraphStore(JanusGraphEngine(janusgraph_endpoint("stores.graph", graph.url, "")))
        await migrate(store.engine, deadline=Deadline.after(60))

        async def put(*names: str) -> None:
            found = writes(*(document(name, name, f"The {name} stands near the Thames.") for name in names))
            # More than the time after which others give up the turn of a writer that could not say that it has failed.
            await store.write("c", found, embedding_model="", deadline=Deadline.after(120))

        async def held() -> set[str]:
            until = Deadline.after(90)
            while True:
                try:
                    return set(await store.content_hashes("c", ["tower", "bridge", "gate"], deadline=until))
                except BackendUnavailable:
                    await asyncio.sleep(0.5)  # JanusGraph says nowhere when it has found Cassandra again

        await put("tower")
        node.stop()
        node.restart(full=True)
        assert await held() == {"tower"}
        await asyncio.sleep(3)  # nor does Cassandra say when it has looked at its disk
        for _ in range(2):
            with pytest.raises(StorageFull):
                await put("bridge", "gate")
        assert await held() == {"tower"}
        node.stop()
        node.restart()
        assert await held() == {"tower"}
        await put("bridge", "gate")
        assert await held() == {"tower", "bridge", "gate"}
        await store.close()
    finally:
        if graph is not None:
            graph.kill()
        node.kill()


async def _race(first: JanusGraphEngine, second: JanusGraphEngine, rounds: int) -> None:
    for number in range(rounds):
        claims = [Vertex(VertexLabel.CLAIM, f"c{number}", {"claim": f"{writer}"}) for writer in range(6)]
        told = await asyncio.gather(
            *((first, second)[place % 2].create(claim, deadline=soon()) for place, claim in enumerate(claims))
        )
        assert sorted(told) == [False] * 5 + [True]
        found = await first.records({VertexLabel.CLAIM: [f"c{number}"]}, deadline=soon())
        assert found[f"c{number}"].properties == claims[told.index(True)].properties


async def test_a_name_that_very_many_passages_bear_costs_a_bounded_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversals, "_MOST_TITLES", 50)
    async with opened_janusgraph("inmemory") as engine:
        passages = [
            Vertex(VertexLabel.PASSAGE, f"p{ref}", {"ref": ref, "uid": "u1"}, {"readers": ["*"]}) for ref in range(200)
        ]
        names = [Vertex(VertexLabel.ENTITY, f"e{n}", {"entity_key": "n", "uid": "u1", "size": 0}) for n in (1, 2)]
        bears = [Edge(EdgeLabel.BEARS, f"p{ref}", "e1", {"weight": 1.0, "title": "N"}) for ref in range(200)]
        few = [Edge(EdgeLabel.BEARS, f"p{ref}", "e2", {"weight": ref / 50, "title": "N"}) for ref in range(50)]
        changes = Changes(vertices=[*passages, *names], edges=[*bears, *few])
        await engine.apply(changes, unless="d1", deadline=Deadline.after(60))
        access = Access(("u1",), 1 << 40, ("*",))
        found = await engine.neighbourhood([], ["e1", "e2"], access, title_limit=100, mention_limit=50, deadline=soon())
        # Of the first no more than that, of the second all: beyond the bound nothing is read, below it nothing is left out.
        assert [row.entity for row in found.titles].count("e1") == 50
        assert [row.passage.ref for row in found.titles if row.entity == "e2"] == list(range(49, -1, -1))
