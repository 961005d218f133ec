"""Several processes on one graph without transactions, in a scheduled order, with faults; and what they saw, for a check against a model."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

from loremesh_agents.adapters.graph.memory import MemoryGraphStore
from loremesh_agents.adapters.graph.versioned import VersionedGraphStore
from loremesh_agents.adapters.graph.versioned.identifiers import decision_id
from loremesh_agents.adapters.graph.versioned.states import Decision, Outcome
from loremesh_agents.adapters.graph.versioned.timing import Clock, Timing
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Document
from loremesh_agents.domain.errors import BackendUnavailable, LoremeshError
from loremesh_agents.domain.filter import EVERYTHING
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.revision import LATEST
from loremesh_agents.ports.graph import GraphStore
from tests.conformance.memory_engine import Graph, MemoryEngine
from tests.documents import document, writes

TIMING = Timing(write=30, lease=45, retention=60, snapshot=45, poll=10, abort=5)
NAMES = ("Ada", "Analytical Engine", "quiet protocol", "London Bridge")
TEXTS = (
    "Ada met Babbage near London Bridge.",
    "the analytical engine and the quiet protocol were new.",
    "London Bridge fell. Ada went there.",
    "The quiet protocol of the Analytical Engine Company.",
)
IDS = "abcd"
TERMS = ("ada", "london", "bridge", "the", "protocol")
KEYS = ("ada", "analytical engine", "quiet protocol", "london bridge", "babbage", "analytical engine company")
_SETTLED = 30


def patiently() -> Deadline:
    return Deadline.after(600)


@dataclass(frozen=True)
class Operation:
    """A write or a delete, each of a collection that every history begins with."""

    written: tuple[Document, ...] = ()
    deleted: str = ""

    async def run(self, store: GraphStore) -> None:
        if self.written:
            await store.write("c", writes(*self.written), embedding_model="", deadline=patiently())
        else:
            await store.delete_documents("c", [self.deleted], deadline=patiently())


@dataclass
class Try:
    """An operation that a process has begun."""

    operation: Operation
    versions: list[int] = field(default_factory=list)
    acknowledged_at: int | None = None


@dataclass
class Look:
    """What a reader saw."""

    began: int
    ended: int
    revision: int
    digest: object


async def digest(store: GraphStore) -> tuple[int, object]:
    """The revision of a snapshot, and much of what it shows, read in several requests."""
    async with store.snapshot(
        ["c"], principal=ANONYMOUS, filter=EVERYTHING, consistency=LATEST, deadline=patiently()
    ) as snapshot:
        wanted = [("c", f"{name}#0") for name in IDS]
        entry = await snapshot.enter(terms=TERMS, entities=KEYS, passages=wanted, title_limit=10, deadline=patiently())
        names = {ref: passage_id for (_, passage_id), ref in entry.passages.items()}
        fetched = await snapshot.fetch(list(names), deadline=patiently())
        expansion = await snapshot.expand(
            list(names), TERMS, entities=KEYS, known=(), mention_limit=60, title_limit=10, deadline=patiently()
        )
        shown = {names[ref]: (passage.title, passage.text) for ref, passage in fetched.items()}
        seen = {
            "passages": shown,
            "missing": set(names.values()) - shown.keys(),
            "statistics": entry.statistics,
            "entities": entry.entities,
            "titles": {(edge.entity, names[edge.passage]) for edge in entry.titles},
            "mentions": {(key, names[ref]) for key, refs in expansion.mentions.items() for ref in refs},
            "seed mentions": {(edge.entity, names[edge.passage]) for edge in expansion.seed_mentions},
            "references": {(names[edge.source], names[edge.target], edge.in_degree) for edge in expansion.references},
        }
        return snapshot.revisions[0].revision, seen


@dataclass(frozen=True)
class _Waiting:
    """Somebody who waits for their turn.

    Attributes:
        future: Set when it is theirs.
        what: What they will do.
        after: Step before which it is not theirs while others wait.
    """

    future: "asyncio.Future[None]"
    what: str
    after: int


class Schedule:
    """Lets one process at a time go on to its next request, in an order that a seed decides."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.waiting: list[_Waiting] = []
        self.slowness = self.random.choice([0.0, 0.05])
        self.time = 0.0
        self.step = 0

    async def turn(self, what: str) -> None:
        """Waits until it is the caller's turn."""
        # Now and then a request takes so long that much happens meanwhile.
        delay = self.random.randint(30, 300) if self.random.random() < self.slowness else 0
        waiting = _Waiting(asyncio.get_running_loop().create_future(), what, self.step + delay)
        self.waiting.append(waiting)
        await waiting.future

    async def run(self, *tasks: "asyncio.Task[object]", between: Callable[[], None]) -> None:
        """Lets tasks run to their end."""
        while True:
            for _ in range(_SETTLED):
                await asyncio.sleep(0)
            self.waiting = [entry for entry in self.waiting if not entry.future.done()]
            if not self.waiting:
                if all(task.done() for task in tasks):
                    return
                continue
            self.step += 1
            between()
            due = [entry for entry in self.waiting if entry.after <= self.step] or self.waiting
            # Who waits for time to pass goes on when nobody else does, mostly.
            busy = [entry for entry in due if entry.what != "sleep"]
            entry = self.random.choice(busy if busy and self.random.random() < 0.95 else due)
            if entry.what == "sleep":
                self.time += TIMING.poll
            self.waiting.remove(entry)
            entry.future.set_result(None)


