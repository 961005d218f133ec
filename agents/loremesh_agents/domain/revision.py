"""States of collections, and how fresh a read must be."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CollectionRevision:
    """A state of a collection.

    Attributes:
        collection: Its name.
        collection_uid: Made when the collection was created; empty in a request for whichever has the name now.
        revision: Number of writes that the state includes.
    """

    collection: str
    collection_uid: str
    revision: int


@dataclass(frozen=True, slots=True)
class Consistency:
    """How fresh a read must be. The default is the newest state that can be seen without waiting.

    Attributes:
        min_revisions: Revision to wait for, by collection name.
        max_staleness: Seconds by which a cache may lag; None for none.
    """

    min_revisions: Mapping[str, CollectionRevision]
    max_staleness: float | None = None


LATEST = Consistency({})
"""The newest state, without waiting."""
