"""What an answer rests on, and why it was found."""

from dataclasses import dataclass
from enum import Enum

from loremesh_agents.domain.document import Passage

Value = str | float | bool | None


class EdgeKind(Enum):
    """How a step of a path gets to its node."""

    NAMED_IN_QUESTION = "named in question"
    TITLE = "title"
    MENTIONS = "mentions"
    REFERS_TO = "refers to"
    SIMILAR = "similar"
    EARLIER_TURN = "earlier turn"


@dataclass(frozen=True, slots=True)
class PathStep:
    """One step through the graph: to an entity (its name) or to a passage (its id and title).

    Attributes:
        edge: How it gets there.
        entity: Name of the entity; empty where the step leads to a passage.
        passage_id: Id of the passage; empty where it leads to an entity.
        title: Title of the passage, for people.
    """

    edge: EdgeKind
    entity: str = ""
    passage_id: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Why:
    """The reasons for a piece of evidence.

    Attributes:
        cosine: Of the question's and the passage's vectors; None without an encoder.
        text_score: BM25 divided by the best of the query, 0 to 1.
        graph_score: The part that the graph gave.
        path: From the question to the passage, over what gave the most.
    """

    cosine: float | None
    text_score: float
    graph_score: float
    path: tuple[PathStep, ...] = ()


@dataclass(frozen=True, slots=True)
class SqlRow:
    """A row that the SQL agent found."""

    sql: str
    columns: tuple[str, ...]
    values: tuple[Value, ...]
    ordinal: int
    title: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Something that an answer can rest on.

    Attributes:
        evidence_id: Unique in a query: `E1`, `E2`, ...
        source: What it is.
        score: How well it fits; comparable within a query.
        rank: From 1.
        why: Why it was found; None for rows.
    """

    evidence_id: str
    source: Passage | SqlRow
    score: float
    rank: int
    why: Why | None = None
