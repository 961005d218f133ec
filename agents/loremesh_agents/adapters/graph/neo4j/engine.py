"""The property graph of a Neo4j database."""

import logging
from collections.abc import Collection as Group
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from neo4j.exceptions import ConstraintError

from loremesh_agents.adapters.graph.neo4j import statements
from loremesh_agents.adapters.graph.neo4j.changes import batches
from loremesh_agents.adapters.graph.neo4j.connection import BACKEND, Connection
from loremesh_agents.adapters.graph.versioned.engine import (
    Access,
    Changes,
    LinkRow,
    MentionRow,
    Neighbourhood,
    PassageRow,
    Passages,
    Record,
    TitleRow,
    Value,
    Vertex,
)
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, WriteConflict
from loremesh_agents.domain.graph_schema import VERTICES, VertexLabel

_log = logging.getLogger(__name__)

_MOST_EDGES_REMOVED = 10_000
_MOST_VERTICES_REMOVED = 2_000
_SCHEMA = {"schema": statements.SCHEMA_ID}


class Neo4jEngine:
    """See `adapters.graph.versioned.engine.GraphEngine`. Each method is one query, but for changes and removals too large for one transaction.

    A query may be answered by any member of a cluster; those of one process see what the ones before them have written or seen. Another process
    that reads from a follower may see a write later than the writer does, and still sees writes in their order.

    Args:
        connection: Closed with the engine; the indexes of the same database share it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def connection(self) -> Connection:
        """For the indexes of the same database."""
        return self._connection

    @property
    def name(self) -> str:
        """See the port."""
        return BACKEND

    @property
    def requests(self) -> int:
        """See the port; those of the indexes are among them."""
        return self._connection.requests

    async def schema_version(self, *, deadline: Deadline) -> int:
        """See the port.

        Raises:
            ConfigurationError: The server refuses the password, or has no such database.
        """
        rows = await self._connection.read(statements.SCHEMA_VERSION, _SCHEMA, starting=True, deadline=deadline)
        return int(rows[0][0]) if rows and rows[0][0] is not None else 0

    async def migrate(self, version: int, *, deadline: Deadline) -> None:
        """See the port. Each step asks for what is not there yet, so it may be repeated.

        Raises:
            ConfigurationError: The server refuses the password, or has no such database.
        """
        for text in statements.MIGRATIONS[version]:
            await self._connection.write(text, {}, starting=True, deadline=deadline)
        seconds = max(1, int(deadline.remaining()))
        await self._connection.write(statements.AWAIT_INDEXES, {"seconds": seconds}, deadline=deadline)
        await self._connection.write(
            statements.SET_SCHEMA_VERSION, {**_SCHEMA, "version": version}, starting=True, deadline=deadline
        )

    async def create(self, vertex: Vertex, *, deadline: Deadline) -> bool:
        """See the port."""
        sets = {name: list(dict.fromkeys(values)) for name, values in vertex.sets.items() if values}
        properties = {"element_id": vertex.id, **vertex.properties, **sets}
        try:
            rows = await self._connection.write(
                statements.create(vertex.label), {**_SCHEMA, "properties": properties}, deadline=deadline
            )
        except ConstraintError:
            return False
        self._require_schema(rows)
        return True

    async def records(
        self, ids: Mapping[VertexLabel, Group[str]], *, fields: Group[str] | None = None, deadline: Deadline
    ) -> Mapping[str, Record]:
        """See the port."""
        asked = sorted((label for label, group in ids.items() if group), key=lambda label: label.value)
        if not asked:
            return {}
        columns = tuple((label, _names(label, fields)) for label in asked)
        rows = await self._connection.read(
            statements.records(columns),
            {statements.ids_parameter(label): list(ids[label]) for label in asked},
            deadline=deadline,
        )
        names = {label.value: _Columns(label, group) for label, group in columns}
        return {
            id_: names[label].record(row)
            for label, found, values in rows
            for id_, row in zip(found, _rows(found, values), strict=True)
        }

    async def passages(
        self, refs: Group[int], access: Access, *, fields: Group[str], deadline: Deadline
    ) -> Sequence[PassageRow]:
        """See the port."""
        if not refs:
            return []
        names = _names(VertexLabel.PASSAGE, fields)
        text = statements.passages(names, **_which(access))
        rows = await self._connection.read(
            text, {"refs": list(dict.fromkeys(refs)), **_parameters(access)}, deadline=deadline
        )
        ((found, ends, values),) = rows
        return [
            PassageRow(
                ref,
                tuple(cells or ()),
                {name: value for name, value in zip(names, row, strict=True) if value is not None},
            )
            for ref, cells, row in zip(found, ends, _rows(found, values), strict=True)
        ]

    async def neighbourhood(
        self,
        seeds: Group[int],
        entities: Group[str],
        access: Access,
        *,
        title_limit: int,
        mention_limit: int,
        deadline: Deadline,
    ) -> Neighbourhood:
        """See the port."""
        rows = await self._connection.read(
            statements.neighbourhood(**_which(access)),
            {
                "seeds": list(dict.fromkeys(seeds)),
                "entities": list(dict.fromkeys(entities)),
                "title_limit": title_limit,
                "mention_limit": mention_limit,
                **_parameters(access),
            },
            deadline=deadline,
        )
        ((seed_mentions, seed_titles, links, met, titles, mentions, addresses, named),) = rows
        documents: dict[str, list[Record]] = {}
        for address, *values in named:
            documents.setdefault(address, []).append(_DOCUMENT.record(values))
        passage = Passages()
        return Neighbourhood(
            seed_mentions=[
                MentionRow(entity, row, kind)
                for ref, ends, met_there, kinds in seed_mentions
                for row in (passage(ref, ends),)
                for entity, kind in zip(met_there, kinds, strict=True)
            ],
            seed_titles=[
                TitleRow(entity, passage(ref, ends), weight, title) for ref, ends, entity, weight, title in seed_titles
            ],
            links=[LinkRow(ref, address, fragment) for ref, address, fragment in links],
            entities={id_: _ENTITY.record(values) for id_, *values in met},
            titles=[
                TitleRow(entity, passage(ref, ends.get(ref)), weight, title)
                for entity, refs, ended, weights, names in titles
                for ends in (dict(ended),)
                for ref, weight, title in zip(refs, weights, names, strict=True)
            ],
            mentions=[
                MentionRow(entity, passage(ref, ends.get(ref)), kind)
                for entity, refs, ended, kinds in mentions
                for ends in (dict(ended),)
                for ref, kind in zip(refs, kinds, strict=True)
            ],
            addresses={id_: _ADDRESS.record(values) for id_, *values in addresses},
            documents=documents,
        )

    async def apply(self, changes: Changes, *, unless: str, deadline: Deadline) -> None:
        """See the port. All of a batch that is not too large is one transaction."""
        for batch in batches(changes):
            rows = await self._connection.write(
                statements.apply(frozenset(batch)), {**_SCHEMA, "unless": unless, **batch}, deadline=deadline
            )
            self._require_schema(rows)
            if not rows[0][0]:
                raise WriteConflict(BACKEND)

    async def remove(self, ids: Mapping[VertexLabel, Group[str]], *, deadline: Deadline) -> None:
        """See the port."""
        for label, group in ids.items():
            listed = list(group)
            for start in range(0, len(listed), _MOST_VERTICES_REMOVED):
                parameters = {
                    **_SCHEMA,
                    "ids": listed[start : start + _MOST_VERTICES_REMOVED],
                    "most": _MOST_EDGES_REMOVED,
                }
                removed = _MOST_EDGES_REMOVED
                while removed >= _MOST_EDGES_REMOVED:
                    rows = await self._connection.write(statements.remove(label), parameters, deadline=deadline)
                    self._require_schema(rows)
                    removed = rows[0][0]

    async def close(self) -> None:
        """See the port."""
        await self._connection.close()

    def _require_schema(self, rows: Sequence[object]) -> None:
        # The schema's vertex is what writers lock: without it a write does nothing, and must not look as if it had.
        if not rows:
            _log.error("%s: the database has no schema; `loremesh graph migrate` makes it", BACKEND)
            raise BackendUnavailable(BACKEND)


class _Columns:
    """How the values of a row become a record.

    Args:
        label: Whose properties they are.
        names: The properties, in the order of the values.
    """

    def __init__(self, label: VertexLabel, names: Sequence[str]) -> None:
        sets = {declared.name for declared in VERTICES[label] if declared.many}
        self._names = [(name, name in sets) for name in names]

    def record(self, values: Sequence[Any]) -> Record:
        properties: dict[str, Value] = {}
        sets: dict[str, tuple[str, ...]] = {}
        for (name, is_set), value in zip(self._names, values, strict=True):
            if is_set:
                sets[name] = tuple(value or ())
            elif value is not None:
                properties[name] = value
        return Record(properties, sets)


_ENTITY = _Columns(VertexLabel.ENTITY, ("entity_key", "uid", "size", "counts"))
_ADDRESS = _Columns(VertexLabel.ADDRESS, ("address", "uid", "counts"))
_DOCUMENT = _Columns(VertexLabel.DOCUMENT, ("document_id", "uid", "states"))


def _names(label: VertexLabel, fields: Group[str] | None) -> tuple[str, ...]:
    """Names from the schema alone, whatever is asked for."""
    return tuple(declared.name for declared in VERTICES[label] if fields is None or declared.name in fields)


def _rows(found: Sequence[object], columns: Sequence[Sequence[Any]]) -> Iterable[Sequence[Any]]:
    """The values of each of what was found."""
    return zip(*columns, strict=True) if columns else [()] * len(found)


def _which(access: Access) -> dict[str, bool]:
    return {"readers": access.readers is not None, "conditions": bool(access.conditions)}


def _parameters(access: Access) -> dict[str, Any]:
    return {
        "uids": list(access.uids),
        "before": access.before,
        "readers": None if access.readers is None else list(access.readers),
        "conditions": [list(values) for values in access.conditions],
    }
