"""JanusGraph: schema and writes by scripts of its own API, which writes without reading first; reads by traversals.

Measured against traversals that do the same (bench/README.md has the table): a batch as one argument of one script is several times as fast.
"""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loremesh_agents.adapters.graph.gremlin import batches, bytecode, errors, rows
from loremesh_agents.adapters.graph.gremlin.concurrency import at_once
from loremesh_agents.adapters.graph.gremlin.connection import Script
from loremesh_agents.adapters.graph.gremlin.endpoint import Endpoint
from loremesh_agents.adapters.graph.gremlin.engine import REQUESTS_AT_ONCE, GremlinEngine
from loremesh_agents.adapters.graph.gremlin.traversals import Addressing
from loremesh_agents.adapters.graph.versioned.engine import Changes, Vertex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import EDGES, ID, VERTICES, ValueType

_MARK = "Schema"
_TYPES = {
    ValueType.TEXT: "String",
    ValueType.INTEGER: "Long",
    ValueType.REAL: "Double",
    ValueType.VECTOR: "String",
}
_LONGEST_WAIT_S = 0.1

# Each version of the schema leaves a label, made in the transaction that made the rest of it.
_VERSION = """
def management = g.getGraph().openManagement()
try {
  return management.getVertexLabels().collect { it.name() }
      .findAll { it ==~ (mark + '[0-9]+') }.collect { it.substring(mark.length()) as Integer }.max() ?: 0
} finally { management.rollback() }
"""

# What is declared twice is left as it is. A new index on a new key is in force at once. Of a store that several servers share, the index
# takes locks: two creations of one id must not both succeed.
_MIGRATE = """
def graph = g.getGraph()
def shared = graph.getBackend().getStoreFeatures().isDistributed()
def management = graph.openManagement()
try {
  def types = [String: String.class, Long: Long.class, Double: Double.class]
  for (key in propertyKeys) {
    if (management.getPropertyKey(key[0]) == null) {
      management.makePropertyKey(key[0]).dataType(types[key[1]])
          .cardinality(key[2] ? org.janusgraph.core.Cardinality.SET : org.janusgraph.core.Cardinality.SINGLE).make()
    }
  }
  for (name in vertexLabels) { if (management.getVertexLabel(name) == null) management.makeVertexLabel(name).make() }
  for (name in edgeLabels) { if (management.getEdgeLabel(name) == null) management.makeEdgeLabel(name).multiplicity(Multiplicity.MULTI).make() }
  if (management.getGraphIndex(unique) == null) {
    def index = management.buildIndex(unique, Vertex.class).addKey(management.getPropertyKey(unique)).unique().buildCompositeIndex()
    if (shared) management.setConsistency(index, ConsistencyModifier.LOCK)
  }
  if (management.getVertexLabel(marked) == null) management.makeVertexLabel(marked).make()
  management.commit()
} finally { if (management.isOpen()) management.rollback() }
true
"""

# Who interrupts a thread of the one store with isolated transactions, BerkeleyDB, closes it until the server starts anew.
_TRAITS = """
def graph = g.getGraph()
def configuration = graph.getConfiguration()
[[ours: configuration.allowVertexIdSetting() && configuration.allowCustomVertexIdType(),
 interruptible: !graph.getBackend().getStoreFeatures().hasTxIsolation()]]
"""

# Servers that share a store lock the index; a store of one server has a monitor for it. A lock that cannot be had is known before anything is written.
_CREATE = """
def graph = g.getGraph()
def create = {
  def tx = graph.newTransaction()
  try {
    if (ours && tx.getVertex(element) != null) return 'there'
    if (tx.traversal().V().has(unique, element).hasNext()) return 'there'
    def vertex = ours ? tx.addVertex(T.id, element, T.label, kind) : tx.addVertex(kind)
    vertex.property(unique, element)
    singles.each { name, value -> vertex.property(VertexProperty.Cardinality.single, name, value) }
    many.each { name, cells -> for (cell in cells) vertex.property(VertexProperty.Cardinality.set, name, cell) }
    tx.commit()
    return 'made'
  } catch (org.janusgraph.core.SchemaViolationException violation) {
    return 'there'
  } catch (org.janusgraph.core.JanusGraphException failure) {
    for (def cause = failure; cause != null; cause = cause.getCause()) {
      if (cause.getClass().getSimpleName().endsWith('LockingException')) return 'contended'
    }
    throw failure
  } finally { if (tx.isOpen()) tx.rollback() }
}
if (graph.getBackend().getStoreFeatures().isDistributed()) return create()
synchronized (graph) { return create() }
"""

