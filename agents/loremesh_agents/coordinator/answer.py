"""One answer in the making: its evidence, its rounds of writing and tool calls, and its end."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from loremesh_agents.coordinator.citation_table import CitationTable
from loremesh_agents.coordinator.events import Event, Heartbeat, Question, Sources, ToolResult
from loremesh_agents.coordinator.gathering import Gathering
from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.coordinator.stopwatch import Stopwatch
from loremesh_agents.coordinator.tool_calls import TOOLS, CallsInTheMaking, WrittenCall
from loremesh_agents.coordinator.tool_runner import ToolRunner
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
from loremesh_agents.domain.conversation import Message, Role, Tool
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, UnsupportedByModel
from loremesh_agents.domain.message_pace import MessagePace
from loremesh_agents.domain.plan import Plan, Route
from loremesh_agents.domain.read_ahead import ReadAhead
from loremesh_agents.domain.revision import CollectionRevision
from loremesh_agents.ports.continuation import continued
from loremesh_agents.ports.language_model import GenerationRequest, SamplingOptions, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart, Generator, Retriever, SynthesisStart, Synthesizer

_PARAGRAPH = "\n\n"
_MOST_MESSAGE_BYTES = 500_000
"""A little less than a message of a request may have."""


@dataclass(frozen=True, slots=True)
class Agents:
    """Those who help."""

    retriever: Retriever
    synthesizer: Synthesizer
    generator: Generator


class Answer:
    """See `CoordinatorService.ask`.

    Args:
        agents: Those who help.
        settings: Shares of the budget, and limits.
        question: The question.
        plan: What is to be done for it.
        pace: How far apart the messages of a stream are to be.
        deadline: When the answer must be there, without the way to the caller.
    """

    def __init__(
        self,
        agents: Agents,
        settings: CoordinatorSettings,
        question: Question,
        plan: Plan,
        *,
        pace: MessagePace,
        deadline: Deadline,
    ) -> None:
        self._agents = agents
        self._settings = settings
        self._question = question
        self._plan = plan
        self._pace = pace
        self._deadline = deadline
        self._stopwatch = Stopwatch()
        self._table = CitationTable()
        self._scanner = CitationScanner(self._table.evidence_by_number)
        self._degradations: list[Degradation] = []
        self._retrievals: list[Completion] = []
        self._rounds: list[_Round] = []
        self._start = GenerationStart("", "")
        self._tokens = 0
        self._ends_in_text = False

    async def events(self) -> AsyncGenerator[Event]:
        """All events; the last one is the completion. Closing it cancels every call."""
        yield self._plan
        asked = self._question.retrieval.question
        messages: tuple[Message, ...] | None = (*self._question.history, Message(Role.USER, asked))
        if self._plan.route is not Route.DIRECT:
            gathering = self._gathering()
            async with aclosing(self._gather(gathering)) as gathered:
                async for event in gathered:
                    yield event
            messages = None
            if gathering.prompt is not None:
                messages = gathering.prompt.messages
                self._table.add(gathering.prompt.sources)
        if messages is not None:
            if self._table.sources:
                yield Sources(self._table.sources)
            async with aclosing(self._write(messages)) as written:
                async for event in written:
                    yield event
        yield self._completion()

    def _gathering(self) -> Gathering:
        agents, settings = self._agents, self._settings
        return Gathering(
            agents.retriever,
            agents.synthesizer,
            self._table,
            stopwatch=self._stopwatch,
            heartbeat=settings.heartbeat_interval,
        )

    async def _gather(self, gathering: Gathering) -> AsyncGenerator[Event]:
        question, plan, settings = self._question, self._plan, self._settings
        request = replace(question.retrieval, question=plan.standalone_question, context=plan.context)
        # The prompt has the question as it was asked, after the turns before it: what a follow-up is completed with for the search may come from a
        # document's title, which has no place outside a quotation.
        start = SynthesisStart(
            question.retrieval.question,
            question.history,
            question.prompt_token_budget or settings.prompt_token_budget,
            question.options.model,
        )
        share = self._deadline.fraction(settings.retrieval_share)
        async with aclosing(
            gathering.events(request, start, retrieval_deadline=share, deadline=self._deadline)
        ) as events:
            async for event in events:
                if not isinstance(event, Degradation) or self._is_news(event):
                    yield event
        if gathering.retrieval is not None:
            self._retrievals.append(gathering.retrieval)

    async def _write(self, messages: Sequence[Message]) -> AsyncGenerator[Event]:
        """Rounds of writing, with the calls that the model makes run between them."""
        settings, question = self._settings, self._question
        tool_deadline = self._deadline.fraction(settings.tool_share)
        start = SynthesisStart(
            question.retrieval.question, (), settings.tool_token_budget, model=question.options.model
        )
        runner = ToolRunner(
            self._gathering,
            question.retrieval,
            start,
            self._table,
            tool_deadline=tool_deadline,
            deadline=self._deadline,
        )
        conversation = list(messages)
        taken_ids = {call.tool_call_id for message in messages for call in message.tool_calls}
        left = question.tool_rounds
        options = question.options
        while True:
            written = _Round(CallsInTheMaking(settings.tool_calls), self._tokens)
            self._rounds.append(written)
            try:
                offered = TOOLS if left and not tool_deadline.expired else ()
                async with aclosing(self._generate(written, conversation, offered, options)) as generated:
                    async for event in generated:
                        yield event
            except BudgetExhausted:
                yield self._degrade("generator", "generation", "The budget ended before the answer did.")
                return
            finally:
                self._stopwatch.lap("generate")
            calls, one_too_many = written.calls.calls(taken_ids)
            rest = self._options_left()
            if not calls or rest is None:
                return
            options = rest
            shown = tuple(call.for_the_model() for call in (*calls, *([one_too_many] if one_too_many else [])))
            conversation.append(Message(Role.ASSISTANT, written.said, shown))
            sources = len(self._table.sources)
            async with aclosing(self._run(runner, calls, one_too_many)) as ran:
                async for event in ran:
                    if isinstance(event, ToolResult):
                        conversation.append(Message(Role.TOOL, event.text, tool_call_id=event.tool_call_id))
                    if not isinstance(event, Degradation) or self._is_news(event):
                        yield event
            left -= 1
            if tool_deadline.expired:
                yield self._degrade("coordinator", "tools", "The time for tools is spent: the model answers without.")
            elif not left:
                rounds = question.tool_rounds
                detail = f"The model may call tools {rounds} time{'s' if rounds > 1 else ''}: it answers without now."
                yield self._degrade("coordinator", "tools", detail, DegradationReason.LIMIT)
            if len(self._table.sources) > sources:
                yield Sources(self._table.sources)

    async def _run(
        self, runner: ToolRunner, calls: Sequence[WrittenCall], one_too_many: WrittenCall | None
    ) -> AsyncGenerator[Event]:
        """Runs the calls of one round."""
        most = self._settings.tool_calls
        refused = f"At most {most} calls are taken at once; this one and those after it were not run."
        runs = [(call, "") for call in calls] + ([(one_too_many, refused)] if one_too_many else [])
        ended = len(runner.retrievals)
        try:
            for call, refusal in runs:
                async with aclosing(runner.run(call, refusal=refusal)) as events:
                    async for event in events:
                        yield event
        finally:
            self._retrievals += runner.retrievals[ended:]

    async def _generate(
        self, written: "_Round", messages: Sequence[Message], tools: tuple[Tool, ...], options: SamplingOptions
    ) -> AsyncGenerator[Event]:
        """One round of writing."""
        settings = self._settings
        self._scanner.begin_anew()
        request = GenerationRequest(
            tuple(messages), self._plan.standalone_question, self._table.sources, options, tools=tools
        )
        generation = continued(
            request,
            lambda rest: self._agents.generator.generate(rest, deadline=self._deadline),
            attempts=settings.generation_attempts,
            pause=settings.generation_pause,
            deadline=self._deadline,
        )
        together = settings.tokens_together
        with self._pace.stream():
            async with ReadAhead(generation, settings.heartbeat_interval) as arriving:
                # The first token waits for no other.
                while (
                    items := await arriving.take(self._pace.pause if self._tokens and together > 1 else 0.0)
                ) is not None:
                    if not items:
                        yield Heartbeat()
                    for item in coalesced(items, together):
                        if isinstance(item, TokenDelta):
                            for event in self._say(written, item):
                                yield event
                        elif isinstance(item, Completion):
                            written.completion = item
                        elif isinstance(item, ToolCallPiece):
                            if not tools:
                                raise UnsupportedByModel(self._start.model, "an answer without tools: it called one")
                            written.calls.add(item)
                        else:
                            self._start = item

    def _say(self, written: "_Round", delta: TokenDelta) -> list[TokenDelta | Citation]:
        """The delta at its place in the answer, and the citations that are complete with it."""
        self._stopwatch.first_token()
        events: list[TokenDelta | Citation] = []
        if delta.text and not written.text and self._ends_in_text and not delta.text[0].isspace():
            # Between what was said before a call and after it.
            events.append(TokenDelta(_PARAGRAPH, self._tokens, 0))
            self._scanner.feed(_PARAGRAPH)
        written.text.append(delta.text)
        if delta.text:
            self._ends_in_text = not delta.text[-1].isspace()
        placed = delta if not written.first else replace(delta, sequence=delta.sequence + written.first)
        self._tokens = placed.sequence + placed.token_count
        events.append(placed)
        events += self._scanner.feed(delta.text)
        return events

    def _options_left(self) -> SamplingOptions | None:
        """What is wanted of the next round; None where the answer has all the tokens that it may have."""
        options = self._question.options
        if not options.max_tokens:
            return options
        left = options.max_tokens - self._tokens
        return replace(options, max_tokens=left) if left > 0 else None

    def _is_news(self, degradation: Degradation) -> bool:
        """Notes it; whether it was not said before, by another retrieval of this answer."""
        if degradation in self._degradations:
            return False
        self._degradations.append(degradation)
        return True

    def _degrade(
        self, agent: str, stage: str, detail: str, reason: DegradationReason = DegradationReason.BUDGET
    ) -> Degradation:
        degradation = Degradation(agent, stage, reason, detail)
        self._degradations.append(degradation)
        return degradation

    def _completion(self) -> Completion:
        ended = [(entry.completion, entry.first) for entry in self._rounds if entry.completion is not None]
        completions = [completion for completion, _ in ended]
        return Completion(
            finish_reason=self._finish_reason(),
            usage=Usage(
                prompt_tokens=sum(completion.usage.prompt_tokens for completion in completions),
                completion_tokens=sum(completion.usage.completion_tokens for completion in completions),
                candidate_count=sum(retrieval.usage.candidate_count for retrieval in self._retrievals),
                evidence_count=self._table.evidence_count,
            ),
            timings=self._stopwatch.timings(),
            revisions=self._revisions(),
            degradations=(
                *self._degradations,
                *(degradation for completion in completions for degradation in completion.degradations),
            ),
            resumptions=tuple(
                replace(resumption, at_token=resumption.at_token + first)
                for completion, first in ended
                for resumption in completion.resumptions
            ),
            model=self._start.model,
            model_fingerprint=self._start.model_fingerprint,
        )

    def _finish_reason(self) -> FinishReason:
        last = self._rounds[-1].completion if self._rounds else None
        if last is None:
            return FinishReason.BUDGET
        if last.finish_reason is not FinishReason.TOOL_CALLS:
            return last.finish_reason
        # It called tools and has no token left to say what they gave; or it says that it calls, and does not.
        return FinishReason.LENGTH if self._options_left() is None else FinishReason.STOP

    def _revisions(self) -> tuple[CollectionRevision, ...]:
        """The newest state that was read of each collection."""
        newest: dict[str, CollectionRevision] = {}
        for revision in (revision for retrieval in self._retrievals for revision in retrieval.revisions):
            known = newest.get(revision.collection)
            if known is None or known.collection_uid != revision.collection_uid or known.revision < revision.revision:
                newest[revision.collection] = revision
        return tuple(newest.values())


@dataclass(slots=True)
class _Round:
    """What the model wrote until it ended or called tools.

    Attributes:
        calls: Its calls.
        first: Tokens of the answer before it.
        text: Its text.
        completion: How it ended; None where the budget ended before.
    """

    calls: CallsInTheMaking
    first: int
    text: list[str] = field(default_factory=list[str])
    completion: Completion | None = None

    @property
    def said(self) -> str:
        """Its text as a message takes it."""
        return "".join(self.text).encode()[:_MOST_MESSAGE_BYTES].decode(errors="ignore")
