"""Amazon Neptune: everything by traversals, for it has neither scripts nor a schema of its own.

Its default for properties is a set: what has one value says so. A request is a transaction, which fails whole where another one was faster.
"""

import asyncio
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import attrgetter
from typing import Any
from urllib.parse import urlsplit

import orjson

from loremesh_agents.adapters.graph.gremlin import batches, errors, rows
from loremesh_agents.adapters.graph.gremlin.bytecode import (
    Cardinality,
    Direction,
    P,
    T,
    anonymous,
    long,
    source,
)
from loremesh_agents.adapters.graph.gremlin.endpoint import Address, Endpoint
from loremesh_agents.adapters.graph.gremlin.engine import GremlinEngine
from loremesh_agents.adapters.graph.gremlin.signature import environment_credentials, signed_headers
from loremesh_agents.adapters.graph.gremlin.traversals import Addressing
from loremesh_agents.adapters.graph.versioned.engine import Cell, Changes, Edge, Setting, Value, Vertex
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import ConfigurationError, WriteConflict

_SCHEMA = "schema"
_SERVICE = "neptune-db"
_HTTPS = 443
_LONGEST_WAIT_S = 0.2


def neptune_endpoint(setting: str, url: str) -> Endpoint:
    """The cluster of `neptune+wss://host:port`; its region is a part of its name, or comes from AWS_REGION.

    Credentials are read anew for each connection. Without any, connections are not signed: a cluster may do without.

    Args:
        setting: Name of the setting, for the error.
        url: Its value.

    Raises:
        ConfigurationError: The URL is not of that form, or the region is not known.
    """
    form = "neptune+wss://cluster.region.neptune.amazonaws.com:8182"
    address = Address.parse(setting, url, form)
    if address.user or address.path:
        raise ConfigurationError(f"the setting {setting} is {url!r}: it must be of the form {form}")
    region = _region(address.host)
    if not region:
        raise ConfigurationError(
            f"the setting {setting} is {url!r}, a name without a region: set the environment variable AWS_REGION"
        )
    host = address.host if address.port == _HTTPS else address.authority

    def headers() -> Mapping[str, str]:
        credentials = environment_credentials()
        if credentials is None:
            return {}
        path = urlsplit(address.websocket).path
        return signed_headers(credentials, host=host, path=path, region=region, service=_SERVICE, at=datetime.now(UTC))

    return Endpoint("neptune", address.websocket, tls=address.tls, headers=headers)


def _region(host: str) -> str:
    labels = host.split(".")
    if labels[-3:] == ["neptune", "amazonaws", "com"] and len(labels) > 3:
        return labels[-4]
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "")


class NeptuneEngine(GremlinEngine):
    """Amazon Neptune: the ids of vertices are ours.

    Args:
        endpoint: The server.
    """

    async def addressing(self, deadline: Deadline) -> Addressing:
        """How the graph finds vertices."""
        del deadline
        return Addressing.ID

    async def schema_version(self, *, deadline: Deadline) -> int:
        """Version of the schema that is in force; 0 where there is none."""
        found = await self._submit(source().V(_SCHEMA).values("version"), deadline)
        return max(found, default=0)

    async def migrate(self, version: int, *, deadline: Deadline) -> None:
        """Notes the version: there is nothing to declare."""
        there = source().merge_v({T.id: _SCHEMA, T.label: "Schema"})
        await self._retried(there.property(Cardinality.single, "version", long(version)).id_(), deadline)

    async def create(self, vertex: Vertex, *, deadline: Deadline) -> bool:
        """Makes a vertex unless there is one of its id: of all that ever try, exactly one is told True."""
        made = source().add_v(vertex.label.value).property(T.id, vertex.id)
        for name, value in vertex.properties.items():
            made = made.property(Cardinality.single, name, _outgoing(value))
        for name, values in vertex.sets.items():
            for value in values:
                made = made.property(Cardinality.set_, name, value)
        try:
            await self._retried(made.id_(), deadline)
        except errors.AlreadyThere:
            return False
        return True

    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        """Makes changes; `unless` is not looked at."""
        del unless
        if deadline.expired:
            raise errors.expired()
        limit = self._endpoint.request_bytes
        for stage in (_vertices(changes.vertices, limit), _rest(changes, limit)):
            # One after another: over a vertex that they share, those of one batch would fail one another.
            for traversal in stage:
                await self._retried(traversal, deadline)

    async def _retried(self, traversal: Any, deadline: Deadline) -> list[Any]:
        # A transaction that another one was faster than left nothing behind.
        while True:
            try:
                return await self._submit(traversal, deadline)
            except WriteConflict:
                await asyncio.sleep(min(deadline.remaining(), random.uniform(0, _LONGEST_WAIT_S)))  # noqa: S311


