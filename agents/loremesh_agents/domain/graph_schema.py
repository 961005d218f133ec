"""What a property graph holds, declared once; each engine turns it into a schema of its own.

A write only adds facts, each stamped with the version of the write; docs/consistency.md says why a reader never sees half of one. So a property
that several writes add to is a set, of which each value begins with a version and a colon (a cell). Property names are unique in the whole
schema: some engines declare them once for all labels.
"""

from dataclasses import dataclass
from enum import Enum

VERSION = 2
"""Of this schema. Each number above 0 is the number of a migration."""


class ValueType(Enum):
    """What a property holds."""

    TEXT = "text"
    INTEGER = "integer"
    """64 bits, signed."""
    REAL = "real"
    """64 bits."""
    VECTOR = "vector"
    """Little-endian float32, as bytes; an engine without such a type keeps it as text."""


@dataclass(frozen=True, slots=True)
class Property:
    """A property of vertices or edges.

    Attributes:
        name: Its name.
        type: What it holds.
        many: Whether it is a set of values.
    """

    name: str
    type: ValueType = ValueType.TEXT
    many: bool = False


class VertexLabel(Enum):
    """The kinds of vertices."""

    REGISTER = "Register"
    """One in the whole store: which collections there are."""
    CLAIM = "Claim"
    """A version that a writer has begun."""
    DECISION = "Decision"
    """What became of a version: committed or aborted, said once."""
    COLLECTION = "Collection"
    CHANGE = "Change"
    """A revision of a collection: what it wrote and removed."""
    DOCUMENT = "Document"
    PASSAGE = "Passage"
    ENTITY = "Entity"
    ADDRESS = "Address"
    """What links lead to and documents are named by."""
    BUCKET = "Bucket"
    """Statistics and postings of some of the terms of a collection."""
    VECTOR = "Vector"
    """A vector of a passage, of a set that the passage itself does not hold."""


class EdgeLabel(Enum):
    """The kinds of edges, each from what it says it to what it is about."""

    HAS_PASSAGE = "HAS_PASSAGE"
    """From a document to a passage."""
    BEARS = "BEARS"
    """From a passage to an entity whose name is its title."""
    MENTIONS = "MENTIONS"
    """From a passage to an entity."""
    LINKS_TO = "LINKS_TO"
    """From a passage to an address."""
    NAMED_BY = "NAMED_BY"
    """From a document to an address."""


ID = Property("element_id")
"""Every vertex has one: unique in the store, of ASCII letters and digits alone. Where an engine takes ids from us, it is the vertex's id as well."""

VERTICES: dict[VertexLabel, tuple[Property, ...]] = {
    VertexLabel.REGISTER: (Property("collections", many=True), Property("head", ValueType.INTEGER)),
    VertexLabel.CLAIM: (Property("claim"),),
    VertexLabel.DECISION: (Property("decision"),),
    VertexLabel.COLLECTION: (Property("name"), Property("states", many=True)),
    VertexLabel.CHANGE: (Property("changes", many=True),),
    VertexLabel.DOCUMENT: (Property("document_id"), Property("uid"), Property("states", many=True)),
    VertexLabel.PASSAGE: (
        Property("ref", ValueType.INTEGER),
        Property("uid"),
        Property("readers", many=True),
        Property("metadata", many=True),
        Property("ends", many=True),
        Property("features"),
        Property("vector", ValueType.VECTOR),
        Property("body"),
        Property("words"),
        Property("further_words"),
    ),
    VertexLabel.ENTITY: (
        Property("entity_key"),
        Property("uid"),
        Property("counts", many=True),
        Property("size", ValueType.INTEGER),
    ),
    VertexLabel.ADDRESS: (Property("address"), Property("uid"), Property("counts", many=True)),
    VertexLabel.BUCKET: (Property("frequencies", many=True), Property("postings", many=True)),
    VertexLabel.VECTOR: (
        Property("ref", ValueType.INTEGER),
        Property("uid"),
        Property("generation", ValueType.INTEGER),
        Property("model"),
        Property("vector", ValueType.VECTOR),
        Property("made", many=True),
    ),
}
"""The properties of each kind of vertex, `ID` aside. `uid` is that of the collection, `generation` the number of a set of vectors."""

EDGES: dict[EdgeLabel, tuple[Property, ...]] = {
    EdgeLabel.HAS_PASSAGE: (),
    EdgeLabel.BEARS: (Property("weight", ValueType.REAL), Property("title")),
    EdgeLabel.MENTIONS: (Property("kind", ValueType.INTEGER),),
    EdgeLabel.LINKS_TO: (Property("fragment"),),
    EdgeLabel.NAMED_BY: (),
}
"""The properties of each kind of edge."""