# Where ids are ours, everything is written without a read: what is there already is overwritten by the same. Else vertices are looked up
# together, by one writer at a time, as two must not make the same one.
_APPLY = """
def graph = g.getGraph()
def changes = new groovy.json.JsonSlurper().parseText(batch)
def typed = { name, value -> value instanceof Number ? (name in reals ? value.doubleValue() : value.longValue()) : value }
def write = {
  def tx = graph.buildTransaction().enableBatchLoading().start()
  try {
    def known = [:]
    if (!ours) {
      def ids = new HashSet()
      changes.vertices.each { ids << it[1] }
      changes.edges.each { ids << it[1]; ids << it[2] }
      for (kind in ['cells', 'dropped', 'settings']) changes[kind].each { ids << it[0] }
      tx.traversal().V().has(unique, P.within(ids)).each { known[it.value(unique)] = it }
    }
    def at = { id -> if (ours && !known.containsKey(id)) known[id] = tx.getVertex(id); known[id] }
    for (row in changes.vertices) {
      def vertex = ours ? tx.addVertex(T.id, row[1], T.label, row[0]) : known[row[1]]
      if (vertex == null) { vertex = tx.addVertex(row[0]); vertex.property(unique, row[1]) }
      known[row[1]] = vertex
      row[2].each { name, value -> vertex.property(VertexProperty.Cardinality.single, name, typed(name, value)) }
      row[3].each { name, cells -> for (cell in cells) vertex.property(VertexProperty.Cardinality.set, name, cell) }
    }
    for (row in changes.edges) {
      def edge = at(row[1])?.addEdge(row[0], at(row[2]))
      row[3].each { name, value -> edge?.property(name, typed(name, value)) }
    }
    for (row in changes.cells) at(row[0])?.property(VertexProperty.Cardinality.set, row[1], row[2])
    for (row in changes.settings) at(row[0])?.property(VertexProperty.Cardinality.single, row[1], typed(row[1], row[2]))
    changes.dropped?.groupBy { [it[0], it[1]] }?.each { where, gone ->
      def values = gone.collect { it[2] } as Set
      at(where[0])?.properties(where[1])?.findAll { it.value() in values }?.each { it.remove() }
    }
    tx.commit()
    return true
  } finally { if (tx.isOpen()) tx.rollback() }
}
if (ours) return write()
def until = System.currentTimeMillis() + left
synchronized (graph) { return System.currentTimeMillis() < until ? write() : false }
"""


def _declared(names: set[str], key: str, kind: str, *, many: bool) -> list[list[object]]:
    fresh = key not in names
    names.add(key)
    return [[key, kind, many]] if fresh else []


def _keys() -> list[list[object]]:
    names: set[str] = set()
    declared = [ID, *(key for keys in (*VERTICES.values(), *EDGES.values()) for key in keys)]
    return [row for key in declared for row in _declared(names, key.name, _TYPES[key.type], many=key.many)]


@dataclass(frozen=True, slots=True)
class _Traits:
    """Of a server's storage.

    Attributes:
        ours: Whether ids of vertices are ours to choose.
        interruptible: Whether work may be broken off.
    """

    ours: bool
    interruptible: bool


class JanusGraphEngine(GremlinEngine):
    """JanusGraph, on storage of any kind.

    Where its settings leave the ids of vertices to us, `element_id` is the id, and a property only of what `create` makes; else it is a property with
    an index everywhere. Which of both is asked of the server, once. On BerkeleyDB the server goes on with what it has begun at a deadline.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._known: _Traits | None = None

    async def addressing(self, deadline: Deadline) -> Addressing:
        """How the graph finds vertices."""
        return Addressing.ID if (await self._traits(deadline)).ours else Addressing.PROPERTY

    async def schema_version(self, *, deadline: Deadline) -> int:
        """Version of the schema that is in force; 0 where there is none."""
        return int(await self._evaluate(_VERSION, {"mark": _MARK}, deadline))

    async def migrate(self, version: int, *, deadline: Deadline) -> None:
        """Takes the schema from the version before to this one; may be repeated after it broke off."""
        bindings = {
            "propertyKeys": _keys(),
            "vertexLabels": [label.value for label in VERTICES],
            "edgeLabels": [label.value for label in EDGES],
            "unique": ID.name,
            "marked": f"{_MARK}{version}",
        }
        await self._evaluate(_MIGRATE, bindings, deadline)

    async def create(self, vertex: Vertex, *, deadline: Deadline) -> bool:
        """Makes a vertex unless there is one of its id: of all that ever try, exactly one is told True."""
        bindings = {
            "ours": (await self._traits(deadline)).ours,
            "unique": ID.name,
            "element": vertex.id,
            "kind": vertex.label.value,
            "singles": {name: rows.outgoing(value) for name, value in vertex.properties.items()},
            "many": {name: list(cells) for name, cells in vertex.sets.items()},
        }
        while True:
            outcome = await self._evaluate(_CREATE, bindings, deadline)
            if outcome != "contended":
                return bool(outcome == "made")
            # Another holds the lock: it wins, or breaks off.
            await asyncio.sleep(min(deadline.remaining(), random.uniform(0.01, _LONGEST_WAIT_S)))  # noqa: S311

    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        """Makes changes; `unless` is not looked at."""
        del unless
        ours = (await self._traits(deadline)).ours

        async def write(batch: str) -> None:
            bindings = {
                "batch": batch,
                "ours": ours,
                "unique": ID.name,
                "reals": list(rows.REALS),
                "left": bytecode.long(int(deadline.remaining() * 1000)),
            }
            if not await self._evaluate(_APPLY, bindings, deadline):
                raise errors.expired()

        # What needs a look-up comes after what makes the vertices that it looks up.
        stages = [changes] if ours else [Changes(changes.vertices), replace(changes, vertices=())]
        for stage in stages:
            await at_once(batches.documents(stage, self._endpoint.request_bytes), write, limit=REQUESTS_AT_ONCE)

    async def _traits(self, deadline: Deadline) -> _Traits:
        if self._known is None:
            (traits,) = await self._connections.submit(Script(_TRAITS), deadline=deadline)
            self._known = _Traits(**traits)
        return self._known

    async def _submit(self, request: Any, deadline: Deadline) -> list[Any]:
        traits = await self._traits(deadline)
        return await self._connections.submit(request, deadline=deadline, interrupt=traits.interruptible)

    async def _evaluate(self, text: str, bindings: Mapping[str, Any], deadline: Deadline) -> Any:
        (result,) = await self._submit(Script(text, bindings), deadline)
        return result
