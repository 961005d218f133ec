"""Indexes outside the graph store, for the conformance suites and the tests of one engine alone."""

import asyncio
import ssl
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trustme
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import DCAwareRoundRobinPolicy

from loremesh_agents.adapters.derived.cassandra import CassandraServers
from loremesh_agents.adapters.derived.opensearch import OpenSearchServers
from loremesh_agents.adapters.graph.neo4j import Neo4jEngine
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.text.opensearch import OpenSearchTextIndex
from loremesh_agents.adapters.vector.cassandra import CassandraVectorIndex
from loremesh_agents.adapters.vector.neo4j import Neo4jVectorIndex
from loremesh_agents.adapters.vector.opensearch import OpenSearchVectorIndex
from loremesh_agents.ports.derived import DerivedIndex
from loremesh_agents.ports.graph import GraphStore
from tests.documents import soon
from tests.engines.servers.cassandra import Cassandra
from tests.engines.servers.opensearch import OpenSearchNode


class KeptGraph:
    """A graph store whose writes are followed by what the knowledge agent then does for the indexes, done when the write returns."""

    def __init__(self, graph: GraphStore, indexes: Sequence[DerivedIndex]) -> None:
        self.graph = graph
        self._indexes = indexes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.graph, name)

    async def write(self, collection: str, *arguments: Any, **options: Any) -> Any:
        written = await self.graph.write(collection, *arguments, **options)
        await self._maintain(collection)
        return written

    async def delete_documents(self, collection: str, *arguments: Any, **options: Any) -> Any:
        deleted = await self.graph.delete_documents(collection, *arguments, **options)
        await self._maintain(collection)
        return deleted

    async def delete_collection(self, collection: str, **options: Any) -> bool:
        deleted = await self.graph.delete_collection(collection, **options)
        for index in self._indexes:
            await index.drop(collection, deadline=soon())
        return deleted

    async def _maintain(self, collection: str) -> None:
        for index in self._indexes:
            await index.maintain(collection, deadline=soon())


def servers(node: OpenSearchNode) -> OpenSearchServers:
    return OpenSearchServers((node.url,))


def new_prefix() -> str:
    return f"test_{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def opensearch_text(node: OpenSearchNode, graph: GraphStore) -> AsyncIterator[OpenSearchTextIndex]:
    """An index of its own, up to date with a graph that is empty."""
    prefix = new_prefix()
    index = OpenSearchTextIndex(graph, servers(node), prefix)
    await index.recover(deadline=soon())
    yield index
    await index.close()
    node.request("DELETE", f"/{prefix}-*")


@asynccontextmanager
async def opensearch_vectors(node: OpenSearchNode, graph: GraphStore) -> AsyncIterator[OpenSearchVectorIndex]:
    """An index of its own, up to date with a graph that is empty."""
    prefix = new_prefix()
    index = OpenSearchVectorIndex(graph, servers(node), prefix)
    await index.recover(deadline=soon())
    yield index
    await index.close()
    node.request("DELETE", f"/{prefix}-*")


def define(
    node: Cassandra, *statements: str, user: str = "", password: str = "", authority: trustme.CA | None = None
) -> list[Any]:
    """Asks a node, as its operator would; gives the rows of the last statement."""
    context = ssl.create_default_context() if authority is not None else None
    if authority is not None and context is not None:
        authority.configure_trust(context)
    profile = ExecutionProfile(load_balancing_policy=DCAwareRoundRobinPolicy("datacenter1"), request_timeout=30)
    cluster = Cluster(
        [node.address],
        port=node.port,
        protocol_version=5,
        auth_provider=PlainTextAuthProvider(user, password) if user else None,
        ssl_context=context,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
    )
    try:
        session = cluster.connect()
        return [list(session.execute(statement)) for statement in statements][-1]
    finally:
        cluster.shutdown()


def new_keyspace(node: Cassandra) -> str:
    name = f"test_{uuid.uuid4().hex[:12]}"
    define(
        node,
        f"CREATE KEYSPACE {name} WITH replication = {{'class': 'NetworkTopologyStrategy', 'datacenter1': 1}}",
    )
    return name


@asynccontextmanager
async def cassandra_vectors(node: Cassandra, graph: GraphStore) -> AsyncIterator[CassandraVectorIndex]:
    """An index of its own, up to date with a graph that is empty."""
    keyspace = await asyncio.to_thread(new_keyspace, node)
    index = CassandraVectorIndex(graph, CassandraServers((node.address,), node.port, keyspace))
    await index.recover(deadline=soon())
    yield index
    await index.close()
    await asyncio.to_thread(define, node, f"DROP KEYSPACE {keyspace}")


OUTSIDE = {"opensearch": opensearch_vectors, "cassandra": cassandra_vectors}
"""Vector indexes that the knowledge agent writes and the others wait for, by the fixtures of their servers."""


def neo4j_index(store: GraphStore) -> Neo4jVectorIndex:
    """The index of the database that holds the graph."""
    assert isinstance(store, VersionedGraphStore)
    assert isinstance(store.engine, Neo4jEngine)
    return Neo4jVectorIndex(store.engine.connection, store, store)