class ScheduledClock(Clock):
    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def now(self) -> float:
        return self._schedule.time

    async def sleep(self, seconds: float) -> None:
        await self._schedule.turn("sleep")


class Simulation:
    """Processes on one graph.

    Args:
        seed: Decides everything.
        transactions: Whether the engine applies a batch whole.
    """

    def __init__(self, seed: int, *, transactions: bool = False) -> None:
        self.schedule = Schedule(seed)
        self.random = self.schedule.random
        self.graph = Graph()
        self.transactions = transactions
        self.tries: list[Try] = []
        self.looks: list[Look] = []
        self.zombies: list[MemoryEngine] = []
        self.faults = True
        self.fault_rate = self.random.choice([0.0, 0.01, 0.03])
        self.pauses = self.random.choice([(0,), (0, 0, 0, 30), (0, 30, 61)])

    def session(self, current: Callable[[], Try | None]) -> MemoryEngine:
        """An engine as a process sees it; it may die at any request."""

        async def fault(method: str, number: int) -> None:
            await self.schedule.turn(method)
            if self.faults and self.random.random() < self.fault_rate:
                if self.random.random() < 0.5:
                    engine.dead = True
                    self.zombies.append(engine)
                raise BackendUnavailable(engine.name)

        engine = _Recording(self.graph, fault, current, transactions=self.transactions, shuffle=self.random.random())
        engine.split = lambda size: self.random.randint(0, size)
        return engine

    def between(self) -> None:
        """What happens between two requests: what dead processes have sent arrives."""
        if self.zombies and self.random.random() < 0.02:
            self.zombies.pop(self.random.randrange(len(self.zombies))).release()

    @asynccontextmanager
    async def process(self, current: Callable[[], Try | None]) -> AsyncIterator[VersionedGraphStore]:
        store = VersionedGraphStore(self.session(current), timing=TIMING, clock=ScheduledClock(self.schedule))
        try:
            yield store
        finally:
            await store.close()

    async def writer(self, operations: list[Operation]) -> None:
        """A process that writes, and starts again when it has died."""
        left = list(operations)
        attempt: list[Try] = []
        while left:
            async with self.process(lambda: attempt[-1] if attempt else None) as store:
                while left and not store.engine.dead:
                    attempt.append(Try(left.pop(0)))
                    self.tries.append(attempt[-1])
                    work = asyncio.create_task(attempt[-1].operation.run(store))
                    if self.faults and self.random.random() < self.fault_rate:
                        await self._cancel_at_random(work)
                        continue
                    try:
                        await work
                    except LoremeshError:
                        continue
                    attempt[-1].acknowledged_at = self.schedule.step
                    self.schedule.time += self.random.choice(self.pauses)

    async def _cancel_at_random(self, work: "asyncio.Task[None]") -> None:
        for _ in range(self.random.randint(0, 8)):
            await self.schedule.turn("cancel")
        work.cancel()
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()

    async def reader(self, count: int) -> None:
        """A process that reads, and starts again when it has died."""
        while count > 0:
            async with self.process(lambda: None) as store:
                while count > 0 and not store.engine.dead:
                    count -= 1
                    began = self.schedule.step
                    try:
                        revision, seen = await digest(store)
                    except LoremeshError:
                        continue
                    self.looks.append(Look(began, self.schedule.step, revision, seen))

    async def run(self, *work: Awaitable[None]) -> None:
        """Runs processes side by side to their end, without threads, whose order no seed decides."""

        async def inline(function: Callable[..., object], *arguments: object) -> object:
            return function(*arguments)

        with patch.object(asyncio, "to_thread", inline):
            tasks = [asyncio.ensure_future(entry) for entry in work]
            await self.schedule.run(*tasks, between=self.between)
            for task in tasks:
                task.result()

    def decisions(self) -> dict[int, Decision]:
        """Those that are there, by version."""
        found: dict[int, Decision] = {}
        while (node := self.graph.nodes.get(decision_id(len(found) + 1))) is not None:
            found[len(found) + 1] = Decision.decoded(str(node.properties["decision"]))
        return found

    async def check(self) -> None:
        """Compares what was seen with what the store in memory says after the same writes."""
        decisions = self.decisions()
        model = MemoryGraphStore()
        await model.write("c", (), embedding_model="", deadline=patiently())
        by_version = {version: entry for entry in self.tries for version in entry.versions}
        states = {0: (await digest(model))[1]}
        revisions: dict[int, int] = {}
        for version, decision in decisions.items():
            entry = by_version.get(version)
            if decision.outcome is Outcome.COMMITTED and entry is not None:
                await entry.operation.run(model)
                revision, states_after = await digest(model)
                states[revision] = states_after
                revisions[version] = revision
        for entry in self.tries:
            if entry.acknowledged_at is None:
                continue
            outcomes = [decisions[version].outcome for version in entry.versions if version in decisions]
            assert outcomes[-1] in (Outcome.COMMITTED, Outcome.VOID), "what was acknowledged is there"
            revision = max((revisions[version] for version in entry.versions if version in revisions), default=0)
            for look in self.looks:
                assert look.began < entry.acknowledged_at or look.revision >= revision, "a later snapshot has it"
        for look in self.looks:
            assert look.digest == states[look.revision], "nobody sees a part of a write"
            for other in self.looks:
                assert other.began < look.ended or other.revision >= look.revision, "nobody goes back in time"
        self.faults = False
        final: list[tuple[int, object]] = []

        async def last_look() -> None:
            async with self.process(lambda: None) as store:
                final.append(await digest(store))

        while self.zombies:
            self.zombies.pop().release()
        await self.run(last_look())
        assert final == [await digest(model)], "the state after all is that of the committed writes"
        await model.close()

    async def begin(self) -> None:
        """Makes the collection."""

        async def create() -> None:
            async with self.process(lambda: None) as store:
                await store.write("c", (), embedding_model="", deadline=patiently())

        self.faults = False
        await self.run(create())
        self.faults = True


