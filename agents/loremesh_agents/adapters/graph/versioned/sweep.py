"""Removing what no reader needs any more: a bounded part with each write, which does not fail where that does.

Only what can never count again is removed, so that it does no harm if a writer that was given up removes it late.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from loremesh_agents.adapters.graph.versioned.chain import LANDMARK, Chain, Head
from loremesh_agents.adapters.graph.versioned.engine import Access, Cell, GraphEngine, Record, Setting
from loremesh_agents.adapters.graph.versioned.identifiers import (
    BUCKETS,
    REGISTER,
    bucket_id,
    change_id,
    claim_id,
    collection_id,
    decision_id,
    document_vertex,
    first_ref,
    passage_vertex,
    vector_id,
)
from loremesh_agents.adapters.graph.versioned.states import ChangeRecord, ClaimRecord, Decision, Outcome, Purge
from loremesh_agents.adapters.graph.versioned.timing import Clock, Timing
from loremesh_agents.adapters.graph.versioned.vectors import INLINE
from loremesh_agents.adapters.graph.versioned.visibility import is_there
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.graph_schema import VertexLabel

_log = logging.getLogger(__name__)

_SHARE = 0.25
"""Of a write's time that it may take to look for what can be removed; of what is left then, the same for removing it."""
_FEWEST_VERSIONS = 16
_MOST_VERSIONS = 64
_REVISIONS = 16
_REMOVED_AT_ONCE = 2000
_MOST_PASSAGES = 4000
_LAST = (VertexLabel.CHANGE, VertexLabel.CLAIM, VertexLabel.COLLECTION, VertexLabel.DECISION)
"""They lead to the others: a removal that broke off finds by them what it has left."""


@dataclass(slots=True)
class Sweep:
    """What is to be removed, and how far that gets.

    Attributes:
        swept: Version up to which traces of what ended are removed then.
        purging: What is not purged then.
        ids: Vertices to remove.
        dropped: Cells to drop with the write.
        settings: What to set with the write: vectors of passages that stay.
    """

    swept: int
    purging: tuple[Purge, ...]
    ids: dict[VertexLabel, list[str]] = field(default_factory=dict[VertexLabel, list[str]])
    dropped: list[Cell] = field(default_factory=list[Cell])
    settings: list[Setting] = field(default_factory=list[Setting])

    def add(self, label: VertexLabel, ids: Iterable[str]) -> None:
        """Takes vertices to remove."""
        self.ids.setdefault(label, []).extend(ids)

    def add_passages(self, spans: Iterable[tuple[int, int]], sets: Sequence[int]) -> None:
        """Takes passages to remove, with their vectors of sets."""
        for ref in _refs(spans):
            self.add(VertexLabel.PASSAGE, [passage_vertex(ref)])
            if sets:
                self.add(VertexLabel.VECTOR, [vector_id(number, ref) for number in sets])

    async def remove(self, engine: GraphEngine, deadline: Deadline) -> None:
        """Removes the vertices; where it breaks off, the same sweep finds the rest again."""
        for label in sorted(self.ids, key=lambda label: _LAST.index(label) + 1 if label in _LAST else 0):
            ids = self.ids[label]
            for start in range(0, len(ids), _REMOVED_AT_ONCE):
                await engine.remove({label: ids[start : start + _REMOVED_AT_ONCE]}, deadline=deadline)


