"""How an index outside the graph store follows the graph, whatever it is of and whoever keeps it.

The knowledge agent reads the graph's changes in pages of whole revisions, applies each, and then notes in the index which revision it has
reached: in that order, so that an index that says so holds everything up to there. A page that was applied and not noted, because the process was
killed in between, is applied again, which changes nothing. Readers look at that note and wait for it; a process that only reads never writes.

Of a collection with vectors of two models an index holds both, on two *shelves*, each with a note of its own: so it is ready when the collection switches.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from collections.abc import Collection as Group
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Collection, CollectionVectors
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, CollectionNotFound
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore, TextChanges, VectorChanges

_COLLECTIONS = 100
_FIRST_PAUSE = 0.01
_LONGEST_PAUSE = 0.2


class Page(Protocol):
    """Changes of a collection: `VectorChanges` or `TextChanges`."""

    @property
    def collection_uid(self) -> str:
        """The collection that the revisions are of."""
        ...

    @property
    def revision(self) -> int:
        """Revision that is reached with it."""
        ...

    @property
    def more(self) -> bool:
        """Whether there are further changes."""
        ...


AnyPage = TypeVar("AnyPage", bound=Page)
_PageTaken_contra = TypeVar("_PageTaken_contra", bound=Page, contravariant=True)
_PageGiven_co = TypeVar("_PageGiven_co", bound=Page, covariant=True)


def shelf(uid: str, model: str | None) -> str:
    """Where an index has what is of a collection and, if it is of vectors, of a model; ASCII letters, digits and a dash."""
    return uid if model is None else f"{uid}-{hashlib.sha256(model.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Shelves:
    """What an index is to hold of a collection.

    Attributes:
        current: The collection's newest state.
        whole: Models of which it is to be brought up to date; None among them for an index that is not of vectors.
        kept: Models of which nothing is to be taken away; these are among them.
    """

    current: CollectionRevision
    whole: tuple[str | None, ...] = (None,)
    kept: tuple[str | None, ...] = (None,)

    @property
    def names(self) -> frozenset[str]:
        """The shelves of what is kept."""
        return frozenset(shelf(self.current.collection_uid, model) for model in self.kept)


@dataclass(frozen=True, slots=True)
class IndexState:
    """What an index says of a shelf.

    Attributes:
        shelf: Which one.
        collection: Name of the collection.
        revision: Everything up to it can be found.
        dimension: Of its vectors; 0 where there are none.
    """

    shelf: str
    collection: str
    revision: int = 0
    dimension: int = 0

    @property
    def collection_uid(self) -> str:
        """Of which collection it is."""
        return self.shelf.partition("-")[0]


class IndexStore(Protocol[_PageTaken_contra]):
    """An engine that keeps an index: what is written can be found when the method returns.

    Errors raised by all methods: `BackendUnavailable`, `StorageFull`, `BudgetExhausted` when the deadline passes.
    """

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    async def prepare(self, *, replacing: bool, deadline: Deadline) -> bool:
        """Makes what the index is kept in, if it is not there; gives whether it had to.

        Args:
            replacing: Whether to make it anew where it is of another format; with all that is in it.
            deadline: When to give up.

        Raises:
            BackendUnavailable: It is of another format; the log says so.
        """
        ...

    async def states(self, shelves: Group[str] | None, *, deadline: Deadline) -> Mapping[str, IndexState]:
        """The states of shelves, or of all that it knows, by shelf."""
        ...

    async def apply(self, state: IndexState, page: _PageTaken_contra, *, stamp: int, deadline: Deadline) -> IndexState:
        """Takes changes; gives the state, not yet noted, that this leads to. May be repeated.

        Args:
            state: That before.
            page: The changes.
            stamp: Is kept with each passage added, and replaced where it is added again.
            deadline: When to give up; parts of it may be there then.
        """
        ...

    async def note(self, state: IndexState, *, deadline: Deadline) -> None:
        """Stores a state, unless that of a later revision is there."""
        ...

    async def remove(self, shelf: str, *, stamped_before: int | None = None, deadline: Deadline) -> None:
        """Removes a shelf's passages; without a limit the state as well, last of all."""
        ...


class Source(Protocol[_PageGiven_co]):
    """What an index is derived from: a graph store, as far as the index is concerned."""

    async def shelves(self, collection: str, *, deadline: Deadline) -> Shelves:
        """What the index is to hold of a collection."""
        ...

    def shelves_of(self, collection: Collection) -> Shelves:
        """The same, where the collection has been read already."""
        ...

    async def read(
        self, collection: str, model: str | None, *, after_revision: int, limit: int, deadline: Deadline
    ) -> _PageGiven_co:
        """The next changes."""
        ...