class _Recording(MemoryEngine):
    """Notes which operation claimed which version."""

    def __init__(self, graph, fault, current: Callable[[], Try | None], **options) -> None:
        super().__init__(graph, fault=fault, **options)
        self._current = current

    async def create(self, vertex, *, deadline: Deadline) -> bool:
        there = vertex.id in self.graph.nodes
        entry = self._current()
        try:
            return await super().create(vertex, deadline=deadline)
        finally:
            if vertex.id.startswith("claim") and entry is not None and vertex.id in self.graph.nodes:
                node = self.graph.nodes[vertex.id]
                version = int(vertex.id.removeprefix("claim"))
                # The claim of a version decided long ago may be made anew; its writer finds out.
                old = decision_id(version) in self.graph.nodes
                if not there and not old and node.properties["claim"] == vertex.properties["claim"]:
                    entry.versions.append(version)


def operations_of(chance: random.Random, count: int) -> list[Operation]:
    """Random writes and deletes."""
    made: list[Operation] = []
    for number in range(count):
        if chance.random() < 0.25:
            made.append(Operation(deleted=chance.choice(IDS)))
            continue
        names = chance.sample(IDS, chance.randint(1, 2))
        made.append(
            Operation(
                tuple(
                    document(name, chance.choice(NAMES), f"{chance.choice(TEXTS)} {chance.choice(['', number])}")
                    for name in names
                )
            )
        )
    return made
