"""One retrieval, with the synthesizer reading along."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from loremesh_agents.coordinator.citation_table import CitationTable
from loremesh_agents.coordinator.events import Heartbeat
from loremesh_agents.coordinator.stopwatch import Stopwatch
from loremesh_agents.domain.answer import Completion, Degradation, DegradationReason
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.read_ahead import ReadAhead
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.ports.peers import Prompt, Retriever, SynthesisStart, Synthesizer


class Gathering:
    """Finds evidence and has it made into numbered sources.

    Args:
        retriever: Finds the evidence.
        synthesizer: Makes the sources.
        table: What the answer has already; names the evidence. What is in a source of it is not quoted again.
        stopwatch: Is told what took how long.
        heartbeat: Seconds of silence after which a heartbeat is given.

    Attributes:
        prompt: What the synthesizer made; None where there was no time for it.
        retrieval: How the retrieval ended; None where there was no time for it.
        evidence_ids: All that was found, by rank.
    """

    def __init__(
        self,
        retriever: Retriever,
        synthesizer: Synthesizer,
        table: CitationTable,
        *,
        stopwatch: Stopwatch,
        heartbeat: float,
    ) -> None:
        self._retriever = retriever
        self._synthesizer = synthesizer
        self._table = table
        self._stopwatch = stopwatch
        self._heartbeat = heartbeat
        self.prompt: Prompt | None = None
        self.retrieval: Completion | None = None
        self.evidence_ids: list[str] = []

    async def events(
        self,
        request: RetrievalRequest,
        start: SynthesisStart,
        *,
        retrieval_deadline: Deadline,
        deadline: Deadline,
    ) -> AsyncGenerator[Evidence | Degradation | Heartbeat]:
        """Evidence as it is found, where it is new to the answer, and what was left out. Closing it cancels both calls.

        Args:
            request: What to find.
            start: What the sources are for.
            retrieval_deadline: When the retrieval must have ended; what has come by then counts.
            deadline: When the sources must be there.

        Raises:
            LoremeshError: What a peer raised.
        """
        # Room for all that one retrieval may give: putting never waits for a synthesizer that has failed.
        found: asyncio.Queue[Evidence | None] = asyncio.Queue(request.k + 1)
        prompting = asyncio.create_task(self._synthesis(start, found, deadline))
        try:
            retrieval = self._retriever.retrieve(request, deadline=retrieval_deadline)
            try:
                async with ReadAhead(retrieval, self._heartbeat) as arriving:
                    while (items := await arriving.take()) is not None:
                        if not items:
                            yield Heartbeat()
                        # To the synthesizer first: it works while the caller reads.
                        for evidence in self._taken(items, found):
                            yield evidence
            except BudgetExhausted:
                yield _out_of_time("retriever", "retrieval", "Retrieval took more than its share of the budget.")
            if self.retrieval is None:
                found.put_nowait(None)
            else:
                for degradation in self.retrieval.degradations:
                    yield degradation
            self._stopwatch.lap("retrieve")
            while not (await asyncio.wait([prompting], timeout=self._heartbeat))[0]:
                yield Heartbeat()
            try:
                self.prompt, completion = await prompting
            except BudgetExhausted:
                yield _out_of_time("synthesizer", "prompt", "No time was left to make the prompt.")
            else:
                for degradation in completion.degradations:
                    yield degradation
            self._stopwatch.lap("synthesize")
        finally:
            prompting.cancel()
            await asyncio.wait([prompting])
            if not prompting.cancelled():
                prompting.exception()

    def _taken(self, items: Sequence[Evidence | Completion], found: asyncio.Queue[Evidence | None]) -> list[Evidence]:
        """Hands on what the synthesizer is to read; gives what is new."""
        new: list[Evidence] = []
        for item in items:
            if isinstance(item, Completion):
                self.retrieval = item
                found.put_nowait(None)
                continue
            evidence, is_new = self._table.named(item)
            self.evidence_ids.append(evidence.evidence_id)
            if is_new:
                new.append(evidence)
            if self._table.number_of(evidence.evidence_id) is None:
                found.put_nowait(evidence)
        return new

    async def _synthesis(
        self, start: SynthesisStart, found: asyncio.Queue[Evidence | None], deadline: Deadline
    ) -> tuple[Prompt, Completion]:
        async def evidence() -> AsyncGenerator[Evidence]:
            while (item := await found.get()) is not None:
                yield item

        prompt: Prompt | None = None
        async with aclosing(self._synthesizer.synthesize(start, evidence(), deadline=deadline)) as events:
            async for event in events:
                if isinstance(event, Completion):
                    if prompt is not None:
                        return prompt, event
                    break
                prompt = event
        raise RuntimeError("the synthesizer ended without a prompt")


def _out_of_time(agent: str, stage: str, detail: str) -> Degradation:
    return Degradation(agent, stage, DegradationReason.BUDGET, detail)
