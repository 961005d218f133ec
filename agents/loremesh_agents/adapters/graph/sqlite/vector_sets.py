"""The vectors of a collection beside those that count, in the graph's own file."""

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.sqlite.collections import read_collection
from loremesh_agents.adapters.graph.sqlite.connection import Connections
from loremesh_agents.adapters.graph.sqlite.rows import execute_rows
from loremesh_agents.adapters.graph.sqlite.schema import VECTOR_TABLES
from loremesh_agents.adapters.graph.sqlite.writer import vector_bytes
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Collection, ReembeddingPhase
from loremesh_agents.domain.errors import CollectionNotFound, ReembeddingRefused
from loremesh_agents.domain.passages import full_text
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.ports.vector_sets import Unembedded


@dataclass(frozen=True, slots=True)
class _Sets:
    """A collection's vectors.

    Attributes:
        id: The collection.
        other: Table of those that do not count.
        model: Their model.
        phase: What becomes of them; empty where there are none.
        count: How many they are.
        passages: How many passages there are.
        counting: The model of those that count.
    """

    id: int
    other: str
    model: str
    phase: str
    count: int
    passages: int
    counting: str

    @property
    def wanted(self) -> bool:
        """Whether they are being made."""
        return self.phase == ReembeddingPhase.MAKING.value


class SqliteVectorSets:
    """See `ports.vector_sets.VectorSets`.

    Args:
        connections: Of the graph store.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def begin(self, collection: str, model: str, *, deadline: Deadline) -> Collection:
        """See the port."""

        def work(connection: sqlite3.Connection) -> Collection:
            sets = _sets(connection, collection)
            if model == sets.counting or (model == sets.model and sets.wanted):
                return read_collection(connection, collection)
            if sets.phase == ReembeddingPhase.DROPPING.value:
                raise ReembeddingRefused(
                    collection, f"its vectors of {sets.model} are still being removed; try again when they are gone"
                )
            if sets.phase and model != sets.model:
                raise ReembeddingRefused(
                    collection,
                    f"it still has vectors of {sets.model} beside those of {sets.counting};"
                    " 'loremesh collections NAME --finish' removes them",
                )
            connection.execute(
                "UPDATE collection SET other_model = ?, other_phase = ? WHERE id = ?",
                (model, ReembeddingPhase.MAKING.value, sets.id),
            )
            return read_collection(connection, collection)

        return await self._connections.write(work, deadline)

    async def unembedded(
        self, collection: str, model: str, *, after: PassageRef, limit: int, deadline: Deadline
    ) -> Unembedded:
        """See the port."""

        def work(connection: sqlite3.Connection) -> Unembedded:
            sets = _sets(connection, collection)
            if not sets.wanted or sets.model != model:
                return Unembedded({}, None)
            rows = connection.execute(
                "SELECT p.id, v.passage, d.title, d.document_id, t.headings, t.text FROM passage p"
                f" LEFT JOIN {sets.other} v ON v.passage = p.id JOIN document d ON d.id = p.document"
                " JOIN passage_text t ON t.passage = p.id"
                " WHERE p.id > ? AND p.collection = ? ORDER BY p.id LIMIT ?",
                (after, sets.id, limit),
            ).fetchall()
            texts = {
                # A document without a title is shown by its id, which is not embedded.
                PassageRef(ref): full_text("" if title == document_id else title, json.loads(headings), text)
                for ref, vector, title, document_id, headings, text in rows
                if vector is None
            }
            return Unembedded(texts, PassageRef(rows[-1][0]) if rows else None)

        async with self._connections.reader(deadline) as connection:
            return await self._connections.read(connection, work, deadline)

    async def add(
        self, collection: str, model: str, vectors: Mapping[PassageRef, NDArray[np.float32]], *, deadline: Deadline
    ) -> Collection:
        """See the port."""
        rows = {int(ref): vector_bytes(vector) for ref, vector in vectors.items()}

        def work(connection: sqlite3.Connection) -> Collection:
            sets = _sets(connection, collection)
            if sets.wanted and sets.model == model:
                lacking = connection.execute(
                    f"SELECT p.id FROM passage p LEFT JOIN {sets.other} v ON v.passage = p.id"
                    " WHERE p.id IN (SELECT value FROM json_each(?)) AND p.collection = ? AND v.passage IS NULL",
                    (json.dumps(list(rows)), sets.id),
                ).fetchall()
                added = [(ref, rows[ref]) for (ref,) in lacking]
                execute_rows(connection, f"INSERT INTO {sets.other} VALUES {{rows}}", added)
                connection.execute(
                    "UPDATE collection SET other_count = other_count + ? WHERE id = ?", (len(added), sets.id)
                )
            return read_collection(connection, collection)

        return await self._connections.write(work, deadline)

    async def switch(self, collection: str, model: str, *, deadline: Deadline) -> bool:
        """See the port."""

        def work(connection: sqlite3.Connection) -> bool:
            sets = _sets(connection, collection)
            if model == sets.counting:
                return True
            ready = (ReembeddingPhase.MAKING.value, ReembeddingPhase.KEPT.value)
            if model != sets.model or sets.phase not in ready or sets.count != sets.passages:
                return False
            # Of a collection that had no vectors there is nothing to go back to.
            phase, count = (ReembeddingPhase.KEPT.value, sets.passages) if sets.counting else ("", 0)
            connection.execute(
                "UPDATE collection SET vector_slot = 1 - vector_slot, embedding_model = other_model,"
                " other_model = embedding_model, other_phase = ?, other_count = ?, revision = revision + 1, update_time = ?"
                " WHERE id = ?",
                (phase, count, time.time(), sets.id),
            )
            return True

        return await self._connections.write(work, deadline)

    async def drop(self, collection: str, *, after: PassageRef, limit: int, deadline: Deadline) -> PassageRef | None:
        """See the port."""

        def work(connection: sqlite3.Connection) -> PassageRef | None:
            sets = _sets(connection, collection)
            if not sets.phase:
                return None
            refs = connection.execute(
                "SELECT id FROM passage WHERE id > ? AND collection = ? ORDER BY id LIMIT ?", (after, sets.id, limit)
            ).fetchall()
            found = json.dumps([ref for (ref,) in refs])
            dropped = connection.execute(
                f"DELETE FROM {sets.other} WHERE passage IN (SELECT value FROM json_each(?))", (found,)
            ).rowcount
            if refs:
                connection.execute(
                    "UPDATE collection SET other_phase = ?, other_count = other_count - ? WHERE id = ?",
                    (ReembeddingPhase.DROPPING.value, dropped, sets.id),
                )
                return PassageRef(refs[-1][0])
            connection.execute(
                "UPDATE collection SET other_model = '', other_phase = '', other_count = 0 WHERE id = ?", (sets.id,)
            )
            return None

        return await self._connections.write(work, deadline)


def _sets(connection: sqlite3.Connection, name: str) -> _Sets:
    row = connection.execute(
        "SELECT id, vector_slot, other_model, other_phase, other_count, passage_count, embedding_model"
        " FROM collection WHERE name = ?",
        (name,),
    ).fetchone()
    if row is None:
        raise CollectionNotFound(name)
    slot: int = row[1]
    return _Sets(row[0], VECTOR_TABLES[1 - slot], *row[2:])