class TextSource:
    """See `Source`.

    Args:
        graph: The graph store.
    """

    def __init__(self, graph: GraphStore) -> None:
        self._graph = graph

    async def shelves(self, collection: str, *, deadline: Deadline) -> Shelves:
        """See the protocol."""
        return Shelves(await self._graph.revision(collection, deadline=deadline))

    def shelves_of(self, collection: Collection) -> Shelves:
        """See the protocol."""
        return Shelves(_reached(collection))

    async def read(
        self, collection: str, model: str | None, *, after_revision: int, limit: int, deadline: Deadline
    ) -> TextChanges:
        """See the protocol."""
        del model
        return await self._graph.text_changes(collection, after_revision=after_revision, limit=limit, deadline=deadline)


class VectorSource:
    """See `Source`. Of a model that does not count yet the index is brought up to date once every passage has a vector.

    Args:
        graph: The graph store.
    """

    def __init__(self, graph: GraphStore) -> None:
        self._graph = graph

    async def shelves(self, collection: str, *, deadline: Deadline) -> Shelves:
        """See the protocol."""
        return _of_vectors(await self._graph.vectors(collection, deadline=deadline))

    def shelves_of(self, collection: Collection) -> Shelves:
        """See the protocol."""
        return _of_vectors(
            CollectionVectors(
                _reached(collection), collection.embedding_model, collection.passage_count, collection.reembedding
            )
        )

    async def read(
        self, collection: str, model: str | None, *, after_revision: int, limit: int, deadline: Deadline
    ) -> VectorChanges:
        """See the protocol."""
        return await self._graph.vector_changes(
            collection, model=model, after_revision=after_revision, limit=limit, deadline=deadline
        )


def _reached(collection: Collection) -> CollectionRevision:
    return CollectionRevision(collection.name, collection.collection_uid, collection.revision)


def _of_vectors(vectors: CollectionVectors) -> Shelves:
    other = vectors.reembedding
    kept = (vectors.model, *((other.model,) if other is not None and other.written else ()))
    return Shelves(vectors.reached, vectors.whole, kept)


