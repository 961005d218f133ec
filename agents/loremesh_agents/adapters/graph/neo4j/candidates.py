"""Passages that an index of the database proposes."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

from loremesh_agents.adapters.graph.versioned.engine import PassageRow
from loremesh_agents.adapters.graph.versioned.vectors import VectorPlaces
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision


class NewestState(Protocol):
    """What a store knows of its newest state; an index of the database alone knows none."""

    def holds(self, revision: CollectionRevision) -> bool:
        """Whether the collection is still there."""
        ...

    def is_there(self, row: PassageRow) -> bool:
        """Whether a passage's version counts, and no version that counts has ended it."""
        ...


class NewestVectors(NewestState, Protocol):
    """The same of a store whose vectors are looked for."""

    def vector_places(self, revision: CollectionRevision, model: str) -> VectorPlaces | None:
        """Where the vectors of a model are in a collection that is there; None where it has none of every passage."""
        ...


def there(rows: Iterable[Sequence[Any]], state: NewestState, limit: int) -> tuple[PassageRef, ...]:
    """The first of the passages that are there; those that are not take no place.

    Args:
        rows: Handle and ends of each, and whatever follows, the best first.
        state: Which passages are there.
        limit: Most passages.
    """
    found = (PassageRef(ref) for ref, ends, *_ in rows if state.is_there(PassageRow(ref, tuple(ends or ()), {})))
    return tuple(islice(found, limit))
