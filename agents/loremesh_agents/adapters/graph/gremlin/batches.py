"""Changes cut into requests that servers take."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import orjson

from loremesh_agents.adapters.graph.gremlin.rows import outgoing
from loremesh_agents.adapters.graph.versioned.engine import Changes

_Item = TypeVar("_Item")

_ITEMS = 1000


def cut(items: Iterable[_Item], size: Callable[[_Item], int], limit: int) -> Iterator[list[_Item]]:
    """Runs of items that stay below a size in bytes, but for an item that is larger itself."""
    run: list[_Item] = []
    taken = 0
    for item in items:
        more = size(item)
        if run and (taken + more > limit or len(run) == _ITEMS):
            yield run
            run, taken = [], 0
        run.append(item)
        taken += more
    if run:
        yield run


def documents(changes: Changes, limit: int) -> Iterator[str]:
    """Changes as JSON objects: lists of rows by the kind of change.

    Args:
        changes: Any.
        limit: Bytes that a document stays below, but for a row that is larger itself.
    """
    rows = ((kind, orjson.dumps(row)) for kind, row in _rows(changes))
    for run in cut(rows, lambda row: len(row[1]), limit):
        kinds: dict[str, list[bytes]] = {}
        for kind, row in run:
            kinds.setdefault(kind, []).append(row)
        lists = (orjson.dumps(kind) + b":[" + b",".join(encoded) + b"]" for kind, encoded in kinds.items())
        yield (b"{" + b",".join(lists) + b"}").decode()


def _rows(changes: Changes) -> Iterator[tuple[str, list[Any]]]:
    for vertex in changes.vertices:
        values = {name: outgoing(value) for name, value in vertex.properties.items()}
        yield (
            "vertices",
            [vertex.label.value, vertex.id, values, {name: [*cells] for name, cells in vertex.sets.items()}],
        )
    for edge in changes.edges:
        values = {name: outgoing(value) for name, value in edge.properties.items()}
        yield "edges", [edge.label.value, edge.source, edge.target, values]
    for cell in changes.cells:
        yield "cells", [cell.vertex, cell.property, cell.value]
    for cell in changes.dropped:
        yield "dropped", [cell.vertex, cell.property, cell.value]
    for setting in changes.settings:
        yield "settings", [setting.vertex, setting.property, outgoing(setting.value)]
