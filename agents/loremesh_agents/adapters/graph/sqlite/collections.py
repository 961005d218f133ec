"""What the table of collections says of one."""

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from loremesh_agents.adapters.graph.sqlite.schema import VECTOR_TABLES
from loremesh_agents.domain.document import (
    Collection,
    CollectionOptions,
    CollectionVectors,
    Reembedding,
    ReembeddingPhase,
)
from loremesh_agents.domain.errors import BackendUnavailable, CollectionNotFound
from loremesh_agents.domain.revision import CollectionRevision

COLLECTION_COLUMNS = (
    "SELECT name, uid, revision, document_count, passage_count, entity_count, embedding_model, create_time, update_time,"
    " reader_statistics, other_model, other_phase, other_count"
    " FROM collection"
)
"""What `collection_of` needs of a collection; a WHERE clause follows."""


def time_of(seconds: float) -> datetime:
    """The time so many seconds after 1970."""
    return datetime.fromtimestamp(seconds, UTC)


def collection_of(row: Sequence[Any]) -> Collection:
    """The collection of a row of `COLLECTION_COLUMNS`."""
    name, uid, revision, documents, passages, entities, model, created, updated, reader_statistics, *other = row
    other_model, other_phase, other_count = other
    return Collection(
        name,
        uid,
        revision,
        documents,
        passages,
        entities,
        model,
        time_of(created),
        time_of(updated),
        CollectionOptions(bool(reader_statistics)),
        Reembedding(other_model, ReembeddingPhase(other_phase), other_count) if other_phase else None,
    )


def read_collection(connection: sqlite3.Connection, name: str) -> Collection:
    """A collection.

    Raises:
        CollectionNotFound: There is none of that name.
    """
    row = connection.execute(f"{COLLECTION_COLUMNS} WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise CollectionNotFound(name)
    return collection_of(row)


def vector_table(connection: sqlite3.Connection, name: str, model: str | None) -> str:
    """The table of a collection's vectors of a model, which every passage has; None for those that count.

    Raises:
        BackendUnavailable: It has none of that model, or not of every passage.
    """
    found = read_collection(connection, name)
    slot: int = connection.execute("SELECT vector_slot FROM collection WHERE name = ?", (name,)).fetchone()[0]
    if model is None or model == found.embedding_model:
        return VECTOR_TABLES[slot]
    reached = CollectionRevision(name, found.collection_uid, found.revision)
    if model in CollectionVectors(reached, found.embedding_model, found.passage_count, found.reembedding).whole:
        return VECTOR_TABLES[1 - slot]
    raise BackendUnavailable(f"vectors of {model or 'no model'} in {name}")
