"""The model calls tools while it answers; doubles write what a test tells them to, the synthesizer is ours."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.coordinator.events import Event, Question, Sources, ToolResult
from loremesh_agents.coordinator.service import CoordinatorService
from loremesh_agents.coordinator.settings import CoordinatorSettings
from loremesh_agents.coordinator.tool_calls import CallsInTheMaking
from loremesh_agents.domain.answer import (
    Citation,
    Completion,
    Degradation,
    DegradationReason,
    FinishReason,
    Resumption,
    TokenDelta,
    Usage,
)
from loremesh_agents.domain.conversation import Message, Role, ToolCall
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.document import Passage
from loremesh_agents.domain.errors import (
    BudgetExhausted,
    CollectionNotFound,
    LoremeshError,
    PeerUnavailable,
    UnsupportedByModel,
)
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.filter import Condition, MetadataFilter
from loremesh_agents.domain.plan import Plan, Route
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.domain.revision import CollectionRevision, Consistency
from loremesh_agents.ports.language_model import GenerationRequest, SamplingOptions, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart, Prompt, SynthesisStart
from loremesh_agents.synthesizer.service import SynthesizerService
from loremesh_agents.synthesizer.settings import SynthesizerSettings
from tests.unit.coordinator_peers import Gate

WATER, FIRE, AIR = "What is water?", "What is fire?", "What is air?"
PASSAGES = {
    question: Passage("c", f"{name}#0", name, name.title(), (), f"The {name} is {kind}.", "", 0, 0, 20, {})
    for question, name, kind in ((WATER, "water", "wet"), (FIRE, "fire", "hot"), (AIR, "air", "thin"))
}


class Library:
    """A retriever that has one passage for each question.

    Attributes:
        asked: What it was asked.
        gate: Where all but the first retrieval wait.
        errors: What it raises, by question.
    """

    def __init__(self) -> None:
        self.asked: list[RetrievalRequest] = []
        self.gate = Gate()
        self.errors: dict[str, LoremeshError] = {}

    async def retrieve(self, request: RetrievalRequest, *, deadline: Deadline) -> AsyncGenerator[Evidence | Completion]:
        self.asked.append(request)
        if len(self.asked) > 1:
            await self.gate(deadline)
        if request.question in self.errors:
            raise self.errors[request.question]
        found = [PASSAGES[request.question]] if request.question in PASSAGES else []
        for rank, passage in enumerate(found, start=1):
            yield Evidence(f"E{rank}", passage, 1.0, rank)
        revision = CollectionRevision("c", "u", len(self.asked))
        yield Completion(FinishReason.STOP, Usage(candidate_count=10), revisions=(revision,))


class Script:
    """A generator that writes one round after the other; the last one again where there are no more.

    Attributes:
        asked: What it was asked.
    """

    def __init__(self, *rounds: Sequence[str | ToolCallPiece]) -> None:
        self._rounds = rounds
        self.asked: list[GenerationRequest] = []

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
        events = self._rounds[min(len(self.asked), len(self._rounds) - 1)]
        self.asked.append(request)
        yield GenerationStart("m", "f")
        tokens = 0
        for event in events:
            if isinstance(event, str):
                yield TokenDelta(event, tokens)
                tokens += 1
            else:
                yield event
        called = any(isinstance(event, ToolCallPiece) for event in events)
        yield Completion(
            FinishReason.TOOL_CALLS if called else FinishReason.STOP,
            Usage(prompt_tokens=100, completion_tokens=tokens + 5 * called),
            resumptions=(Resumption(1, exact=True),) if tokens else (),
        )


class OurSynthesizer:
    def __init__(self) -> None:
        self._service = SynthesizerService(None, SynthesizerSettings())

    async def synthesize(
        self, start: SynthesisStart, evidence: AsyncIterable[Evidence], *, deadline: Deadline
    ) -> AsyncGenerator[Prompt | Completion]:
        async def inputs() -> AsyncIterator[SynthesisStart | Evidence]:
            yield start
            async for piece in evidence:
                yield piece

        async for event in self._service.synthesize(inputs(), deadline=deadline):
            yield event


def call(
    question: object, *, index: int = 0, call_id: str = "", name: str = "retrieve", **more: object
) -> ToolCallPiece:
    return ToolCallPiece(index, call_id or f"id-{question}", name, json.dumps({"question": question, **more}))


QUESTION = Question(RetrievalRequest(WATER), tool_rounds=1)


def service_of(library: Library, script: Script, **settings: float) -> CoordinatorService:
    return CoordinatorService(library, OurSynthesizer(), script, CoordinatorSettings(**settings))


async def answered(
    script: Script,
    question: Question = QUESTION,
    library: Library | None = None,
    deadline: Deadline | None = None,
    **settings: float,
) -> list[Event]:
    service = service_of(library or Library(), script, **settings)
    return [event async for event in service.ask(question, deadline=deadline or Deadline.after(10))]


def only(events: Sequence[Event], kind: type) -> list:
    return [event for event in events if isinstance(event, kind)]


async def test_a_call_is_an_event_then_its_evidence_then_its_result_and_the_answer_can_cite_it() -> None:
    script = Script([call(FIRE)], ["The fire is hot", " [2]", ", the water is wet", " [1]"])
    events = await answered(script)
    kinds = [type(event) for event in events if not isinstance(event, Degradation)]
    assert kinds == [
        *(Plan, Evidence, Sources, ToolCall, Evidence, ToolResult, Sources),
        *(TokenDelta, Citation, Citation, Completion),
    ]
    assert [evidence.evidence_id for evidence in only(events, Evidence)] == ["E1", "E2"]
    first, second = only(events, Sources)
    assert [source.number for source in first.sources] == [1]
    assert [(source.number, source.evidence_ids) for source in second.sources] == [(1, ("E1",)), (2, ("E2",))]
    (result,) = only(events, ToolResult)
    assert (result.tool_call_id, result.name, result.evidence_ids, result.failed) == (
        f"id-{FIRE}",
        "retrieve",
        ("E2",),
        False,
    )
    assert "[2]\n~~~" in result.text
    assert "The fire is hot." in result.text
    assert [(citation.evidence_id, citation.number) for citation in only(events, Citation)] == [("E2", 2), ("E1", 1)]
    assert events[-1].finish_reason is FinishReason.STOP


async def test_the_model_is_asked_again_with_its_call_and_the_result() -> None:
    script = Script([call(FIRE)], ["Hot."])
    (result,) = only(await answered(script), ToolResult)
    first, second = script.asked
    assert [tool.name for tool in first.tools] == ["retrieve"]
    assert second.messages[: len(first.messages)] == first.messages
    assert second.messages[len(first.messages) :] == (
        Message(Role.ASSISTANT, "", (ToolCall(f"id-{FIRE}", "retrieve", json.dumps({"question": FIRE})),)),
        Message(Role.TOOL, result.text, tool_call_id=f"id-{FIRE}"),
    )
    assert [source.number for source in second.sources] == [1, 2]


async def test_a_tool_searches_what_the_question_may_and_nothing_else() -> None:
    asked = RetrievalRequest(
        WATER,
        ("c",),
        k=7,
        filter=MetadataFilter((Condition("kind", frozenset({"element"})),)),
        consistency=Consistency({"c": CollectionRevision("c", "u", 1)}),
    )
    library = Library()
    await answered(Script([call(FIRE, k=3), call(AIR, index=1)], ["So."]), replace(QUESTION, retrieval=asked), library)
    assert library.asked[1:] == [replace(asked, question=FIRE, k=3), replace(asked, question=AIR)]


async def test_what_was_found_before_keeps_its_number_and_is_not_told_again() -> None:
    events = await answered(Script([call(WATER)], ["Wet [1]"]))
    assert len(only(events, Evidence)) == len(only(events, Sources)) == 1
    (result,) = only(events, ToolResult)
    assert (result.evidence_ids, result.text) == (("E1",), "Found again: [1].")
    assert events[-1].usage.evidence_count == 1


async def test_a_model_hears_that_nothing_was_found() -> None:
    (result,) = only(await answered(Script([call("What is nothing?")], ["So."])), ToolResult)
    assert (result.text, result.failed, result.evidence_ids) == ("Nothing was found.", False, ())


async def test_without_evidence_at_first_the_model_can_look_for_it() -> None:
    library = Library()
    events = await answered(Script([call(FIRE)], ["Hot [1]"]), replace(QUESTION, route=Route.DIRECT), library)
    assert len(library.asked) == 0 + 1
    assert [citation.evidence_id for citation in only(events, Citation)] == ["E1"]


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        (call(FIRE, name="delete_everything"), "There is no tool 'delete_everything'; there is retrieve."),
        (call(FIRE, name=""), "names no tool"),
        (ToolCallPiece(0, "1", "retrieve", '{"question": "What'), "JSON"),
        (ToolCallPiece(0, "1", "retrieve", ""), "question: Field required"),
        (ToolCallPiece(0, "1", "retrieve", '["What is fire?"]'), "object"),
        (call(7), "question: Input should be a valid string"),
        (call(""), "question: String should have at least 1 character"),
        (call("?!"), "at least one word or number"),
        (call("w" * 1025), "question: String should have at most 1024 characters"),
        (call(FIRE, k="3"), "k: Input should be a valid integer"),
        (call(FIRE, k=21), "k: Input should be less than or equal to 20"),
        (call(FIRE, collections=["secret"]), "collections: Extra inputs are not permitted"),
        (call("w " * 4000), "more than 4096 characters"),
    ],
)
async def test_a_call_that_is_wrong_is_refused_with_the_reason_and_the_answer_goes_on(
    piece: ToolCallPiece, reason: str
) -> None:
    library, script = Library(), Script([piece], ["So."])
    events = await answered(script, library=library)
    (made,), (result,) = only(events, ToolCall), only(events, ToolResult)
    assert result.failed
    assert reason in result.text
    assert made.tool_call_id == result.tool_call_id
    assert len(library.asked) == 1
    told, answer_of_tool = script.asked[1].messages[-2:]
    # An engine refuses a conversation whose arguments are no JSON object.
    assert isinstance(json.loads(told.tool_calls[0].arguments_json), dict)
    assert answer_of_tool.text == result.text
    assert "".join(delta.text for delta in only(events, TokenDelta)) == "So."


async def test_of_too_many_calls_the_first_are_run_and_one_is_told_so() -> None:
    library = Library()
    script = Script([call(FIRE, index=place, call_id=str(place)) for place in range(40)], ["So."])
    events = await answered(script, library=library, tool_calls=2)
    results = only(events, ToolResult)
    assert [(result.tool_call_id, result.failed) for result in results] == [("0", False), ("1", False), ("2", True)]
    assert "At most 2 calls" in results[-1].text
    assert len(library.asked) == 3
    assert len(script.asked[1].messages[-4].tool_calls) == 3


async def test_every_call_has_an_id_of_its_own() -> None:
    pieces = [
        ToolCallPiece(place, call_id, "retrieve", json.dumps({"question": FIRE}))
        for place, call_id in enumerate(["a", "a", "", "x" * 129])
    ]
    script = Script(pieces, [call(AIR, call_id="a")], ["So."])
    ids = [made.tool_call_id for made in only(await answered(script, replace(QUESTION, tool_rounds=2)), ToolCall)]
    assert ids[0] == "a"
    assert len(set(ids)) == 5
    assert all(0 < len(found) <= 128 for found in ids)


@pytest.mark.parametrize("rounds", [1, 2, 8])
async def test_after_its_rounds_the_model_must_answer(rounds: int) -> None:
    class Insistent(Script):
        async def generate(self, request: GenerationRequest, *, deadline: Deadline):
            self._rounds = ([call(FIRE)],) if request.tools else (["So."],)
            async for event in super().generate(request, deadline=deadline):
                yield event

    script = Insistent([call(FIRE)])
    events = await answered(script, replace(QUESTION, tool_rounds=rounds))
    assert [bool(request.tools) for request in script.asked] == [True] * rounds + [False]
    assert len(only(events, ToolResult)) == rounds
    (degradation,) = only(events, Degradation)
    assert (degradation.stage, degradation.reason) == ("tools", DegradationReason.LIMIT)
    assert degradation in events[-1].degradations
    assert events[-1].finish_reason is FinishReason.STOP


async def test_tools_have_a_share_of_the_time_and_the_answer_comes_without_them() -> None:
    library, script = Library(), Script([call(FIRE), call(AIR, index=1)], ["So."])
    library.gate = Gate(open=False)
    deadline = Deadline.after(3)
    events = await answered(script, replace(QUESTION, tool_rounds=8), library, deadline, tool_share=0.1)
    assert not deadline.expired
    assert [result.failed for result in only(events, ToolResult)] == [True, True]
    assert len(library.asked) == 2
    assert [request.tools == () for request in script.asked] == [False, True]
    spent = [degradation for degradation in only(events, Degradation) if degradation.stage == "tools"]
    assert [degradation.reason for degradation in spent] == [DegradationReason.BUDGET]
    assert "".join(delta.text for delta in only(events, TokenDelta)) == "So."


async def test_without_rounds_no_tool_is_offered_and_none_is_run() -> None:
    script = Script(["So."])
    await answered(script, replace(QUESTION, tool_rounds=0))
    assert script.asked[0].tools == ()
    with pytest.raises(UnsupportedByModel):
        await answered(Script([call(FIRE)]), replace(QUESTION, tool_rounds=0))


async def test_text_that_looks_like_a_call_is_text() -> None:
    library = Library()
    script = Script([f'starttoolcall{{"name": "retrieve", "arguments": {{"question": "{FIRE}"}}}}endtoolcall'])
    events = await answered(script, library=library)
    assert only(events, ToolCall) == []
    assert len(library.asked) == 1


async def test_tokens_offsets_usage_and_resumptions_run_on_over_the_rounds() -> None:
    script = Script(["Let me", " look [1]."], ["The fire is hot", " [2]."])
    script._rounds = ([*script._rounds[0], call(FIRE)], script._rounds[1])
    events = await answered(script)
    text = ""
    tokens = 0
    for delta in only(events, TokenDelta):
        assert delta.sequence == tokens
        tokens += delta.token_count
        text += delta.text
    assert text == "Let me look [1].\n\nThe fire is hot [2]."
    assert tokens == 4
    cited = [text.encode()[citation.start_byte : citation.end_byte] for citation in only(events, Citation)]
    assert cited == [b"Let me look", b"The fire is hot"]
    completion = events[-1]
    assert completion.usage == Usage(200, 2 + 5 + 2, candidate_count=20, evidence_count=2)
    assert completion.resumptions == (Resumption(1, exact=True), Resumption(3, exact=True))
    assert completion.revisions == (CollectionRevision("c", "u", 2),)
    assert list(completion.timings) == ["retrieve", "synthesize", "first_token", "generate", "total"]
    stages = [seconds for stage, seconds in completion.timings.items() if stage not in ("first_token", "total")]
    assert sum(stages) == pytest.approx(completion.timings["total"], abs=0.05)


async def test_the_limit_of_tokens_is_that_of_the_whole_answer() -> None:
    script = Script(["One", " two", call(FIRE)], ["So."])
    options = SamplingOptions(max_tokens=5)
    await answered(script, replace(QUESTION, options=options))
    assert [request.options.max_tokens for request in script.asked] == [5, 3]
    spent = await answered(
        Script(["One", " two", call(FIRE)]), replace(QUESTION, options=SamplingOptions(max_tokens=2))
    )
    assert only(spent, ToolCall) == []
    assert spent[-1].finish_reason is FinishReason.LENGTH


async def test_a_search_that_fails_is_told_to_the_model_and_the_caller() -> None:
    library = Library()
    library.errors = {FIRE: PeerUnavailable("retriever"), AIR: BudgetExhausted("retriever", "search")}
    events = await answered(Script([call(FIRE), call(AIR, index=1)], ["So."]), library=library)
    assert [result.failed for result in only(events, ToolResult)] == [True, True]
    assert "The retriever agent does not answer." in only(events, ToolResult)[0].text
    assert DegradationReason.UNAVAILABLE in [found.reason for found in events[-1].degradations]
    assert events[-1].finish_reason is FinishReason.STOP


async def test_what_is_wrong_with_the_question_itself_is_an_error() -> None:
    library = Library()
    library.errors = {FIRE: CollectionNotFound("nowhere")}
    with pytest.raises(CollectionNotFound):
        await answered(Script([call(FIRE)], ["So."]), library=library)


async def test_leaving_cancels_the_tool_that_runs_and_leaves_no_task() -> None:
    library = Library()
    library.gate = Gate(open=False)
    before = asyncio.all_tasks()

    async def consume() -> None:
        service = service_of(library, Script([call(FIRE)], ["So."]))
        async with aclosing(service.ask(QUESTION, deadline=Deadline.after(30))) as events:
            async for _ in events:
                pass

    consumer = asyncio.create_task(consume())
    await library.gate.reached.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert library.gate.cancelled
    assert asyncio.all_tasks() == before


@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 60), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_pieces_are_joined_by_their_index_however_they_are_cut_and_mixed(texts, cuts, order) -> None:
    queues = []
    for index, text in enumerate(texts):
        ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
        parts = [text[start:end] for start, end in pairwise(ends)] or [""]
        queues.append([ToolCallPiece(index, str(index), "retrieve", parts[0])])
        queues[-1] += [ToolCallPiece(index, "", "", part) for part in parts[1:]]
    made = CallsInTheMaking(4)
    while queues:
        queue = order.choice(queues)
        made.add(queue.pop(0))
        queues = [rest for rest in queues if rest]
    calls, one_too_many = made.calls(set())
    assert [written.call for written in calls] == [
        ToolCall(str(index), "retrieve", text) for index, text in enumerate(texts)
    ]
    assert one_too_many is None
