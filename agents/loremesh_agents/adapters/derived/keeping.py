"""How an index outside the graph store follows the graph, whatever it is of and whoever keeps it.

The knowledge agent reads the graph's changes in pages of whole revisions, applies each, and then notes in the index which revision it has
reached: in that order, so that an index that says so holds everything up to there. A page that was applied and not noted, because the process was
killed in between, is applied again, which changes nothing. Readers look at that note and wait for it; a process that only reads never writes.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from collections.abc import Collection as Group
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, CollectionNotFound
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore

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


@dataclass(frozen=True, slots=True)
class IndexState:
    """What an index says of a collection.

    Attributes:
        uid: The collection's.
        collection: Its name.
        revision: Everything up to it can be found.
        dimension: Of its vectors; 0 where there are none.
    """

    uid: str
    collection: str
    revision: int = 0
    dimension: int = 0


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

    async def states(self, uids: Group[str] | None, *, deadline: Deadline) -> Mapping[str, IndexState]:
        """The states of collections, or of all that it knows, by uid."""
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

    async def remove(self, uid: str, *, stamped_before: int | None = None, deadline: Deadline) -> None:
        """Removes a collection's passages; without a limit the state as well, last of all."""
        ...


class Read(Protocol[_PageGiven_co]):
    """`GraphStore.vector_changes` or `GraphStore.text_changes`."""

    def __call__(
        self, collection: str, *, after_revision: int, limit: int, deadline: Deadline
    ) -> Awaitable[_PageGiven_co]:
        """The next changes."""
        ...


class Keeping(Generic[AnyPage]):
    """Keeps an index up, and waits until it is.

    Args:
        graph: What the index is derived from.
        store: Where it is kept.
        read: Reads the graph's changes.
        page: Passages that are read at once.
    """

    def __init__(self, graph: GraphStore, store: IndexStore[AnyPage], read: Read[AnyPage], *, page: int) -> None:
        self._graph = graph
        self._store = store
        self._read = read
        self._page = page
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
            current = await self._graph.revision(collection, deadline=deadline)
            await self._store.prepare(replacing=True, deadline=deadline)
            noted = await self._state(current, deadline)
            stamp = stamp_of_now()
            reached = await self._follow(
                current, replace(noted, revision=0), noted=noted.revision, again=True, deadline=deadline
            )
            await self._store.remove(current.collection_uid, stamped_before=stamp, deadline=deadline)
            return reached

    async def drop(self, collection: str, *, deadline: Deadline) -> None:
        """See `ports.derived.DerivedIndex`."""
        async with self._alone(collection, deadline):
            states = await self._store.states(None, deadline=deadline)
            try:
                current = (await self._graph.revision(collection, deadline=deadline)).collection_uid
            except CollectionNotFound:
                current = ""
            for state in states.values():
                if state.collection == collection and state.uid != current:
                    await self._store.remove(state.uid, deadline=deadline)

    async def recover(self, *, deadline: Deadline) -> None:
        """See `ports.derived.DerivedIndex`."""
        await self._store.prepare(replacing=False, deadline=deadline)
        # Read before the graph is: what it then does not know is gone.
        states = await self._store.states(None, deadline=deadline)
        alive: set[str] = set()
        after = ""
        while collections := await self._graph.collections(after=after, limit=_COLLECTIONS, deadline=deadline):
            for found in collections:
                alive.add(found.collection_uid)
                state = states.get(found.collection_uid)
                if state is None or state.revision < found.revision:
                    try:
                        await self._catch_up(found.name, deadline)
                    except CollectionNotFound:
                        continue
            after = collections[-1].name
        for uid in states.keys() - alive:
            await self._store.remove(uid, deadline=deadline)

    async def reached(
        self, revisions: Sequence[CollectionRevision], *, deadline: Deadline
    ) -> tuple[tuple[CollectionRevision, IndexState], ...]:
        """The states of the index once it has reached those of the graph; of collections that are gone there may be none.

        Raises:
            BudgetExhausted: It has not in time.
        """
        waiting = {revision.collection_uid: revision for revision in revisions}
        found: dict[str, IndexState] = {}
        pause = _FIRST_PAUSE
        while True:
            states = await self._store.states(waiting.keys(), deadline=deadline)
            for uid, state in states.items():
                if state.revision >= waiting[uid].revision:
                    found[uid] = state
                    del waiting[uid]
            for revision in tuple(waiting.values()):
                if revision.revision == 0 or await self._gone(revision, deadline):
                    del waiting[revision.collection_uid]
            if not waiting:
                return tuple(
                    (revision, found[revision.collection_uid])
                    for revision in revisions
                    if revision.collection_uid in found
                )
            if deadline.remaining() <= pause:
                raise BudgetExhausted(self._store.name, "waiting for the newest documents")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _catch_up(self, collection: str, deadline: Deadline) -> tuple[CollectionRevision, bool]:
        """Brings a collection up to date; gives the state reached, and whether the index had to be made."""
        async with self._alone(collection, deadline):
            current = await self._graph.revision(collection, deadline=deadline)
            made = await self._store.prepare(replacing=False, deadline=deadline)
            return await self._follow(current, await self._state(current, deadline), deadline=deadline), made

    async def _gone(self, revision: CollectionRevision, deadline: Deadline) -> bool:
        try:
            current = await self._graph.revision(revision.collection, deadline=deadline)
        except CollectionNotFound:
            return True
        return current.collection_uid != revision.collection_uid

    async def _state(self, current: CollectionRevision, deadline: Deadline) -> IndexState:
        states = await self._store.states([current.collection_uid], deadline=deadline)
        return states.get(current.collection_uid) or IndexState(current.collection_uid, current.collection)

    async def _follow(
        self,
        current: CollectionRevision,
        state: IndexState,
        *,
        noted: int = 0,
        again: bool = False,
        deadline: Deadline,
    ) -> CollectionRevision:
        """Applies what has changed since a state.

        Args:
            current: Where to.
            state: Where from.
            noted: Revision that the index says that it has reached: an earlier one is not noted.
            again: Whether there is something to apply in any case.
            deadline: When to give up; what was noted stays.
        """
        while again or state.revision < current.revision:
            page = await self._read(
                current.collection, after_revision=state.revision, limit=self._page, deadline=deadline
            )
            if page.collection_uid != current.collection_uid:
                # Deleted meanwhile, and made anew.
                raise CollectionNotFound(current.collection)
            state = await self._store.apply(state, page, stamp=stamp_of_now(), deadline=deadline)
            if state.revision >= noted:
                await self._store.note(state, deadline=deadline)
            again = page.more
        return CollectionRevision(current.collection, current.collection_uid, state.revision)

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
