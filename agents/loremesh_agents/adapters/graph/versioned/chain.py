"""The chain of versions of a store: which there are, what became of each, and whose turn it is.

docs/consistency.md says why this is enough for readers that never see half of a write, on engines without transactions.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from loremesh_agents.adapters.graph.versioned.cells import View, newest, writer_of
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine, Record, Vertex
from loremesh_agents.adapters.graph.versioned.identifiers import REGISTER, claim_id, collection_id, decision_id
from loremesh_agents.adapters.graph.versioned.states import ClaimRecord, CollectionState, Decision, Outcome, Purge
from loremesh_agents.adapters.graph.versioned.timing import Clock, Timing
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, CollectionNotFound, LoremeshError, WriteConflict
from loremesh_agents.domain.graph_schema import VertexLabel

_Result = TypeVar("_Result")

LANDMARK = 1024
"""The decisions on multiples of this stay for ever: they lead a process that was away to the newest one."""
_LOOKED_AHEAD = 16
_REMEMBERED = 4096
_MOST_COLLECTIONS_READ = 500
_LOADS = 5
_SIGHTINGS = 128
_SIGHTINGS_IN_RETENTION = 64


@dataclass(frozen=True)
class Head:
    """The state of the store at a version.

    Attributes:
        view: What counts.
        swept: Traces of what ended up to this version are removed.
        purging: Deleted collections that are not purged yet.
        collections: By name.
    """

    view: View = field(default_factory=lambda: View(0, frozenset()))
    swept: int = 0
    purging: tuple[Purge, ...] = ()
    collections: Mapping[str, CollectionState] = field(default_factory=dict[str, CollectionState])

    @property
    def version(self) -> int:
        """Which version it is."""
        return self.view.version

    def collection(self, name: str) -> CollectionState:
        """A collection.

        Raises:
            CollectionNotFound: There is none of that name.
        """
        found = self.collections.get(name)
        if found is None:
            raise CollectionNotFound(name)
        return found

    def after(self, decision: Decision) -> "Head":
        """The state at the next version."""
        collections = dict(self.collections)
        if decision.collection is not None:
            collections[decision.collection.name] = decision.collection
        if decision.deleted:
            collections = {name: state for name, state in collections.items() if state.uid != decision.deleted}
        view = View(self.version + 1, frozenset(decision.aborted))
        return Head(view, decision.swept, decision.purging, collections)

    def aborted(self, time: float, outcome: Outcome = Outcome.ABORTED) -> Decision:
        """The decision that the next version does not count."""
        added = (self.version + 1,) if outcome is Outcome.ABORTED else ()
        return Decision(outcome, time, tuple(sorted({*self.view.aborted, *added})), self.swept, self.purging)


class Chain:
    """What this process knows of the chain. It belongs to one event loop.

    Args:
        engine: Where it is kept.
        clock: Of this process.
        timing: How long things last.
        wall: Seconds since 1970, for records that people read.
    """

    def __init__(self, engine: GraphEngine, clock: Clock, timing: Timing, wall: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._timing = timing
        self._wall = wall
        self._head: Head | None = None
        self._decisions: OrderedDict[int, Decision] = OrderedDict()
        self._seen: deque[tuple[float, int]] = deque(maxlen=_SIGHTINGS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._claimed = (0, 0.0)

    @property
    def head(self) -> Head:
        """The newest state that this process knows; the empty one before it has looked."""
        return self._head or Head()

    @property
    def horizon(self) -> int:
        """Every reader, of any process, that may still read sees this version or a newer one.

        Its decision was seen so long ago that a snapshot that was opened before is too old by now.
        """
        now = self._clock.now()
        self._note(now)
        horizon = 0
        while self._seen and self._seen[0][0] <= now - self._timing.retention:
            horizon = self._seen.popleft()[1]
        if horizon:
            self._seen.appendleft((now - self._timing.retention, horizon))
        return horizon

    def decision(self, version: int) -> Decision | None:
        """The decision on a version, if it was made lately."""
        return self._decisions.get(version)

    async def advance(self, deadline: Deadline) -> Head:
        """The newest state: with everything that was decided before the call.

        Raises:
            BackendUnavailable: The engine does not answer.
            BudgetExhausted: The deadline passes.
        """
        if self._head is None:
            return await self._load(0, deadline)
        while True:
            known = self.head.version
            wanted = {*range(known + 1, known + 1 + _LOOKED_AHEAD), _landmark_after(known)}
            found = await self._read(wanted, deadline)
            if known + 1 not in found and _landmark_after(known) in found:
                return await self._load(_landmark_after(known), deadline)
            version = known + 1
            while version in found:
                self._take(version, found[version])
                version += 1
            if version <= known + _LOOKED_AHEAD:
                return self.head

    async def claim(self, describe: Callable[[Head], ClaimRecord], deadline: Deadline) -> Head:
        """Takes the turn to write the next version; others wait until it is decided.

        Args:
            describe: What is said of the writer, given the state that the version follows.
            deadline: When to give up.

        Returns:
            The state that the claimed version follows: the newest, until the caller decides.

        Raises:
            WriteConflict: Others had their turn until the deadline.
            BackendUnavailable: The engine does not answer.
            BudgetExhausted: The deadline passes.
        """
        if self._head is None:
            await self.advance(deadline)
        tried = -1
        while True:
            head = self.head
            if head.version != tried:
                tried = head.version
                if await self._win(describe(head), head, deadline):
                    return head
            elif await self.advance(deadline) is head:
                await self._wait(head, deadline)

    async def _win(self, record: ClaimRecord, head: Head, deadline: Deadline) -> bool:
        claim = Vertex(VertexLabel.CLAIM, claim_id(head.version + 1), {"claim": record.encoded()})
        try:
            won = await self._engine.create(claim, deadline=deadline)
            # Claims go some time after they are decided: only that nobody has decided shows that this is not an old one made anew.
            return await self.advance(deadline) is head and won
        except BaseException:
            # It may be there nevertheless. Then nobody else need wait for it.
            self.later(self._withdraw(record, head.version + 1))
            raise

    async def _withdraw(self, record: ClaimRecord, version: int) -> None:
        deadline = Deadline.after(self._timing.abort)
        found = await self._engine.records({VertexLabel.CLAIM: [claim_id(version)]}, deadline=deadline)
        claim = found.get(claim_id(version))
        if claim is not None and str(claim.properties["claim"]) == record.encoded():
            await self.give_up(version, Outcome.VOID, deadline)

    def later(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result | None]:
        """Does what must be done even if the caller is cancelled, in a task that `close` waits for. None where it fails: others do it in time."""

        async def run() -> _Result | None:
            with suppress(LoremeshError):
                return await work
            return None

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Waits for what is still to be done; each of it has a deadline."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._timing.abort)
        for task in self._tasks:
            task.cancel()

    async def _wait(self, head: Head, deadline: Deadline) -> None:
        """Waits for somebody else's decision; makes it once they have had their time."""
        now = self._clock.now()
        if self._claimed[0] != head.version + 1:
            self._claimed = (head.version + 1, now)
        if now - self._claimed[1] > self._timing.lease:
            await self.give_up(head.version + 1, Outcome.ABORTED, deadline)
            return
        if deadline.remaining() <= 2 * self._timing.poll:
            raise WriteConflict(self._engine.name)
        await self._clock.sleep(self._timing.poll)

    async def give_up(self, version: int, outcome: Outcome, deadline: Deadline) -> Decision:
        """Decides that a version does not count, unless it is decided; gives the decision that is in force."""
        if self.head.version + 1 != version:
            found = self._decisions.get(version) or (await self._read({version}, deadline)).get(version)
            if found is None:
                raise WriteConflict(self._engine.name)
            return found
        return await self.decide(version, self.head.aborted(self._wall(), outcome), deadline)

    async def decide(self, version: int, decision: Decision, deadline: Deadline) -> Decision:
        """Decides on a version, unless it is decided; gives the decision that is in force.

        Raises:
            BackendUnavailable: The engine does not answer: whether it is decided is not known.
            BudgetExhausted: The same, since the deadline has passed.
        """
        vertex = Vertex(VertexLabel.DECISION, decision_id(version), {"decision": decision.encoded()})
        if not await self._engine.create(vertex, deadline=deadline):
            found = (await self._read({version}, deadline)).get(version)
            if found is None:
                raise BackendUnavailable(self._engine.name)
            decision = found
        self._take(version, decision)
        return decision

    def _take(self, version: int, decision: Decision) -> None:
        """Learns of a decision. Others may have learned of it meanwhile."""
        if version != self.head.version + 1:
            return
        now = self._clock.now()
        self._head = self.head.after(decision)
        self._decisions[version] = decision
        while len(self._decisions) > _REMEMBERED:
            self._decisions.popitem(last=False)
        self._note(now)

    def _note(self, now: float) -> None:
        """Remembers when the head was seen, often enough."""
        version = self.head.version
        if self._seen and (
            self._seen[-1][1] == version or now - self._seen[-1][0] < self._timing.retention / _SIGHTINGS_IN_RETENTION
        ):
            return
        self._seen.append((now, version))

    async def _read(self, versions: set[int], deadline: Deadline) -> dict[int, Decision]:
        ids = {decision_id(version): version for version in sorted(versions)}
        found = await self._engine.records({VertexLabel.DECISION: list(ids)}, deadline=deadline)
        return {ids[vertex]: Decision.decoded(str(record.properties["decision"])) for vertex, record in found.items()}

    async def _load(self, known: int, deadline: Deadline) -> Head:
        """Finds the newest state without knowing those before.

        Args:
            known: A version that is decided; 0 for none.
            deadline: When the answer is of no more use.
        """
        for _ in range(_LOADS):
            register = await self._register(deadline)
            hint = int(register.properties.get("head", 0)) if register is not None else 0
            version, decision = await self._find(max(known, hint), deadline)
            collections = await self._catalogue(View(version, frozenset(decision.aborted)), deadline)
            if collections is None:
                known = version
                continue
            if self._head is None or self._head.version < version:
                view = View(version, frozenset(decision.aborted))
                self._head = Head(view, decision.swept, decision.purging, collections)
                self._note(self._clock.now())
            return self.head
        raise BackendUnavailable(self._engine.name)

    async def _register(self, deadline: Deadline) -> Record | None:
        return (await self._engine.records({VertexLabel.REGISTER: [REGISTER]}, deadline=deadline)).get(REGISTER)

    async def _find(self, version: int, deadline: Deadline) -> tuple[int, Decision]:
        """The newest version that is decided, given one that is (or 0), with the decision."""
        while True:
            landmark = _landmark_after(version)
            found = await self._read({*range(version, version + 1 + _LOOKED_AHEAD), landmark} - {0}, deadline)
            newest_found = version
            while newest_found + 1 in found:
                newest_found += 1
            if newest_found < version + _LOOKED_AHEAD and landmark not in found:
                nothing = Decision(Outcome.VOID, 0.0, (), 0, ())
                if newest_found and newest_found not in found:
                    raise BackendUnavailable(self._engine.name)
                return newest_found, found.get(newest_found, nothing)
            version = max(newest_found, landmark) if landmark in found else newest_found

    async def _catalogue(self, view: View, deadline: Deadline) -> dict[str, CollectionState] | None:
        """The collections in a state; None where that state is gone already."""
        register = await self._register(deadline)
        values = register.sets.get("collections", ()) if register is not None else ()
        counting = [value.partition(":")[2] for value in values if view.counts(writer_of(value))]
        gone = {entry[1:] for entry in counting if entry.startswith("-")}
        uids = sorted({entry[1:] for entry in counting if entry.startswith("+")} - gone)
        found: dict[str, CollectionState] = {}
        for start in range(0, len(uids), _MOST_COLLECTIONS_READ):
            ids = [collection_id(uid) for uid in uids[start : start + _MOST_COLLECTIONS_READ]]
            records = await self._engine.records({VertexLabel.COLLECTION: ids}, deadline=deadline)
            for vertex in ids:
                record = records.get(vertex)
                text = newest(record.sets.get("states", ()), view) if record is not None else None
                if text is None:
                    return None
                state = CollectionState.decoded(text)
                found[state.name] = state
        return found


def _landmark_after(version: int) -> int:
    return (version // LANDMARK + 1) * LANDMARK