class Sweeping:
    """The removals of one process.

    Where one fails as part of a write, that goes on without it, and so do the writes that follow, for as long as what has ended is kept: then it
    is tried again.

    Args:
        engine: To read and remove.
        chain: For the decisions.
        clock: Of this process.
        timing: How long things last.
    """

    def __init__(self, engine: GraphEngine, chain: Chain, clock: Clock, timing: Timing) -> None:
        self._engine = engine
        self._chain = chain
        self._clock = clock
        self._timing = timing
        self._resting_until = clock.now()
        self.on_failure: Callable[[], None] | None = None

    async def plan(self, head: Head, *, eager: bool, deadline: Deadline) -> Sweep:
        """Finds something to remove; nothing where that fails and the write is not for its sake.

        Args:
            head: The state that the write follows.
            eager: Whether the write is for the sake of the removal: it looks for it even where there is little, and fails with it.
            deadline: Of the write.
        """
        if not eager and self._clock.now() < self._resting_until:
            return Sweep(head.swept, head.purging)
        try:
            return await plan_sweep(
                self._engine, self._chain, head, eager=eager, deadline=deadline if eager else deadline.fraction(_SHARE)
            )
        except Exception as error:
            self._failed(error)
            if eager:
                raise
            return Sweep(head.swept, head.purging)

    async def remove(self, sweep: Sweep, *, eager: bool, deadline: Deadline) -> bool:
        """Removes what was found; gives whether all of it is gone. The arguments are those of `plan`."""
        try:
            await sweep.remove(self._engine, deadline if eager else deadline.fraction(_SHARE))
        except Exception as error:
            self._failed(error)
            if eager:
                raise
            return False
        return True

    def _failed(self, error: Exception) -> None:
        self._resting_until = self._clock.now() + self._timing.retention
        if self.on_failure is not None:
            self.on_failure()
        _log.warning("%s: what has ended is not removed yet, and is tried again: %s", self._engine.name, error)


async def plan_sweep(engine: GraphEngine, chain: Chain, head: Head, *, eager: bool, deadline: Deadline) -> Sweep:
    """Finds something to remove.

    Args:
        engine: To read from.
        chain: For the decisions.
        head: The state that the write follows.
        eager: Whether to look for it even where there is little.
        deadline: When to give up.
    """
    sweep = Sweep(head.swept, head.purging)
    horizon = chain.horizon
    least = 1 if eager else _FEWEST_VERSIONS
    if horizon - head.swept >= least:
        last = min(horizon, head.swept + _MOST_VERSIONS)
        decisions = await _decisions(engine, chain, range(head.swept + 1, last + 1), deadline)
        await _sweep_versions(engine, decisions, head, sweep, deadline)
    due = next((entry for entry in sweep.purging if entry.since <= horizon), None)
    if due is not None:
        if due.vectors_alone:
            moved = await _purge_vectors(engine, due, sweep, head, deadline)
        else:
            moved = await _purge(engine, due, sweep, horizon, deadline)
        rest = (moved if entry is due else entry for entry in sweep.purging)
        sweep.purging = tuple(entry for entry in rest if entry.revision <= entry.last)
    return sweep


async def _sweep_versions(
    engine: GraphEngine, decisions: Mapping[int, Decision], head: Head, sweep: Sweep, deadline: Deadline
) -> None:
    claims = {claim_id(version): version for version, found in decisions.items() if found.outcome is Outcome.ABORTED}
    changes = {
        change_id(found.collection.uid, found.collection.revision): version
        for version, found in decisions.items()
        if found.removes and found.collection is not None
    }
    wanted: dict[VertexLabel, list[str]] = {VertexLabel.CLAIM: list(claims), VertexLabel.CHANGE: list(changes)}
    wanted = {label: ids for label, ids in wanted.items() if ids}
    records: Mapping[str, Record] = await engine.records(wanted, deadline=deadline) if wanted else {}
    traces = {version: records[vertex] for vertex, version in (claims | changes).items() if vertex in records}
    known = {state.uid for state in head.collections.values()} | {entry.uid for entry in head.purging}
    for version in sorted(decisions):
        record = traces.get(version)
        if record is not None and "claim" in record.properties:
            claim = ClaimRecord.decoded(str(record.properties["claim"]))
            sweep.add_passages([(first_ref(version), claim.passages)], claim.sets)
            if claim.uid and claim.uid not in known:
                known.add(claim.uid)
                sweep.purging = (*sweep.purging, Purge(claim.uid, version, 1, 1))
        elif record is not None:
            state = decisions[version].collection
            for change in _changes(record.sets.get("changes", ()), {version}):
                sweep.add_passages(change.removed, state.vertex_sets if state is not None else ())
        sweep.add(VertexLabel.CLAIM, [claim_id(version)])
        if not version % LANDMARK:
            sweep.add(VertexLabel.DECISION, map(decision_id, range(version - LANDMARK + 1, version)))
        sweep.swept = version
        if len(sweep.ids.get(VertexLabel.PASSAGE, ())) > _MOST_PASSAGES:
            break


