"""What comes back, as the port's types; and values as they travel."""

import base64
from collections.abc import Collection as Group
from collections.abc import Mapping
from typing import Any

from loremesh_agents.adapters.graph.gremlin.bytecode import T
from loremesh_agents.adapters.graph.versioned.engine import PassageRow, Record, Value
from loremesh_agents.domain.graph_schema import EDGES, ID, VERTICES, ValueType

_SETS = frozenset(declared.name for properties in VERTICES.values() for declared in properties if declared.many)
_VECTORS = frozenset(
    declared.name for properties in VERTICES.values() for declared in properties if declared.type is ValueType.VECTOR
)
REALS = tuple(
    declared.name for properties in EDGES.values() for declared in properties if declared.type is ValueType.REAL
)
"""Properties whose numbers are no integers."""


def outgoing(value: Value) -> str | int | float:
    """A value as it is stored: no engine of this language has bytes as a property."""
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _incoming(name: str, value: Any) -> Value:
    return base64.b64decode(value) if name in _VECTORS else value


def _parts(row: Mapping[Any, Any], asked: Group[str] | None) -> tuple[dict[str, Value], dict[str, tuple[str, ...]]]:
    properties: dict[str, Value] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for name, values in row.items():
        if asked is not None and name not in asked:
            continue
        if name in _SETS:
            sets[name] = tuple(dict.fromkeys(values))
        elif isinstance(name, str) and name != ID.name:
            properties[name] = _incoming(name, values[-1])
    return properties, sets


def record(row: Mapping[Any, Any], asked: Group[str] | None = None) -> Record:
    """A vertex from the map of its properties; None for all of them."""
    properties, sets = _parts(row, asked)
    return Record(properties, sets)


def identified(row: Mapping[Any, Any]) -> tuple[str, str]:
    """The `element_id` and the label of a vertex from the map of its properties."""
    stored = row.get(ID.name)
    return (stored[0] if stored else row[T.id]), row[T.label]


def passage(row: Mapping[Any, Any], asked: Group[str]) -> PassageRow:
    """A passage from the map of its properties."""
    properties, _ = _parts(row, asked)
    return PassageRow(row["ref"][0], tuple(dict.fromkeys(row.get("ends", ()))), properties)
