"""Changes of one write as they come together."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from loremesh_agents.adapters.graph.versioned.cells import Part, View, cell, mergeable, run, summed_up
from loremesh_agents.adapters.graph.versioned.engine import Cell, Changes, Edge, Setting, Vertex
from loremesh_agents.domain.graph_schema import VertexLabel

COMPACTED_FROM = 16
"""Cells of one property from which on it is worth merging them."""


@dataclass(slots=True)
class Batch:
    """Changes of one write.

    Attributes:
        version: Of the write.
        view: The state that it follows.
        horizon: Every reader that is still there sees at least this version.
    """

    version: int
    view: View
    horizon: int
    vertices: list[Vertex] = field(default_factory=list[Vertex])
    edges: list[Edge] = field(default_factory=list[Edge])
    cells: list[Cell] = field(default_factory=list[Cell])
    dropped: list[Cell] = field(default_factory=list[Cell])
    settings: list[Setting] = field(default_factory=list[Setting])

    @property
    def changes(self) -> Changes:
        """The changes so far."""
        return Changes(self.vertices, self.edges, self.cells, self.dropped, self.settings)

    def taken(self) -> Changes:
        """The changes so far, to be sent; the batch goes on without them."""
        changes = self.changes
        self.vertices, self.edges, self.cells, self.dropped, self.settings = [], [], [], [], []
        return changes

    def add(self, label: VertexLabel, vertex: str, name: str, payload: str) -> None:
        """Adds a cell to a vertex that is there."""
        self.cells.append(Cell(label, vertex, name, cell(self.version, payload)))

    def drop(self, label: VertexLabel, vertex: str, name: str, values: Iterable[str]) -> None:
        """Takes cells away that no reader needs."""
        self.dropped += [Cell(label, vertex, name, value) for value in values]

    def to_merge(self, label: VertexLabel, vertex: str, name: str, values: tuple[str, ...]) -> list[Part]:
        """Drops what is summed up already; gives the cells that should become one.

        Args:
            label: Of the vertex.
            vertex: Its id.
            name: Of the property.
            values: Its cells, as they were read after the claim.
        """
        self.drop(label, vertex, name, summed_up(values, self.view, self.horizon))
        return mergeable(values, self.view, self.horizon) if len(values) > COMPACTED_FROM else []

    def merge(self, label: VertexLabel, vertex: str, name: str, merged: list[Part], payload: str) -> None:
        """Adds the cell that sums others up. These go in a later write, once every reader sees this one."""
        self.cells.append(Cell(label, vertex, name, run(self.version, merged, payload)))
