"""Answers a question: retrieval, synthesis and generation within one budget."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from loremesh_agents.coordinator.events import Event, Heartbeat, Question, Sources
from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.domain.answer import (
    Citation,
    Completion,
    Degradation,
    DegradationReason,
    FinishReason,
    TokenDelta,
    Usage,
)
from loremesh_agents.domain.citations import CitationScanner
from loremesh_agents.domain.coalescing import coalesced
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, InvalidRequest, NotImplementedYet, UnsupportedByModel
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.followup import EarlierTurn, standalone, turns
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.domain.plan import Plan, PlanStep, Route
from loremesh_agents.domain.read_ahead import ReadAhead
from loremesh_agents.ports.continuation import continued
from loremesh_agents.ports.language_model import GenerationRequest, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart, Generator, Prompt, Retriever, SynthesisStart, Synthesizer


class CoordinatorService:
    """Answers questions with the help of the other agents.

    Args:
        retriever: Finds the evidence.
        synthesizer: Makes the prompt.
        generator: Writes the answer.
        settings: Budgets and limits.
    """

    def __init__(
        self, retriever: Retriever, synthesizer: Synthesizer, generator: Generator, settings: CoordinatorSettings
    ) -> None:
        self._retriever = retriever
        self._synthesizer = synthesizer
        self._generator = generator
        self._settings = settings

    @property
    def settings(self) -> CoordinatorSettings:
        """Budgets and limits."""
        return self._settings

    def plan(self, question: Question, earlier: tuple[EarlierTurn, ...] | None, *, deadline: Deadline) -> Plan:
        """What `ask` would do.

        Args:
            question: The question.
            earlier: Turns before it; None to take them from the question's history.
            deadline: When the answer must be there.

        Raises:
            NotImplementedYet: The route needs an agent that this build does not have.
            InvalidRequest: The question holds nothing that can be searched.
        """
        route = question.route or Route.RETRIEVAL
        if route in (Route.SQL, Route.RETRIEVAL_AND_SQL):
            raise NotImplementedYet("loremesh.v1.SqlService")
        if route is Route.RETRIEVAL and not search_terms(question.retrieval.question):
            raise InvalidRequest.of("question", "it must hold at least one word or number")
        asked = standalone(question.retrieval.question, turns(question.history) if earlier is None else earlier)
        budget = deadline.remaining()
        spend = self._spendable(deadline).remaining()
        if route is Route.DIRECT:
            steps: tuple[PlanStep, ...] = (PlanStep("generator", "generate", spend),)
        else:
            retrieval = spend * self._settings.retrieval_share
            synthesis = (spend - retrieval) * self._settings.synthesis_share
            steps = (
                PlanStep("retriever", "retrieve", retrieval),
                PlanStep("synthesizer", "synthesize", synthesis),
                PlanStep("generator", "generate", spend - retrieval - synthesis),
            )
        return Plan(route, asked.question, steps, asked.context, budget)

    def ask(
        self, question: Question, *, deadline: Deadline, earlier: tuple[EarlierTurn, ...] | None = None
    ) -> AsyncGenerator[Event]:
        """Streams the answer; the last event is the completion. Closing the stream cancels every call downstream.

        Args:
            question: The question.
            deadline: When the answer must be there; what does not fit is left out and named.
            earlier: Turns before it; None to take them from the question's history.

        Raises:
            NotImplementedYet: The route needs an agent that this build does not have.
            LoremeshError: What a peer that the answer cannot do without raised.
        """
        plan = self.plan(question, earlier, deadline=deadline)
        return _Answer(self, question, plan, self._spendable(deadline)).events()

    def _spendable(self, deadline: Deadline) -> Deadline:
        return deadline.shrink(reserve=min(self._settings.reserve, deadline.remaining() / 10))

    def retrieve(self, question: Question, plan: Plan, deadline: Deadline) -> AsyncGenerator[Evidence | Completion]:
        """The evidence for a planned question."""
        request = replace(question.retrieval, question=plan.standalone_question, context=plan.context)
        return self._retriever.retrieve(request, deadline=deadline)

    def synthesize(
        self, question: Question, plan: Plan, evidence: AsyncGenerator[Evidence], deadline: Deadline
    ) -> AsyncGenerator[Prompt | Completion]:
        """The prompt for a planned question."""
        budget = question.prompt_token_budget or self._settings.prompt_token_budget
        start = SynthesisStart(plan.standalone_question, question.history, budget, question.options.model)
        return self._synthesizer.synthesize(start, evidence, deadline=deadline)

    def generate(
        self, question: Question, plan: Plan, prompt: Prompt, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
        """The answer to a prompt."""
        request = GenerationRequest(prompt.messages, plan.standalone_question, prompt.sources, question.options)
        return continued(
            request,
            lambda rest: self._generator.generate(rest, deadline=deadline),
            attempts=self._settings.generation_attempts,
            pause=self._settings.generation_pause,
            deadline=deadline,
        )


class _Answer:
    """One answer in the making."""

    def __init__(self, service: CoordinatorService, question: Question, plan: Plan, deadline: Deadline) -> None:
        self._service = service
        self._question = question
        self._plan = plan
        self._deadline = deadline
        self._heartbeat = service.settings.heartbeat_interval
        self._began = time.monotonic()
        self._timings: dict[str, float] = {}
        self._degradations: list[Degradation] = []
        self._retrieval: Completion | None = None
        self._generation: Completion | None = None
        self._start = GenerationStart("", "")
        self._prompt: Prompt | None = None
        self._evidence_count = 0

    async def events(self) -> AsyncGenerator[Event]:
        yield self._plan
        if self._plan.route is Route.DIRECT:
            asked = Message(Role.USER, self._plan.standalone_question)
            self._prompt = Prompt((*self._question.history, asked), ())
        else:
            async with aclosing(self._gather()) as gathered:
                async for event in gathered:
                    yield event
        if self._prompt is not None:
            if self._prompt.sources:
                yield Sources(self._prompt.sources)
            async with aclosing(self._write(self._prompt)) as written:
                async for event in written:
                    yield event
        yield self._completion()

    async def _gather(self) -> AsyncGenerator[Event]:
        """Retrieval, with the synthesizer reading along; sets the prompt where there is time for one."""
        settings = self._service.settings
        # Room for all that one retrieval may give: putting never waits for a synthesizer that has failed.
        found: asyncio.Queue[Evidence | None] = asyncio.Queue(self._question.retrieval.k + 1)
        prompting = asyncio.create_task(self._synthesis(found))
        try:
            retrieval = self._service.retrieve(
                self._question, self._plan, self._deadline.fraction(settings.retrieval_share)
            )
            try:
                async with ReadAhead(retrieval, self._heartbeat) as arriving:
                    while (items := await arriving.take()) is not None:
                        if not items:
                            yield Heartbeat()
                        # To the synthesizer first: it works while the caller reads.
                        for item in items:
                            found.put_nowait(item if isinstance(item, Evidence) else None)
                        for item in items:
                            if isinstance(item, Completion):
                                self._retrieval = item
                            else:
                                self._evidence_count += 1
                                yield item
            except BudgetExhausted:
                yield self._degrade("retriever", "retrieval", "Retrieval took more than its share of the budget.")
            if self._retrieval is not None:
                for degradation in self._retrieval.degradations:
                    self._degradations.append(degradation)
                    yield degradation
            else:
                found.put_nowait(None)
            self._lap("retrieve")
            while not (await asyncio.wait([prompting], timeout=self._heartbeat))[0]:
                yield Heartbeat()
            try:
                self._prompt, completion = await prompting
            except BudgetExhausted:
                yield self._degrade("synthesizer", "prompt", "No time was left to make the prompt.")
            else:
                for degradation in completion.degradations:
                    self._degradations.append(degradation)
                    yield degradation
            self._lap("synthesize")
        finally:
            prompting.cancel()
            await asyncio.wait([prompting])
            if not prompting.cancelled():
                prompting.exception()

    async def _synthesis(self, found: asyncio.Queue[Evidence | None]) -> tuple[Prompt, Completion]:
        async def evidence() -> AsyncGenerator[Evidence]:
            while (item := await found.get()) is not None:
                yield item

        prompt: Prompt | None = None
        synthesis = self._service.synthesize(self._question, self._plan, evidence(), self._deadline)
        async for event in synthesis:
            if isinstance(event, Completion):
                if prompt is not None:
                    return prompt, event
                break
            prompt = event
        raise RuntimeError("the synthesizer ended without a prompt")

    async def _write(self, prompt: Prompt) -> AsyncGenerator[TokenDelta | Citation | Degradation | Heartbeat]:
        together = self._service.settings.tokens_together
        scanner = CitationScanner({source.number: source.evidence_ids for source in prompt.sources})
        generation = self._service.generate(self._question, self._plan, prompt, self._deadline)
        try:
            async with ReadAhead(generation, self._heartbeat) as written:
                while (items := await written.take()) is not None:
                    if not items:
                        yield Heartbeat()
                    for item in coalesced(items, together):
                        if isinstance(item, TokenDelta):
                            if "first_token" not in self._timings:
                                self._timings["first_token"] = time.monotonic() - self._began
                            yield item
                            for citation in scanner.feed(item.text):
                                yield citation
                        elif isinstance(item, Completion):
                            self._generation = item
                        elif isinstance(item, GenerationStart):
                            self._start = item
                        else:
                            raise UnsupportedByModel(self._start.model, "an answer without tools: it called one")
        except BudgetExhausted:
            yield self._degrade("generator", "generation", "The budget ended before the answer did.")
        self._lap("generate")

    def _degrade(self, agent: str, stage: str, detail: str) -> Degradation:
        degradation = Degradation(agent, stage, DegradationReason.BUDGET, detail)
        self._degradations.append(degradation)
        return degradation

    def _lap(self, stage: str) -> None:
        spent = sum(seconds for name, seconds in self._timings.items() if name != "first_token")
        self._timings[stage] = time.monotonic() - self._began - spent

    def _completion(self) -> Completion:
        generation = self._generation
        usage = generation.usage if generation is not None else Usage()
        retrieval = self._retrieval
        return Completion(
            finish_reason=FinishReason.BUDGET if generation is None else generation.finish_reason,
            usage=replace(
                usage,
                candidate_count=retrieval.usage.candidate_count if retrieval is not None else 0,
                evidence_count=self._evidence_count,
            ),
            timings={**self._timings, "total": time.monotonic() - self._began},
            revisions=retrieval.revisions if retrieval is not None else (),
            degradations=(*self._degradations, *(generation.degradations if generation is not None else ())),
            resumptions=generation.resumptions if generation is not None else (),
            model=self._start.model,
            model_fingerprint=self._start.model_fingerprint,
        )
