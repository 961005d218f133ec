"""The property graphs that real servers hold, each opened for a test: empty, and with the schema in force."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from neo4j import AsyncGraphDatabase

from loremesh_agents.adapters.graph.neo4j import Address, Connection, Neo4jEngine
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine
from loremesh_agents.adapters.text.neo4j import Neo4jTextIndex
from loremesh_agents.adapters.text.postings import PostingsTextIndex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import VERSION
from loremesh_agents.ports.text import TextIndex
from tests.engines.gremlin_engines import opened_janusgraph, opened_neptune
from tests.engines.servers import neo4j

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
    engine = Neo4jEngine(Connection(Address.parse("stores.graph", server.url(scheme)), server.password))
    for version in range(1, VERSION + 1):
        await engine.migrate(version, deadline=Deadline.after(60))
    yield engine
    await engine.close()


ENGINES: dict[str, Callable[[], AbstractAsyncContextManager[GraphEngine]]] = {
    "neo4j": opened_neo4j,
    "janusgraph": partial(opened_janusgraph, "inmemory"),
    "janusgraph-berkeley": partial(opened_janusgraph, "berkeleyje"),
    "janusgraph-cassandra": partial(opened_janusgraph, "cql"),
    "neptune-stand-in": opened_neptune,
}
"""By name. A server is started when its first test needs it, and stopped at the end of the session."""


def text_index(engine: GraphEngine, store: VersionedGraphStore) -> TextIndex:
    """The engine's own where it has one."""
    return (
        Neo4jTextIndex(engine.connection, store, store) if isinstance(engine, Neo4jEngine) else PostingsTextIndex(store)
    )
