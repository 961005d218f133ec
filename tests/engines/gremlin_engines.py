"""Property graphs behind Gremlin servers, each opened for a test: empty, and with the schema in force."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loremesh_agents.adapters.graph.gremlin.bytecode import source
from loremesh_agents.adapters.graph.gremlin.connection import Connections, Script
from loremesh_agents.adapters.graph.gremlin.endpoint import Endpoint
from loremesh_agents.adapters.graph.gremlin.janusgraph import JanusGraphEngine
from loremesh_agents.adapters.graph.gremlin.neptune import NeptuneEngine
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import VERSION
from tests.engines.servers import gremlin_server, janusgraph
from tests.engines.servers.janusgraph import Storage

# The servers refuse full scans, which the product has none of: this transaction may. It gives whether it was the last.
_EMPTY = """
def builder = g.getGraph().buildTransaction()
def forced = builder.getClass().getDeclaredField('forceIndexUsage')
forced.setAccessible(true)
forced.set(builder, false)
def tx = builder.start()
def found = tx.traversal().V().limit(most).toList()
found.each { it.remove() }
tx.commit()
found.size() < most
"""
_EMPTIED_AT_ONCE = 5_000


def janusgraph_endpoint(server: janusgraph.JanusGraph) -> Endpoint:
    return Endpoint("janusgraph", f"ws://127.0.0.1:{server.port}/gremlin")


def neptune_endpoint() -> Endpoint:
    """Of Neptune's stand-in."""
    return Endpoint("neptune", f"ws://127.0.0.1:{gremlin_server.shared().port}/gremlin")


@asynccontextmanager
async def opened_janusgraph(storage: Storage) -> AsyncIterator[JanusGraphEngine]:
    endpoint = janusgraph_endpoint(janusgraph.shared(storage))
    connections = Connections(endpoint)
    try:
        empty = Script(_EMPTY, {"most": _EMPTIED_AT_ONCE})
        while not all(await connections.submit(empty, deadline=Deadline.after(60))):
            pass
    finally:
        await connections.close()
    engine = JanusGraphEngine(endpoint)
    try:
        for version in range(1, VERSION + 1):
            await engine.migrate(version, deadline=Deadline.after(60))
        yield engine
    finally:
        await engine.close()


@asynccontextmanager
async def opened_neptune() -> AsyncIterator[NeptuneEngine]:
    """Neptune's stand-in."""
    endpoint = neptune_endpoint()
    connections = Connections(endpoint)
    try:
        # A large graph is more than the memory for one transaction.
        left = True
        while left:
            await connections.submit(source().V().limit(_EMPTIED_AT_ONCE).drop(), deadline=Deadline.after(60))
            left = await connections.submit(source().V().limit(1).id_(), deadline=Deadline.after(60))
    finally:
        await connections.close()
    engine = NeptuneEngine(endpoint)
    try:
        for version in range(1, VERSION + 1):
            await engine.migrate(version, deadline=Deadline.after(60))
        yield engine
    finally:
        await engine.close()
