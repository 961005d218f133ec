"""`cassandra://`: vectors in Cassandra 5, searched by its storage-attached index.

Each collection has a table of its own for each model: with one table for all, the condition on the collection costs a look at every one of its passages in each
search (docs/engines.md has the figures). Cassandra searches vectors at consistency ONE whatever is asked for. So that a reader sees what is acknowledged, vectors are
written to all replicas. While one of them is away, a quorum has to do: the revision after which that began is noted as the collection's *gap*, and what has
changed since is written to all of them once they are there again. docs/consistency.md says what a search may lack meanwhile.
"""

import asyncio
import hashlib
import logging
from collections.abc import Collection as Group
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.adapters.derived.cassandra import (
    ALL,
    ONE,
    QUORUM,
    CassandraConnection,
    CassandraServers,
    ReplicaMissing,
)
from loremesh_agents.adapters.derived.keeping import IndexState, Keeping, VectorSource, shelf, stamp_of_now
from loremesh_agents.adapters.vector.query import require_comparable
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, CollectionNotFound, LoremeshError
from loremesh_agents.domain.retrieval import PassageRef
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.graph import GraphStore, VectorChanges

_log = logging.getLogger(__name__)
_NAME = "cassandra vector index"
_FORMAT = 1
_PAGE = 2_000
_OVERSAMPLING = 2
_SHARE_OF_ALL = 0.5
"""Of the time left, for a try to write to all replicas."""
_MENDING_PAUSE = 5.0
_MENDING_SECONDS = 300.0
"""Time that one try to fill a gap may take."""
_MOST_CANDIDATES = 1_000
"""The server refuses more."""
_TABLES = (
    "CREATE TABLE IF NOT EXISTS vector_index (name text PRIMARY KEY, format int)",
    "CREATE TABLE IF NOT EXISTS vector_index_state (uid text PRIMARY KEY, collection text, revision bigint, dimension int)",
    "CREATE TABLE IF NOT EXISTS vector_index_gap (uid text PRIMARY KEY, after bigint)",
)
"""Their `uid` is that of a shelf."""
_STATE = "SELECT uid, collection, revision, dimension FROM vector_index_state"


