"""Changes as the parameters of `statements.apply`."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from loremesh_agents.adapters.graph.neo4j import statements
from loremesh_agents.adapters.graph.versioned.engine import Changes, Value, Vertex
from loremesh_agents.domain.graph_schema import EDGES, VertexLabel

Row = Any

_MOST_WEIGHT = 4_000
_VECTOR_WEIGHT = 16
"""A batch is packed in one go on the event loop, and is one transaction in the server's memory: 4,000 edges, or 250 passages with their vectors."""


def batches(changes: Changes) -> Iterator[Mapping[str, list[Row]]]:
    """Rows by parameter, in batches that may be sent one after another: none needs what a later one makes."""
    batch: dict[str, list[Row]] = defaultdict(list)
    total = 0
    for parameter, row, weight in _rows(changes):
        if batch and total + weight > _MOST_WEIGHT:
            yield batch
            batch = defaultdict(list)
            total = 0
        batch[parameter].append(row)
        total += weight
    if batch:
        yield batch


def _rows(changes: Changes) -> Iterator[tuple[str, Row, int]]:
    for vertex in changes.vertices:
        weight = _VECTOR_WEIGHT if "vector" in vertex.properties else 1
        yield statements.vertices_parameter(vertex.label), _vertex(vertex), weight
    for edge in changes.edges:
        values = (edge.properties.get(declared.name) for declared in EDGES[edge.label])
        yield statements.edges_parameter(edge.label), [edge.source, edge.target, *values], 1
    for (label, id_), (gained, lost, properties) in _changed(changes).items():
        row = {"id": id_, "gained": gained, "lost": lost, "properties": properties}
        yield statements.changes_parameter(label), row, 1


def _vertex(vertex: Vertex) -> Row:
    vector = vertex.properties.get("vector")
    return {
        "id": vertex.id,
        "properties": dict(vertex.properties),
        "sets": {name: list(dict.fromkeys(values)) for name, values in vertex.sets.items() if values},
        "embedding": np.frombuffer(vector, dtype="<f4").tolist() if isinstance(vector, bytes) and vector else None,
        "index": _embedding(vertex),
    }


def _embedding(vertex: Vertex) -> str:
    number = vertex.properties.get("generation")
    return statements.set_embedding(int(number)) if number is not None else statements.EMBEDDING


_Values = dict[str, list[str]]


def _changed(changes: Changes) -> dict[tuple[VertexLabel, str], tuple[_Values, _Values, dict[str, Value | None]]]:
    """What sets gain and lose and what is set, by vertex: each is written once."""
    found: dict[tuple[VertexLabel, str], tuple[_Values, _Values, dict[str, Value | None]]] = defaultdict(
        lambda: (defaultdict(list), defaultdict(list), {})
    )
    dropped = set(changes.dropped)
    for cell in dict.fromkeys(changes.cells):
        if cell not in dropped:
            found[cell.label, cell.vertex][0][cell.property].append(cell.value)
    for cell in dropped:
        found[cell.label, cell.vertex][1][cell.property].append(cell.value)
    for setting in changes.settings:
        values = found[setting.label, setting.vertex][2]
        values[setting.property] = setting.value
        if setting.property == "vector" and not setting.value:
            values[statements.EMBEDDING] = None
    return found
