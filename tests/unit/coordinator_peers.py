"""Peers of the coordinator that wait where a test tells them to."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable

from loremesh_agents.domain.answer import Completion, FinishReason, Source, TokenDelta
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.ports.language_model import GenerationRequest
from loremesh_agents.ports.peers import GenerationStart, Prompt, SynthesisStart

PASSAGE = Passage("c", "d#0", "d", "Title", (), "Water is wet.", "", 0, 0, 13, {})
STOP = Completion(FinishReason.STOP)


class Gate:
    """A place where a peer waits until it is opened; knows who is waiting and who was sent away."""

    def __init__(self, *, open: bool = True) -> None:
        self._open = asyncio.Event()
        if open:
            self._open.set()
        self.reached = asyncio.Event()
        self.cancelled = False
        self.deadline: Deadline | None = None

    async def __call__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.reached.set()
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._open.wait()
        except TimeoutError:
            raise BudgetExhausted("peer", "waiting") from None
        except asyncio.CancelledError:
            self.cancelled = True
            raise


class Peers:
    """A retriever, a synthesizer and a generator in one."""

    def __init__(self, *, closed: str = "") -> None:
        self.gates = {name: Gate(open=name != closed) for name in ("retrieve", "synthesize", "generate")}

    async def retrieve(self, request: RetrievalRequest, *, deadline: Deadline) -> AsyncGenerator[Evidence | Completion]:
        yield Evidence("E1", PASSAGE, 1.0, 1)
        await self.gates["retrieve"](deadline)
        yield STOP

    async def synthesize(
        self, start: SynthesisStart, evidence: AsyncIterable[Evidence], *, deadline: Deadline
    ) -> AsyncGenerator[Prompt | Completion]:
        found = [piece async for piece in evidence]
        await self.gates["synthesize"](deadline)
        sources = tuple(
            Source(n, (piece.evidence_id,), "Title", "", "Title", PASSAGE.text) for n, piece in enumerate(found, 1)
        )
        yield Prompt((Message(Role.USER, start.question),), sources)
        yield STOP

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | Completion]:
        yield GenerationStart("m", "f")
        yield TokenDelta("Water is wet.", 0, 3)
        yield TokenDelta(" [1]", 3)
        await self.gates["generate"](deadline)
        yield Completion(FinishReason.STOP, model="m")
