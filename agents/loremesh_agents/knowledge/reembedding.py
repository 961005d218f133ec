"""Embeds collections with another model while questions go on.

What is to be done is in the store: vectors of a model are being made until every passage has one, then the collection switches to them; or vectors are being
removed. So a process that starts goes on where another one was killed, and doing anything twice changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Collection, ReembeddingPhase
from loremesh_agents.domain.errors import LoremeshError, NotFound, ReembeddingRefused
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.knowledge.encoders import Encoders
from loremesh_agents.knowledge.settings import KnowledgeSettings
from loremesh_agents.ports.derived import DerivedIndex
from loremesh_agents.ports.embedding import Embedder
from loremesh_agents.ports.graph import GraphStore
from loremesh_agents.ports.vector_sets import VectorSets

_log = logging.getLogger(__name__)
_FIRST = PassageRef(0)
_LOOKED_AT = 1024
_EMBEDDED_TOGETHER = 32
"""Texts: the encoder is a question's again after so many."""
_ADDED_TOGETHER = 256
"""Vectors: each addition is a write, and takes its turn among the others. What a kill loses is encoded again."""
_DROPPED_TOGETHER = 1024
_COLLECTIONS = 500
_INDEX_SECONDS = 3600.0
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class Reembedding:
    """One task a collection that is being changed.

    Args:
        graph: The truth.
        sets: Where it keeps vectors of two models; None where it cannot.
        vectors: The vector index; None without one.
        encoders: For the vectors.
        switched: Is called with the name of a collection whose vectors have switched, or are fewer.
        settings: Limits.
    """

    def __init__(
        self,
        graph: GraphStore,
        sets: VectorSets | None,
        vectors: DerivedIndex | None,
        encoders: Encoders,
        *,
        switched: Callable[[str], None],
        settings: KnowledgeSettings,
    ) -> None:
        self._graph = graph
        self._sets = sets
        self._vectors = vectors
        self._encoders = encoders
        self._switched = switched
        self._settings = settings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wanted: set[str] = set()

    def start(self) -> None:
        """Goes on with what an earlier process has left undone."""
        if self._sets is not None:
            self._follow("")

    async def begin(self, collection: str, model: str, *, deadline: Deadline) -> Collection:
        """Begins to embed a collection, or lets kept vectors count again; gives the collection as it is then.

        Args:
            collection: Its name.
            model: The model; empty for that of new collections.
            deadline: When to give up.

        Raises:
            ReembeddingRefused: The store cannot hold vectors of two models, there is no encoder of the model, or other
                vectors are in the way.
        """
        wanted = model or self._encoders.model
        if self._sets is None:
            cause = "its graph store holds vectors of one model alone, as memory:// does; every other one holds two"
            raise ReembeddingRefused(collection, cause)
        if self._encoders.of(wanted) is None:
            known = ", ".join(self._encoders.models) or "none"
            cause = f"there is no encoder of {wanted or 'any model'}; stores.embedder and stores.previous_embedder have {known}"
            raise ReembeddingRefused(collection, cause)
        found = await self._sets.begin(collection, wanted, deadline=deadline)
        if await self._sets.switch(collection, wanted, deadline=deadline):
            self._switched(collection)
            return await self._graph.collection(collection, deadline=deadline)
        self._follow(collection)
        return found

    async def finish(self, collection: str, *, deadline: Deadline) -> Collection:
        """Begins to remove a collection's vectors that do not count; gives the collection as it is then."""
        if self._sets is not None:
            await self._sets.drop(collection, after=_FIRST, limit=_DROPPED_TOGETHER, deadline=deadline)
            # Some stores have let go of all of them now, and their indexes are to do so as well.
            self._switched(collection)
            self._follow(collection)
        return await self._graph.collection(collection, deadline=deadline)

    async def close(self) -> None:
        """Ends what runs; the next start goes on with it."""
        self._wanted.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, collection: str) -> None:
        """Sees to it that all is done for a collection, or for all of them where it is empty, that its state asks for now."""
        self._wanted.add(collection)
        if collection not in self._tasks:
            task = asyncio.create_task(self._keep_trying(collection))
            self._tasks[collection] = task
            task.add_done_callback(lambda _: self._tasks.pop(collection, None))

    async def _keep_trying(self, collection: str) -> None:
        pause = _FIRST_PAUSE
        while collection in self._wanted:
            self._wanted.discard(collection)
            try:
                await (self._advance(collection) if collection else self._resume())
            except NotFound:
                # It has been deleted meanwhile.
                continue
            except LoremeshError as error:
                _log.warning("embedding %s anew is tried again: %s", collection or "collections", error)
                self._wanted.add(collection)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE

    async def _resume(self) -> None:
        after = ""
        while page := await self._graph.collections(after=after, limit=_COLLECTIONS, deadline=self._time()):
            for found in page:
                if found.reembedding is not None:
                    self._follow(found.name)
            after = page[-1].name

    async def _advance(self, collection: str) -> None:
        sets = self._sets
        found = await self._graph.collection(collection, deadline=self._time())
        if sets is None or found.reembedding is None:
            return
        match found.reembedding.phase:
            case ReembeddingPhase.MAKING:
                await self._make(sets, collection, found.reembedding.model)
            case ReembeddingPhase.DROPPING:
                last: PassageRef | None = _FIRST
                while last is not None:
                    last = await sets.drop(collection, after=last, limit=_DROPPED_TOGETHER, deadline=self._time())
                await self._index(collection)
            case _:
                return

    async def _make(self, sets: VectorSets, collection: str, model: str) -> None:
        """Gives every passage a vector, then switches; ends without that where something else is wanted meanwhile."""
        encoder = self._encoders.of(model)
        if encoder is None:
            _log.error(
                "there is no encoder of %s, with which %s is to be embedded: it waits for one", model, collection
            )
            return
        while True:
            last: PassageRef | None = _FIRST
            while last is not None:
                page = await sets.unembedded(collection, model, after=last, limit=_LOOKED_AT, deadline=self._time())
                await self._embed(sets, collection, encoder, page.texts)
                last = page.last
            # Before the switch, so that the first question after it finds the index ready.
            await self._index(collection)
            if await sets.switch(collection, model, deadline=self._time()):
                self._switched(collection)
                return
            found = (await self._graph.collection(collection, deadline=self._time())).reembedding
            if found is None or (found.model, found.phase) != (model, ReembeddingPhase.MAKING):
                self._wanted.add(collection)
                return

    async def _embed(
        self, sets: VectorSets, collection: str, encoder: Embedder, texts: Mapping[PassageRef, str]
    ) -> None:
        refs = list(texts)
        made: dict[PassageRef, NDArray[np.float32]] = {}
        for start in range(0, len(refs), _EMBEDDED_TOGETHER):
            some = refs[start : start + _EMBEDDED_TOGETHER]
            budget = Deadline.after(self._settings.embed_budget)
            vectors = await encoder.embed([texts[ref] for ref in some], deadline=budget)
            made.update(zip(some, vectors, strict=True))
            if len(made) >= _ADDED_TOGETHER or some[-1] == refs[-1]:
                await sets.add(collection, encoder.model, made, deadline=self._time())
                made = {}

    async def _index(self, collection: str) -> None:
        if self._vectors is not None:
            await self._vectors.maintain(collection, deadline=Deadline.after(_INDEX_SECONDS))

    def _time(self) -> Deadline:
        return Deadline.after(self._settings.write_budget)