def _outgoing(value: Value) -> Any:
    return long(value) if isinstance(value, int) else rows.outgoing(value)


def _size(values: Any) -> int:
    return len(orjson.dumps(values, default=str))


def _vertices(vertices: Sequence[Vertex], limit: int) -> Iterator[Any]:
    """Requests that make vertices: of one label and one set of properties each, for a traversal has no optional steps."""

    def shape(vertex: Vertex) -> tuple[str, tuple[str, ...]]:
        return vertex.label.value, tuple(sorted(vertex.properties))

    for (label, names), group in groupby(sorted(vertices, key=shape), shape):
        made = ({"id": {T.id: vertex.id, T.label: label}, "singles": vertex.properties} for vertex in group)
        for run in batches.cut(made, lambda row: _size(list(row["singles"].values())), limit):
            listed = [{"id": row["id"], **{name: _outgoing(row["singles"][name]) for name in names}} for row in run]
            traversal = source().inject(listed).unfold().as_("row").merge_v(anonymous.select("id"))
            for name in names:
                traversal = traversal.property(Cardinality.single, name, anonymous.select("row").select(name))
            yield traversal.count()


def _rest(changes: Changes, limit: int) -> Iterator[Any]:
    """Requests for what needs the vertices."""
    for run in batches.cut(changes.edges, lambda edge: _size(list(edge.properties.values())) + 64, limit):
        yield _edges(run)
    of_new = (
        Cell(vertex.label, vertex.id, name, value)
        for vertex in changes.vertices
        for name, values in vertex.sets.items()
        for value in values
    )
    place = attrgetter("property")
    for name, cells in groupby(sorted((*of_new, *changes.cells), key=place), place):
        for gained in batches.cut(cells, lambda cell: len(cell.value) * 2, limit):
            yield _gained(name, gained)
    for name, cells in groupby(sorted(changes.dropped, key=place), place):
        for lost in batches.cut(cells, lambda cell: len(cell.value) * 2, limit):
            yield _lost(name, lost)
    for name, settings in groupby(sorted(changes.settings, key=place), place):
        for hints in batches.cut(settings, lambda setting: _size(setting.value), limit):
            yield _set(name, hints)


def _edges(edges: Iterable[Edge]) -> Any:
    listed = [
        {
            Direction.from_: edge.source,
            Direction.to: edge.target,
            T.label: edge.label.value,
            **{name: _outgoing(value) for name, value in edge.properties.items()},
        }
        for edge in edges
    ]
    return source().inject(listed).unfold().merge_e().count()


def _by_vertex(cells: Iterable[Cell]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for cell in cells:
        values.setdefault(cell.vertex, []).append(cell.value)
    return values


def _of_vertex() -> Any:
    """What the side effect `values` has for the vertex of the traverser."""
    return anonymous.select("values").select(anonymous.select("vertex").id_())


def _gained(name: str, cells: Iterable[Cell]) -> Any:
    values = _by_vertex(cells)
    each = source().with_side_effect("values", values).V(*values).as_("vertex").flat_map(_of_vertex().unfold())
    return each.as_("value").select("vertex").property(Cardinality.set_, name, anonymous.select("value")).count()


def _lost(name: str, cells: Iterable[Cell]) -> Any:
    values = _by_vertex(cells)
    held = source().with_side_effect("values", values).V(*values).as_("vertex").properties(name).as_("held")
    named = anonymous.value().as_("value").flat_map(_of_vertex().unfold()).where(P.eq("value"))
    return held.filter_(named).drop()


def _set(name: str, settings: Iterable[Setting]) -> Any:
    values = {setting.vertex: _outgoing(setting.value) for setting in settings}
    vertices = source().with_side_effect("values", values).V(*values).as_("vertex")
    return vertices.property(Cardinality.single, name, _of_vertex()).count()