class _Vectors:
    """An `IndexStore` in Cassandra. Names of tables are made of hexadecimal digits of ours; every value is bound."""

    def __init__(self, connection: CassandraConnection) -> None:
        self._connection = connection
        self._checked = False
        self._prepared = False
        self._made: set[str] = set()
        self.gapped: set[str] = set()
        """The shelves that are known to have a gap."""

    @property
    def name(self) -> str:
        return _NAME

    async def prepare(self, *, replacing: bool, deadline: Deadline) -> bool:
        if replacing:
            # Somebody may have taken a table away: they are looked for again.
            self._made.clear()
        if self._prepared and not replacing:
            return False
        for table in _TABLES:
            await self._connection.define(table, deadline=deadline)
        await self._connection.ask(
            "INSERT INTO vector_index (name, format) VALUES ('vectors', ?) IF NOT EXISTS",
            (_FORMAT,),
            stage="preparing",
            deadline=deadline,
        )
        other = await self._format(deadline) != _FORMAT
        if replacing and other:
            for state in (await self.states_anyhow(None, deadline=deadline)).values():
                await self.remove(state.shelf, deadline=deadline)
            await self._connection.ask(
                "UPDATE vector_index SET format = ? WHERE name = 'vectors' IF EXISTS",
                (_FORMAT,),
                stage="preparing",
                deadline=deadline,
            )
        await self._require_format(deadline)
        self._prepared = True
        return other

    async def states(self, shelves: Group[str] | None, *, deadline: Deadline) -> Mapping[str, IndexState]:
        if not self._checked:
            await self._require_format(deadline)
        return await self.states_anyhow(shelves, deadline=deadline)

    async def states_anyhow(self, shelves: Group[str] | None, *, deadline: Deadline) -> Mapping[str, IndexState]:
        """The states, of whatever format."""
        stage = "reading states"
        if shelves is None:
            rows = await self._connection.scan(_STATE, stage=stage, deadline=deadline)
        else:
            each = await self._connection.ask_each(
                f"{_STATE} WHERE uid = ?", [(name,) for name in shelves], stage=stage, deadline=deadline
            )
            rows = [row for found in each for row in found]
        return {row.uid: IndexState(row.uid, row.collection, row.revision, row.dimension) for row in rows}

    async def apply(self, state: IndexState, page: VectorChanges, *, stamp: int, deadline: Deadline) -> IndexState:
        dimension = page.vectors.shape[1] if page.added else state.dimension
        if not dimension:
            return replace(state, revision=page.revision)
        state = await self._with_table(state, dimension, deadline)
        try:
            return await self._apply(state, page, stamp, deadline)
        except BackendUnavailable:
            # Another process may have taken the table away: it is looked for again.
            self._made.discard(_table(state))
            raise

    async def _apply(self, state: IndexState, page: VectorChanges, stamp: int, deadline: Deadline) -> IndexState:
        """Writes to all replicas, or to a quorum where one is missing."""
        gap = await self.gap(state.shelf, deadline=deadline)
        if gap is None:
            try:
                await self._write(state, page, stamp, ALL, deadline.fraction(_SHARE_OF_ALL))
                return replace(state, revision=page.revision)
            except (ReplicaMissing, BudgetExhausted):
                _log.warning(
                    "a replica of Cassandra is missing: the collection %s is written to the others, and to all when it is back",
                    state.collection,
                )
        if gap is None or state.revision < gap:
            # Noted before anybody may take the page for whole, so that it is not forgotten where this process ends.
            await self._note_gap(state.shelf, state.revision, deadline)
        await self._write(state, page, stamp, QUORUM, deadline)
        return replace(state, revision=page.revision)

    async def gap(self, shelf: str, *, deadline: Deadline) -> int | None:
        """The revision after which some replica may lack what was written; None where none does."""
        rows = await self._connection.ask(
            "SELECT after FROM vector_index_gap WHERE uid = ?", (shelf,), stage="looking for gaps", deadline=deadline
        )
        if not rows:
            self.gapped.discard(shelf)
            return None
        self.gapped.add(shelf)
        return int(rows[0].after)

    async def gaps(self, *, deadline: Deadline) -> frozenset[str]:
        """The shelves that have one."""
        rows = await self._connection.scan(
            "SELECT uid FROM vector_index_gap", stage="looking for gaps", deadline=deadline
        )
        return frozenset(row.uid for row in rows)

    async def mend(self, state: IndexState, page: VectorChanges, *, stamp: int, deadline: Deadline) -> None:
        """Writes a page of changes after a gap's begin to all replicas, and has the gap begin after it, or end.

        Args:
            state: The collection's.
            page: The changes.
            stamp: As that of `apply`.
            deadline: When to give up.

        Raises:
            ReplicaMissing: One is away still, and everything is as before.
        """
        if page.added and page.vectors.shape[1] != state.dimension:
            # Vectors of another model have a table of their own, and nobody looks into the one before.
            page = replace(page, added=(), vectors=page.vectors[:0])
        if state.dimension:
            await self._write(state, page, stamp, ALL, deadline)
        if page.revision < state.revision:
            await self._note_gap(state.shelf, page.revision, deadline)
        else:
            await self._connection.ask(
                "DELETE FROM vector_index_gap WHERE uid = ?", (state.shelf,), stage="closing a gap", deadline=deadline
            )
            self.gapped.discard(state.shelf)
            _log.info("all replicas of Cassandra have the vectors of the collection %s again", state.collection)

    async def _note_gap(self, shelf: str, after: int, deadline: Deadline) -> None:
        await self._connection.ask(
            "INSERT INTO vector_index_gap (uid, after) VALUES (?, ?)",
            (shelf, after),
            stage="noting a gap",
            deadline=deadline,
        )
        self.gapped.add(shelf)

    async def _write(
        self, state: IndexState, page: VectorChanges, stamp: int, consistency: int, deadline: Deadline
    ) -> None:
        await self._connection.ask_each(
            f"DELETE FROM {_table(state)} WHERE ref = ?",
            [(int(ref),) for ref in page.removed],
            consistency=consistency,
            stage="removing",
            deadline=deadline,
        )
        await self._connection.ask_each(
            f"INSERT INTO {_table(state)} (ref, stamp, vector) VALUES (?, ?, ?)",
            [(int(ref), stamp, vector) for ref, vector in zip(page.added, page.vectors.tolist(), strict=True)],
            consistency=consistency,
            stage="writing",
            deadline=deadline,
        )

    async def note(self, state: IndexState, *, deadline: Deadline) -> None:
        values = (state.collection, state.revision, state.dimension, state.shelf)
        (row,) = await self._connection.ask(
            "INSERT INTO vector_index_state (collection, revision, dimension, uid) VALUES (?, ?, ?, ?) IF NOT EXISTS",
            values,
            stage="noting the state",
            deadline=deadline,
        )
        if not row.applied:
            await self._connection.ask(
                "UPDATE vector_index_state SET collection = ?, revision = ?, dimension = ? WHERE uid = ? IF revision <= ?",
                (*values, state.revision),
                stage="noting the state",
                deadline=deadline,
            )

    async def remove(self, shelf: str, *, stamped_before: int | None = None, deadline: Deadline) -> None:
        state = (await self.states_anyhow([shelf], deadline=deadline)).get(shelf)
        if state is None:
            return
        if stamped_before is None:
            if state.dimension:
                await self._connection.define(f"DROP TABLE IF EXISTS {_table(state)}", deadline=deadline)
                self._made.discard(_table(state))
            for statement in (
                "DELETE FROM vector_index_gap WHERE uid = ?",
                "DELETE FROM vector_index_state WHERE uid = ? IF EXISTS",
            ):
                await self._connection.ask(statement, (shelf,), stage="removing", deadline=deadline)
        elif state.dimension:
            rows = await self._connection.scan(
                f"SELECT ref, stamp FROM {_table(state)}", stage="looking for remains", deadline=deadline
            )
            await self._connection.ask_each(
                f"DELETE FROM {_table(state)} WHERE ref = ?",
                [(row.ref,) for row in rows if row.stamp < stamped_before],
                stage="removing",
                deadline=deadline,
            )

    async def near(
        self, state: IndexState, vector: Sequence[float], *, limit: int, deadline: Deadline
    ) -> list[tuple[float, int]]:
        """Passages of a collection near a vector, with their negative similarities."""
        rows = await self._connection.ask(
            f"SELECT ref, similarity_dot_product(vector, ?) AS similarity FROM {_table(state)} ORDER BY vector ANN OF ? LIMIT ?",
            (vector, vector, min(_OVERSAMPLING * limit, _MOST_CANDIDATES)),
            consistency=ONE,
            stage="searching",
            deadline=deadline,
        )
        return [(-row.similarity, row.ref) for row in rows]

    async def _with_table(self, state: IndexState, dimension: int, deadline: Deadline) -> IndexState:
        """The state with vectors of a dimension, in a table that is made for them if need be."""
        if dimension != state.dimension:
            if state.dimension:
                # A graph store takes vectors of another model only when those before are all gone.
                await self._connection.define(f"DROP TABLE IF EXISTS {_table(state)}", deadline=deadline)
            state = replace(state, dimension=dimension)
            # Noted first: whoever removes the collection finds the table by it.
            await self.note(state, deadline=deadline)
        table = _table(state)
        if table not in self._made:
            await self._connection.define(
                f"CREATE TABLE IF NOT EXISTS {table} (ref bigint PRIMARY KEY, stamp bigint, vector vector<float, {dimension}>)",
                deadline=deadline,
            )
            await self._connection.define(
                f"CREATE INDEX IF NOT EXISTS {table}_near ON {table} (vector) USING 'sai'"
                " WITH OPTIONS = {'similarity_function': 'dot_product'}",
                deadline=deadline,
            )
            self._made.add(table)
        return state

    async def _format(self, deadline: Deadline) -> int:
        rows = await self._connection.ask(
            "SELECT format FROM vector_index WHERE name = 'vectors'", stage="looking at it", deadline=deadline
        )
        return rows[0].format if rows else 0

    async def _require_format(self, deadline: Deadline) -> None:
        found = await self._format(deadline)
        self._checked = found == _FORMAT
        if not self._checked:
            _log.error(
                "the vector index in Cassandra is of format %s, this build writes format %d: 'loremesh collections NAME --rebuild' makes it anew",
                *(found or "unknown", _FORMAT),
            )
            raise BackendUnavailable(_NAME)


