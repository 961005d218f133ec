"""The turns of the writers of one process: each claims a version, makes its changes, and decides on it."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple, TypeVar

from loremesh_agents.adapters.graph.versioned.batch import Batch
from loremesh_agents.adapters.graph.versioned.buckets import Buckets
from loremesh_agents.adapters.graph.versioned.chain import Chain, Head
from loremesh_agents.adapters.graph.versioned.concurrently import both
from loremesh_agents.adapters.graph.versioned.engine import GraphEngine
from loremesh_agents.adapters.graph.versioned.identifiers import decision_id
from loremesh_agents.adapters.graph.versioned.memory import WriterMemory
from loremesh_agents.adapters.graph.versioned.sending import Sending
from loremesh_agents.adapters.graph.versioned.states import ClaimRecord, CollectionState, Decision, Outcome
from loremesh_agents.adapters.graph.versioned.sweep import Sweeping
from loremesh_agents.adapters.graph.versioned.timing import Timing
from loremesh_agents.adapters.graph.versioned.writer import Writer
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, LoremeshError, WriteConflict
from loremesh_agents.domain.revision import CollectionRevision

_Result = TypeVar("_Result")


class Described(NamedTuple):
    """What a write may write.

    Attributes:
        uid: Of the collection; empty for none.
        passages: Most passages.
        sets: Sets of which it may write vectors as vertices.
    """

    uid: str
    passages: int
    sets: tuple[int, ...]


def of_nothing(_: Head) -> Described:
    """What a write may write that writes to no collection."""
    return Described("", 0, ())


def committed(head: Head) -> Decision:
    """That the version after a state counts, and changes nothing yet."""
    return Decision(Outcome.COMMITTED, time.time(), tuple(sorted(head.view.aborted)), head.swept, ())


class Turns:
    """Lets one write of this process after another have its turn among those of all processes.

    Args:
        engine: Where the graph is.
        chain: Of the store's versions.
        sweeping: What a write removes besides.
        buckets: Of postings, which readers share.
        timing: How long things last.
    """

    def __init__(self, engine: GraphEngine, chain: Chain, sweeping: Sweeping, buckets: Buckets, timing: Timing) -> None:
        self._engine = engine
        self._chain = chain
        self._sweeping = sweeping
        self._buckets = buckets
        self._timing = timing
        self._memory = WriterMemory()
        self._lock = asyncio.Lock()

    async def write(
        self,
        find: Callable[[Head], CollectionState],
        work: Callable[[Writer, Deadline], Awaitable[_Result]],
        passages: int,
        deadline: Deadline,
        kind: type[Writer] = Writer,
    ) -> tuple[CollectionRevision, _Result]:
        """Does a write to one collection when it is its turn.

        Args:
            find: The collection, in the state that the write follows.
            work: Makes the changes.
            passages: Most passages that it writes.
            deadline: When to give up.
            kind: Of the writer that `work` is given.
        """
        writers: list[Writer] = []

        async def plan(
            head: Head, batch: Batch, sending: Sending, limit: Deadline
        ) -> tuple[Decision | None, tuple[CollectionRevision, _Result]]:
            writer = kind(
                self._engine,
                self._memory,
                self._buckets,
                batch,
                sending,
                head=head,
                collection=find(head),
                time=time.time(),
            )
            result = await work(writer, limit)
            answer = writer.collection.reached, result
            if not writer.changes_anything:
                return None, answer
            writers.append(writer)
            decision = replace(
                committed(head),
                collection=writer.collection if writer.renewed else None,
                revised=writer.revised,
                removes=writer.removes,
                purging=tuple(writer.purging),
            )
            return decision, answer

        def describe(head: Head) -> Described:
            state = find(head)
            return Described(state.uid, passages, state.vertex_sets)

        answer = await self.take(describe, plan, deadline)
        for writer in writers:
            writer.committed()
        return answer

    async def take(
        self,
        describe: Callable[[Head], Described],
        work: Callable[[Head, Batch, Sending, Deadline], Awaitable[tuple[Decision | None, _Result]]],
        deadline: Deadline,
        *,
        eager: bool = False,
    ) -> _Result:
        """Does a write when it is its turn.

        Args:
            describe: What it may write, given the state that the write follows.
            work: Makes the changes; gives the decision, None where there is nothing to write, and a result. Of what is to be purged the decision
                holds what is new.
            deadline: When to give up.
            eager: Whether to remove what nobody needs even where it is little.
        """
        name = uuid.uuid4().hex
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._lock.acquire()
        except TimeoutError:
            raise BudgetExhausted("graph store", "waiting for another write") from None
        try:

            def claim(head: Head) -> ClaimRecord:
                found = describe(head)
                return ClaimRecord(name, found.uid, found.passages, time.time(), found.sets)

            head = await self._chain.claim(claim, deadline)
            self._memory.begin(head.version)
            return await self._turn(head, work, deadline.shrink(cap=self._timing.write), eager=eager)
        finally:
            self._lock.release()

    async def _turn(
        self,
        head: Head,
        work: Callable[[Head, Batch, Sending, Deadline], Awaitable[tuple[Decision | None, _Result]]],
        deadline: Deadline,
        *,
        eager: bool,
    ) -> _Result:
        """Does a write whose turn it is, and decides on it."""
        version = head.version + 1
        batch = Batch(version, head.view, self._chain.horizon)
        sending = Sending(self._engine, decision_id(version), deadline)
        answers: list[_Result] = []
        try:
            decision, answer = await work(head, batch, sending, deadline)
            answers.append(answer)
            if decision is None:
                decision = head.aborted(time.time(), Outcome.VOID)
            else:
                sweep = await self._sweeping.plan(head, eager=eager, deadline=deadline)
                batch.dropped += sweep.dropped
                batch.settings += sweep.settings
                sending.send(batch.taken())
                _, removed = await both(sending.finish(), self._sweeping.remove(sweep, eager=eager, deadline=deadline))
                swept, purging = (sweep.swept, sweep.purging) if removed else (head.swept, head.purging)
                decision = replace(decision, swept=swept, purging=(*purging, *decision.purging))
            settled = await self._chain.decide(version, decision, deadline)
        except BaseException as error:
            failed = Outcome.ABORTED if sending.begun else Outcome.VOID
            abort = Deadline.after(self._timing.abort)
            self._chain.later(sending.stop())
            giving_up = self._chain.later(self._chain.give_up(version, failed, abort))
            if isinstance(error, LoremeshError):
                # It may have been decided though the engine could not say so.
                found = await asyncio.shield(giving_up)
                if answers and found is not None and found.outcome is Outcome.COMMITTED:
                    self._memory.version = version
                    return answers[0]
            self._memory.forget()
            raise
        if settled.outcome is not decision.outcome:
            self._memory.forget()
            raise WriteConflict(self._engine.name)
        self._memory.version = version
        return answers[0]