async def _decisions(
    engine: GraphEngine, chain: Chain, versions: Iterable[int], deadline: Deadline
) -> dict[int, Decision]:
    found = {version: chain.decision(version) for version in versions}
    unknown = {decision_id(version): version for version, decision in found.items() if decision is None}
    if unknown:
        records = await engine.records({VertexLabel.DECISION: list(unknown)}, deadline=deadline)
        for vertex, record in records.items():
            found[unknown[vertex]] = Decision.decoded(str(record.properties["decision"]))
    return {version: decision for version, decision in found.items() if decision is not None}


async def _purge(engine: GraphEngine, entry: Purge, sweep: Sweep, horizon: int, deadline: Deadline) -> Purge:
    """Removes some revisions of a deleted collection, and what is left of it with the last."""
    revisions = range(entry.revision, min(entry.last, entry.revision + _REVISIONS - 1) + 1)
    changes = {change_id(entry.uid, revision): revision for revision in revisions}
    wanted: dict[VertexLabel, list[str]] = {VertexLabel.CHANGE: list(changes)}
    last = entry.last in revisions
    if last:
        wanted[VertexLabel.REGISTER] = [REGISTER]
    records = await engine.records(wanted, deadline=deadline)
    for vertex, record in records.items():
        if vertex == REGISTER:
            sweep.dropped += [
                Cell(VertexLabel.REGISTER, REGISTER, "collections", value)
                for value in record.sets.get("collections", ())
                if value.endswith(entry.uid) and int(value.partition(":")[0]) <= horizon
            ]
            continue
        # What was given up left traces as well.
        for change in _changes(record.sets.get("changes", ()), None):
            sweep.add_passages(change.added, entry.sets)
            sweep.add(VertexLabel.DOCUMENT, (document_vertex(entry.uid, name) for name in change.documents))
            sweep.add(VertexLabel.ENTITY, (name for name in change.made if name.startswith("e")))
            sweep.add(VertexLabel.ADDRESS, (name for name in change.made if name.startswith("a")))
    sweep.add(VertexLabel.CHANGE, changes)
    if last:
        sweep.add(VertexLabel.BUCKET, (bucket_id(entry.uid, number) for number in range(BUCKETS)))
        sweep.add(VertexLabel.COLLECTION, [collection_id(entry.uid)])
    return replace(entry, revision=revisions[-1] + 1)


async def _purge_vectors(engine: GraphEngine, entry: Purge, sweep: Sweep, head: Head, deadline: Deadline) -> Purge:
    """Removes the vectors of sets that some revisions of a collection have written."""
    revisions = range(entry.revision, min(entry.last, entry.revision + _REVISIONS - 1) + 1)
    wanted = {VertexLabel.CHANGE: [change_id(entry.uid, revision) for revision in revisions]}
    records = await engine.records(wanted, deadline=deadline)
    changes = [change for record in records.values() for change in _changes(record.sets.get("changes", ()), None)]
    refs = [ref for change in changes for ref in _refs(change.added)]
    sweep.add(VertexLabel.VECTOR, (vector_id(number, ref) for number in entry.sets for ref in refs))
    if INLINE in entry.sets and refs:
        access = Access((entry.uid,), first_ref(head.version + 1))
        for start in range(0, len(refs), _REMOVED_AT_ONCE):
            group = refs[start : start + _REMOVED_AT_ONCE]
            rows = await engine.passages(group, access, fields=(), deadline=deadline)
            # Those that have ended go as a whole: a value for one that is gone already might bring a part of it back.
            kept = [row.ref for row in rows if is_there(row, head.view)]
            sweep.settings += [Setting(VertexLabel.PASSAGE, passage_vertex(ref), "vector", b"") for ref in kept]
    return replace(entry, revision=revisions[-1] + 1)


def _changes(values: Sequence[str], versions: set[int] | None) -> list[ChangeRecord]:
    """The changes that some versions recorded, all of them if none are named."""
    cells: Mapping[str, str] = {stamp: payload for stamp, _, payload in (value.partition(":") for value in values)}
    return [
        ChangeRecord.decoded(payload) for stamp, payload in cells.items() if versions is None or int(stamp) in versions
    ]


def _refs(spans: Iterable[tuple[int, int]]) -> list[int]:
    return [ref for first, count in spans for ref in range(first, first + count)]