class CassandraVectorIndex(Keeping[VectorChanges]):
    """See `ports.vectors.VectorIndex`.

    Args:
        graph: Where vectors come from.
        servers: Where Cassandra is.
    """

    def __init__(self, graph: GraphStore, servers: CassandraServers) -> None:
        self._connection = CassandraConnection(servers)
        self._vectors = _Vectors(self._connection)
        self._mending: asyncio.Task[None] | None = None
        super().__init__(graph, VectorSource(graph), self._vectors, page=_PAGE)

    async def maintain(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See `ports.derived.DerivedIndex`. What some replica lacks it gets in the background."""
        reached = await super().maintain(collection, deadline=deadline)
        self._mend_later()
        return reached

    async def rebuild(self, collection: str, *, deadline: Deadline) -> CollectionRevision:
        """See `ports.derived.DerivedIndex`, and `maintain`."""
        reached = await super().rebuild(collection, deadline=deadline)
        self._mend_later()
        return reached

    async def recover(self, *, deadline: Deadline) -> None:
        """See `ports.derived.DerivedIndex`, and `maintain`."""
        await super().recover(deadline=deadline)
        self._vectors.gapped |= await self._vectors.gaps(deadline=deadline)
        self._mend_later()

    async def search(
        self,
        vector: NDArray[np.float32],
        *,
        model: str,
        revisions: tuple[CollectionRevision, ...],
        limit: int,
        deadline: Deadline,
    ) -> tuple[PassageRef, ...]:
        """See the port."""
        found: list[tuple[float, int]] = []
        asked = vector.tolist()
        for revision, state in await self.reached(revisions, model, deadline=deadline):
            if state.dimension:
                require_comparable(vector, state.dimension, revision.collection)
                found += await self._vectors.near(state, asked, limit=limit, deadline=deadline)
        return tuple(PassageRef(ref) for _, ref in sorted(found)[:limit])

    async def close(self) -> None:
        """See the port."""
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
        await self._connection.close()

    def _mend_later(self) -> None:
        if self._vectors.gapped and (self._mending is None or self._mending.done()):
            self._mending = asyncio.create_task(self._keep_mending())

    async def _keep_mending(self) -> None:
        """Tries until no gap is left. Not a part of `maintain`: what is new shall not wait for a replica that is away."""
        while self._vectors.gapped:
            await asyncio.sleep(_MENDING_PAUSE)
            for name in tuple(self._vectors.gapped):
                try:
                    await self._mend(name, Deadline.after(_MENDING_SECONDS))
                except CollectionNotFound:
                    self._vectors.gapped.discard(name)
                except (ReplicaMissing, LoremeshError) as error:
                    _log.debug("a replica of Cassandra lacks vectors still: %r", error)

    async def _mend(self, name: str, deadline: Deadline) -> None:
        """Writes to all replicas what some may lack, page by page: writers have their turn in between."""
        while name in self._vectors.gapped:
            collection = (await self._state_of(name, deadline)).collection
            async with self._alone(collection, deadline):
                state = await self._state_of(name, deadline)
                after = await self._vectors.gap(name, deadline=deadline)
                if after is None:
                    continue
                shelves = await self._source.shelves(collection, deadline=deadline)
                uid = shelves.current.collection_uid
                model = next((model for model in shelves.whole if shelf(uid, model) == name), None)
                if model is None:
                    # Deleted, and made anew; or no longer of that model. What is left of it is removed with its state.
                    raise CollectionNotFound(collection)
                page = await self._source.read(collection, model, after_revision=after, limit=_PAGE, deadline=deadline)
                if page.collection_uid != uid:
                    raise CollectionNotFound(collection)
                await self._vectors.mend(state, page, stamp=stamp_of_now(), deadline=deadline)

    async def _state_of(self, name: str, deadline: Deadline) -> IndexState:
        state = (await self._vectors.states([name], deadline=deadline)).get(name)
        if state is None:
            raise CollectionNotFound(name)
        return state


def _table(state: IndexState) -> str:
    return f"vectors_{hashlib.sha256(state.shelf.encode()).hexdigest()[:24]}_{state.dimension:d}"
