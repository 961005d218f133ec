"""The property graphs that real servers hold, each opened for a test: empty, and with the schema in force."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from neo4j import AsyncGraphDatabase

from loremesh_agents.adapters.graph.gremlin.endpoint import Endpoint
from loremesh_agents.adapters.graph.gremlin.janusgraph import JanusGraphEngine
from loremesh_agents.adapters.graph.gremlin.neptune import NeptuneEngine
from loremesh_agents.adapters.graph.neo4j import Address, Connection, Neo4jEngine
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine
from loremesh_agents.adapters.text.neo4j import Neo4jTextIndex
from loremesh_agents.adapters.text.postings import PostingsTextIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import VERSION
from loremesh_agents.ports.text import TextIndex
from tests.engines.gremlin_engines import janusgraph_endpoint, neptune_endpoint, opened_janusgraph, opened_neptune
from tests.engines.servers import janusgraph, neo4j
from tests.engines.servers.janusgraph import Storage


def connected(name: str, url: str) -> GraphEngine:
    """An engine of `ENGINES` as another process sees it, at the URL that `url_of` gives in the one that started the server."""
    if name == "neo4j":
        return Neo4jEngine(Connection(Address.parse("stores.graph", url), neo4j.Neo4jServer.password))
    return (
        NeptuneEngine(Endpoint("neptune", url))
        if name == "neptune-stand-in"
        else JanusGraphEngine(Endpoint("janusgraph", url))
    )


def url_of(name: str) -> str:
    """Where the server of an engine of `ENGINES` is."""
    if name == "neo4j":
        return neo4j.shared().url()
    if name == "neptune-stand-in":
        return neptune_endpoint().url
    return janusgraph_endpoint(janusgraph.shared(STORAGES[name])).url


# A large graph is more than the memory for one transaction.
_EMPTY = "MATCH (v) WHERE NOT v:Schema CALL (v) { DETACH DELETE v } IN TRANSACTIONS OF 1000 ROWS"


@asynccontextmanager
async def opened_neo4j(scheme: str = "bolt") -> AsyncIterator[Neo4jEngine]:
    server = neo4j.shared()
    async with (
        AsyncGraphDatabase.driver(f"bolt://127.0.0.1:{server.port}", auth=(server.user, server.password)) as driver,
        driver.session() as session,
    ):
        await (await session.run(_EMPTY)).consume()
    engine = connected("neo4j", server.url(scheme))
    assert isinstance(engine, Neo4jEngine)
    try:
        for version in range(1, VERSION + 1):
            await engine.migrate(version, deadline=Deadline.after(60))
        yield engine
    finally:
        await engine.close()


STORAGES: dict[str, Storage] = {
    "janusgraph": "inmemory",
    "janusgraph-berkeley": "berkeleyje",
    "janusgraph-cassandra": "cql",
}
"""Of the engines that are JanusGraph."""
ENGINES: dict[str, Callable[[], AbstractAsyncContextManager[GraphEngine]]] = {
    "neo4j": opened_neo4j,
    **{name: partial(opened_janusgraph, storage) for name, storage in STORAGES.items()},
    "neptune-stand-in": opened_neptune,
}
"""By name. A server is started when its first test needs it, and stopped at the end of the session."""


def text_index(engine: GraphEngine, store: VersionedGraphStore) -> TextIndex:
    """The engine's own where it has one."""
    return (
        Neo4jTextIndex(engine.connection, store, store) if isinstance(engine, Neo4jEngine) else PostingsTextIndex(store)
    )
