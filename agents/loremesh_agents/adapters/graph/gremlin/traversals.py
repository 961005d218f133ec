"""The reads of the port as traversals: of constant shape, with everything from outside as an argument.

Each is flat where it leads from many vertices to many: an engine with a store elsewhere then reads each step's vertices together. What comes back is one
list of lists: names and messages for each row would cost more than the rows.
"""

import re
from collections.abc import Collection as Group
from collections.abc import Iterable
from enum import Enum
from typing import Any

from loremesh_agents.adapters.graph.gremlin.bytecode import Column, Order, P, T, WithOptions, anonymous, long, source
from loremesh_agents.adapters.graph.versioned.engine import Access
from loremesh_agents.domain.graph_schema import ID, EdgeLabel, VertexLabel

_OURS = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_MENTIONS, _BEARS, _LINKS_TO, _NAMED_BY = (
    label.value for label in (EdgeLabel.MENTIONS, EdgeLabel.BEARS, EdgeLabel.LINKS_TO, EdgeLabel.NAMED_BY)
)
_PASSAGE = ("ref", "ends")
_MOST_TITLES = 10_000
"""BEARS edges of an entity that are read, to choose the weightiest that may be seen."""
_ENTITY = ("entity_key", "uid", "size", "counts")
_ADDRESS = ("address", "uid", "counts")
_DOCUMENT = ("document_id", "uid", "states")


class Addressing(Enum):
    """How a graph finds the vertex of an `element_id`."""

    ID = "id"
    """It is the vertex's own id."""
    PROPERTY = "property"
    """It is a property with an index; the graph makes ids of its own."""


def well_formed(ids: Iterable[str]) -> list[str]:
    """Those that can be the id of a vertex, each once: others are not there, and some engines choke on them."""
    return [id_ for id_ in dict.fromkeys(ids) if _OURS.fullmatch(id_)]


def nothing_visible(access: Access) -> bool:
    """Whether no passage at all passes; then there is nothing to ask."""
    return (
        not access.uids
        or (access.readers is not None and not access.readers)
        or any(not alternatives for alternatives in access.conditions)
    )


class Reads:
    """Traversals for a graph.

    Args:
        addressing: How it finds vertices.
    """

    def __init__(self, addressing: Addressing) -> None:
        self._addressing = addressing

    def vertices(self, ids: Group[str]) -> Any:
        """Those of the vertices that are there; the ids must be well formed."""
        if self._addressing is Addressing.ID:
            return source().V(*ids)
        # The unfolding keeps JanusGraph from taking later conditions into the look-up, which then takes a time that grows with the square of the ids.
        return source().V().has(ID.name, P.within(list(ids))).unfold()

    def identity(self, begin: Any) -> Any:
        """The `element_id` of a vertex."""
        return begin.id_() if self._addressing is Addressing.ID else begin.values(ID.name)

    def records(self, ids: Group[str], fields: Group[str] | None) -> Any:
        """Maps of properties, each with the vertex's id and label."""
        return self._record(self.vertices(ids), fields)

    def passages(self, ids: Group[str], access: Access, fields: Group[str]) -> Any:
        """A list of maps of properties of those that may be seen."""
        return visible(self.vertices(ids), access).value_map(*dict.fromkeys((*_PASSAGE, *fields))).fold()

    def seeds(self, ids: Group[str], access: Access) -> Any:
        """A list of seeds that may be seen: handle, ends, edges to entities and addresses (label, id of what it leads to, map of properties)."""
        edges = (
            anonymous.out_e(_MENTIONS, _BEARS, _LINKS_TO)
            .project("label", "to", "values")
            .by(T.label)
            .by(self.identity(anonymous.in_v()))
            .by(anonymous.value_map())
            .select(Column.values)
            .fold()
        )
        seeds = visible(self.vertices(ids), access)
        return _rows(seeds.project("ref", "ends", "edges").by("ref").by(_ends()).by(edges))

    def entities(self, ids: Group[str]) -> Any:
        """Those of the entities that are there."""
        return self._record(self._entities(ids), _ENTITY)

    def titles(self, ids: Group[str], access: Access, limit: int) -> Any:
        """The weightiest BEARS edges to each of the entities, a list for each: entity, weight, title, handle and ends of the passage."""
        # JanusGraph would forget a name that is given outside the inner step.
        borne = anonymous.in_e(_BEARS).limit(_MOST_TITLES).as_("edge")
        edges = self._entities(ids).as_("entity").local(borne).out_v()
        rows = (
            visible(edges, access)
            .project("entity", "weight", "title", "ref", "ends")
            .by(self.identity(anonymous.select("entity")))
            .by(anonymous.select("edge").values("weight"))
            .by(anonymous.select("edge").values("title"))
            .by("ref")
            .by(_ends())
        )
        best = anonymous.order().by(anonymous.select("weight"), Order.desc).by(anonymous.select("ref")).limit(limit)
        return rows.group().by(anonymous.select("entity")).by(best.select(Column.values).fold()).select(Column.values)

    def mentions(self, ids: Group[str], access: Access, size: int) -> Any:
        """A list of MENTIONS edges to those of the entities that are not too large: entity, kind, handle and ends of the passage."""
        small = self._entities(ids).has("size", P.lte(long(size)))
        edges = small.as_("entity").in_e(_MENTIONS).as_("edge").out_v()
        return _rows(
            visible(edges, access)
            .project("entity", "kind", "ref", "ends")
            .by(self.identity(anonymous.select("entity")))
            .by(anonymous.select("edge").values("kind"))
            .by("ref")
            .by(_ends())
        )

    def addresses(self, ids: Group[str]) -> Any:
        """Those of the addresses that are there."""
        return self._record(self.vertices(ids), _ADDRESS)

    def documents(self, addresses: Group[str]) -> Any:
        """Documents that addresses name."""
        return (
            self.vertices(addresses)
            .as_("address")
            .in_(_NAMED_BY)
            .project("address", "document")
            .by(self.identity(anonymous.select("address")))
            .by(anonymous.value_map(*_DOCUMENT))
        )

    def _entities(self, ids: Group[str]) -> Any:
        return self.vertices(ids).has_label(VertexLabel.ENTITY.value)

    def _record(self, vertices: Any, fields: Group[str] | None) -> Any:
        # Without a name the step reads all properties: one that may not be there stands for none.
        names = () if fields is None else (ID.name, *fields)
        return vertices.value_map(*names).with_(WithOptions.tokens, WithOptions.ids | WithOptions.labels)


def _ends() -> Any:
    return anonymous.values("ends").fold()


def _rows(maps: Any) -> Any:
    """One list with the values of each map."""
    return maps.select(Column.values).fold()


def visible(passages: Any, access: Access) -> Any:
    """Those of the passages that may be seen."""
    kept = passages.has("ref", P.lt(long(access.before))).has("uid", P.within(list(access.uids)))
    if access.readers is not None:
        kept = kept.has("readers", P.within(list(access.readers)))
    for alternatives in access.conditions:
        kept = kept.has("metadata", P.within(list(alternatives)))
    return kept
