"""A write that changes which vectors a collection has."""

from collections.abc import Mapping
from dataclasses import replace

from loremesh_agents.adapters.graph.versioned.states import CollectionState, OtherVectors
from loremesh_agents.adapters.graph.versioned.vectors import having_one, next_set, vector_vertex
from loremesh_agents.adapters.graph.versioned.writer import Writer
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import ReembeddingPhase
from loremesh_agents.domain.errors import ReembeddingRefused

_MAKING, _KEPT = ReembeddingPhase.MAKING.value, ReembeddingPhase.KEPT.value


def may_switch(state: CollectionState, model: str) -> bool:
    """Whether every passage has a vector of a model that does not count."""
    other = state.other
    return (
        other is not None and (other.model, other.count) == (model, state.passages) and other.phase in (_MAKING, _KEPT)
    )


class VectorWriter(Writer):
    """The changes of one version to the sets of vectors of one collection. What it judges by was read after its claim, so no other write falls between."""

    async def begin_set(self, model: str, deadline: Deadline) -> None:
        """Has vectors of a model made.

        Raises:
            ReembeddingRefused: There are some of a third model.
        """
        state = self.collection
        other = state.other
        if model == state.embedding_model or (other is not None and (other.model, other.phase) == (model, _MAKING)):
            return
        if other is None:
            number = next_set(state)
            self.collection = replace(state, newest_set=number, other=OtherVectors(model, number, _MAKING, 0))
        elif other.model == model:
            self.collection = replace(state, other=replace(other, phase=_MAKING))
        else:
            raise ReembeddingRefused(
                state.name,
                f"it still has vectors of {other.model} beside those of {state.embedding_model};"
                " 'loremesh collections NAME --finish' removes them",
            )
        await self._store_state(deadline)

    async def add_vectors(self, model: str, vectors: Mapping[int, bytes], deadline: Deadline) -> None:
        """Stores vectors of passages that lack one, as far as they are wanted still."""
        state = self.collection
        other = state.other
        if other is None or (other.model, other.phase) != (model, _MAKING) or not vectors:
            return
        there, having = await having_one(
            self._engine, self._batch.view, state, other.number, vectors.keys(), deadline=deadline
        )
        lacking = sorted(there - having)
        if not lacking:
            return
        self._batch.vertices += [
            vector_vertex(state, other.number, model, ref, vector=vectors[ref], version=self._version)
            for ref in lacking
        ]
        self.collection = replace(state, other=replace(other, count=other.count + len(lacking)))
        await self._store_state(deadline)

    async def switch_set(self, model: str, deadline: Deadline) -> bool:
        """Lets the vectors of a model count, in a new revision; gives whether they do."""
        state = self.collection
        other = state.other
        if model == state.embedding_model:
            return True
        if other is None or not may_switch(state, model):
            return False
        # Of a collection that had no vectors there is nothing to go back to.
        kept = OtherVectors(state.embedding_model, state.vector_set, _KEPT, state.passages)
        await self._revise_vectors(deadline)
        self.collection = replace(
            self.collection,
            embedding_model=model,
            vector_set=other.number,
            other=kept if state.embedding_model else None,
        )
        await self._store_state(deadline)
        return True

    async def drop_set(self, deadline: Deadline) -> None:
        """Lets go of the vectors that do not count."""
        other = self.collection.other
        if other is None:
            return
        self._let_go([other.number])
        self.collection = replace(self.collection, other=None)
        await self._store_state(deadline)
