"""The vectors of a collection beside those that count, in the graph."""

import asyncio
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.graph.versioned.store import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.vector_writer import VectorWriter, may_switch
from loremesh_agents.adapters.graph.versioned.vectors import having_one
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Collection, ReembeddingPhase
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.ports.vector_sets import Unembedded


class VersionedVectorSets:
    """See `ports.vector_sets.VectorSets`. Each change is a version of the store, so that of several processes that make vectors one does after the other.

    Args:
        store: The graph store.
    """

    def __init__(self, store: VersionedGraphStore) -> None:
        self._store = store

    async def begin(self, collection: str, model: str, *, deadline: Deadline) -> Collection:
        """See the port."""

        async def work(writer: VectorWriter, limit: Deadline) -> None:
            await writer.begin_set(model, limit)

        return (await self._store.write_vectors(collection, work, deadline))[0]

    async def unembedded(
        self, collection: str, model: str, *, after: PassageRef, limit: int, deadline: Deadline
    ) -> Unembedded:
        """See the port."""
        state, log, view = await self._store.log(collection, deadline=deadline)
        other = state.other
        if other is None or (other.model, other.phase) != (model, ReembeddingPhase.MAKING.value):
            return Unembedded({}, None)
        refs = await log.passages_after(after, limit, deadline)
        there, having = await having_one(self._store.engine, view, state, other.number, set(refs), deadline=deadline)
        texts = await log.texts([ref for ref in refs if ref in there - having], deadline)
        return Unembedded(texts, refs[-1] if refs else None)

    async def add(
        self, collection: str, model: str, vectors: Mapping[PassageRef, NDArray[np.float32]], *, deadline: Deadline
    ) -> Collection:
        """See the port."""
        stored = await asyncio.to_thread(
            lambda: {int(ref): vector.astype("<f4").tobytes() for ref, vector in vectors.items()}
        )

        async def work(writer: VectorWriter, limit: Deadline) -> None:
            await writer.add_vectors(model, stored, limit)

        return (await self._store.write_vectors(collection, work, deadline))[0]

    async def switch(self, collection: str, model: str, *, deadline: Deadline) -> bool:
        """See the port."""
        state, _, _ = await self._store.log(collection, deadline=deadline)
        if model == state.embedding_model or not may_switch(state, model):
            return model == state.embedding_model

        async def work(writer: VectorWriter, limit: Deadline) -> bool:
            return await writer.switch_set(model, limit)

        return (await self._store.write_vectors(collection, work, deadline))[1]

    async def drop(self, collection: str, *, after: PassageRef, limit: int, deadline: Deadline) -> PassageRef | None:
        """See the port. All go at once; the store removes what is left of them when no reader needs it, as it does with whatever has ended."""
        del after, limit

        async def work(writer: VectorWriter, limit: Deadline) -> None:
            await writer.drop_set(limit)

        await self._store.write_vectors(collection, work, deadline)
        return None