class Keeping(Generic[AnyPage]):
    """Keeps an index up, and waits until it is.

    Args:
        graph: What the index is derived from,
        source: as far as the index is concerned.
        store: Where it is kept.
        page: Passages that are read at once.
    """

    def __init__(self, graph: GraphStore, source: Source[AnyPage], store: IndexStore[AnyPage], *, page: int) -> None:
        self._graph = graph
        self._source = source
        self._store = store
        self._page = page
        self._held: dict[str, frozenset[str]] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See `ports.derived.DerivedIndex`."""
        reached, made = await self._catch_up(collection, deadline)
        if made:
            # Somebody has taken the index away, and with it the other collections.
            await self.recover(deadline=deadline)
        return reached

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See `ports.derived.DerivedIndex`. What is there is replaced in its place, so that readers go on."""
        async with self._alone(collection, deadline):
            shelves = await self._source.shelves(collection, deadline=deadline)
            current = shelves.current
            await self._store.prepare(replacing=True, deadline=deadline)
            reached: list[int] = []
            for model in shelves.whole:
                noted = await self._state(current, model, deadline)
                stamp = stamp_of_now()
                anew = replace(noted, revision=0)
                reached.append(
                    await self._follow(current, model, anew, noted=noted.revision, again=True, deadline=deadline)
                )
                await self._store.remove(noted.shelf, stamped_before=stamp, deadline=deadline)
            return replace(current, revision=min(reached))

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """See `ports.derived.DerivedIndex`."""
        async with self._alone(collection, deadline):
            states = await self._store.states(None, deadline=deadline)
            try:
                current = (await self._graph.revision(collection, deadline=deadline)).collection_uid
            except CollectionNotFound:
                current = ""
            for state in states.values():
                if state.collection == collection and state.collection_uid != current:
                    await self._store.remove(state.shelf, deadline=deadline)
                    self._held.pop(state.collection_uid, None)

    async def recover(self, *, deadline: Deadline) -> None:
        """See `ports.derived.DerivedIndex`."""
        await self._store.prepare(replacing=False, deadline=deadline)
        # Read before the graph is: what it then does not know is gone.
        states = await self._store.states(None, deadline=deadline)
        alive: set[str] = set()
        after = ""
        while collections := await self._graph.collections(after=after, limit=_COLLECTIONS, deadline=deadline):
            for found in collections:
                shelves = self._source.shelves_of(found)
                alive |= shelves.names
                self._held.setdefault(found.collection_uid, shelves.names)
                of_whole = [states.get(shelf(found.collection_uid, model)) for model in shelves.whole]
                if any(state is None or state.revision < found.revision for state in of_whole):
                    try:
                        await self._catch_up(found.name, deadline)
                    except CollectionNotFound:
                        continue
            after = collections[-1].name
        for name in states.keys() - alive:
            await self._store.remove(name, deadline=deadline)

    async def reached(
        self, revisions: Sequence[CollectionRevision], model: str | None = None, *, deadline: Deadline
    ) -> tuple[tuple[CollectionRevision, IndexState], ...]:
        """The states of the index once it has reached those of the graph; of collections that are gone there may be none.

        Args:
            revisions: Of the graph.
            model: Of the vectors that are looked for; None for an index that is not of vectors.
            deadline: When to give up.

        Raises:
            BackendUnavailable: A collection has no vectors of the model any more.
            BudgetExhausted: It has not in time.
        """
        waiting = {shelf(revision.collection_uid, model): revision for revision in revisions}
        found: dict[str, IndexState] = {}
        pause = _FIRST_PAUSE
        while True:
            states = await self._store.states(waiting.keys(), deadline=deadline)
            for name, state in states.items():
                if state.revision >= waiting[name].revision:
                    found[name] = state
                    del waiting[name]
            for name, revision in tuple(waiting.items()):
                if revision.revision == 0 or await self._gone(revision, model, deadline):
                    del waiting[name]
            if not waiting:
                return tuple(
                    (revision, found[name])
                    for revision in revisions
                    for name in (shelf(revision.collection_uid, model),)
                    if name in found
                )
            if deadline.remaining() <= pause:
                raise BudgetExhausted(self._store.name, "waiting for the newest documents")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _catch_up(self, collection: str, deadline: Deadline) -> tuple[CollectionRevision, bool]:
        """Brings a collection up to date; gives the state reached, and whether the index had to be made."""
        async with self._alone(collection, deadline):
            shelves = await self._source.shelves(collection, deadline=deadline)
            current = shelves.current
            made = await self._store.prepare(replacing=False, deadline=deadline)
            reached = [
                await self._follow(current, model, await self._state(current, model, deadline), deadline=deadline)
                for model in shelves.whole
            ]
            # What an earlier process held besides, `recover` takes away.
            for name in self._held.get(current.collection_uid, frozenset()) - shelves.names:
                await self._store.remove(name, deadline=deadline)
            self._held[current.collection_uid] = shelves.names
            return replace(current, revision=min(reached)), made

    async def _gone(self, revision: CollectionRevision, model: str | None, deadline: Deadline) -> bool:
        try:
            shelves = await self._source.shelves(revision.collection, deadline=deadline)
        except CollectionNotFound:
            return True
        if shelves.current.collection_uid != revision.collection_uid:
            return True
        if model not in shelves.kept:
            raise BackendUnavailable(f"vectors of {model or 'no model'} in {revision.collection}")
        return False

    async def _state(self, current: CollectionRevision, model: str | None, deadline: Deadline) -> IndexState:
        name = shelf(current.collection_uid, model)
        states = await self._store.states([name], deadline=deadline)
        return states.get(name) or IndexState(name, current.collection)

    async def _follow(
        self,
        current: CollectionRevision,
        model: str | None,
        state: IndexState,
        *,
        noted: int = 0,
        again: bool = False,
        deadline: Deadline,
    ) -> int:
        """Applies what has changed since a state; gives the revision reached.

        Args:
            current: Where to.
            model: Of the vectors.
            state: Where from.
            noted: Revision that the index says that it has reached: an earlier one is not noted.
            again: Whether there is something to apply in any case.
            deadline: When to give up; what was noted stays.
        """
        while again or state.revision < current.revision:
            page = await self._source.read(
                current.collection, model, after_revision=state.revision, limit=self._page, deadline=deadline
            )
            if page.collection_uid != current.collection_uid:
                # Deleted meanwhile, and made anew.
                raise CollectionNotFound(current.collection)
            state = await self._store.apply(state, page, stamp=stamp_of_now(), deadline=deadline)
            if state.revision >= noted:
                await self._store.note(state, deadline=deadline)
            again = page.more
        return state.revision

    @asynccontextmanager
    async def _alone(self, collection: str, deadline: Deadline) -> AsyncGenerator[None]:
        lock = self._locks.setdefault(collection, asyncio.Lock())
        try:
            async with asyncio.timeout(deadline.remaining()):
                await lock.acquire()
        except TimeoutError:
            raise BudgetExhausted(self._store.name, "waiting for its writer") from None
        try:
            yield
        finally:
            lock.release()


def stamp_of_now() -> int:
    """Of what is written from now on."""
    return time.time_ns() // 1000
