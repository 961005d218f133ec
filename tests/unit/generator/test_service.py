"""What the generator makes of an engine's events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

import pytest

from loremesh_agents.domain.answer import Completion, FinishReason, Resumption, TokenDelta, Usage
from loremesh_agents.domain.conversation import Message, Role, Tool
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    InvalidRequest,
    ModelChanged,
    ModelNotFound,
    UnsupportedByModel,
)
from loremesh_agents.domain.message_pace import MessagePace
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.generator.admission import TokenAdmission
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.ports.language_model import (
    Capability,
    GenerationEnd,
    GenerationRequest,
    Model,
    ResumePoint,
    SamplingOptions,
    ToolCallPiece,
)
from loremesh_agents.ports.peers import GenerationStart
from tests.documents import soon

ABLE = Model("able", 1000, "", "print of able", frozenset({Capability.TOOLS, Capability.RESUME}))
PLAIN = Model("plain", 1000, "", "print of plain", frozenset())
ASKED = GenerationRequest((Message(Role.USER, "Well?"),), "Well?")
END = GenerationEnd(FinishReason.STOP, Usage(3, 5), (Resumption(2, exact=True),))
CALL = ToolCallPiece(0, "t1", "look", "{}")

Event = TokenDelta | ToolCallPiece | GenerationEnd


def tokens(count: int, first: int = 0) -> list[TokenDelta]:
    return [TokenDelta(f"{number} ", number) for number in range(first, first + count)]


class Engine:
    """Gives the events that a test tells it to; waits at a gate, or fails, where one is put among them."""

    def __init__(self, *events: Event | asyncio.Event | Exception) -> None:
        self.events = events
        self.requests: list[GenerationRequest] = []
        self.deadlines: list[Deadline] = []
        self.closed = False

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        self.deadlines.append(deadline)
        return (ABLE, PLAIN)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        self.deadlines.append(deadline)
        return tuple(len(text) for text in texts)

    async def generate(self, request: GenerationRequest, *, deadline: Deadline) -> AsyncGenerator[Event]:
        self.requests.append(request)
        self.deadlines.append(deadline)
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, asyncio.Event):
                    await event.wait()
                else:
                    yield event
        finally:
            self.closed = True

    async def close(self) -> None:
        return


def service(engine: Engine, **settings: float) -> GeneratorService:
    made = GeneratorSettings.model_validate(settings)
    return GeneratorService(engine, made, TokenAdmission(made))


async def all_of(
    engine: Engine, request: GenerationRequest = ASKED, **settings: float
) -> list[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
    return [
        event async for event in service(engine, **settings).generate(request, principal=ANONYMOUS, deadline=soon())
    ]


def asked(**options: object) -> GenerationRequest:
    return replace(ASKED, options=SamplingOptions(**options))


async def test_who_writes_comes_first_and_a_completion_last() -> None:
    start, delta, end = await all_of(Engine(TokenDelta("Yes.", 0), END))
    assert start == GenerationStart("able", "print of able")
    assert delta == TokenDelta("Yes.", 0)
    assert isinstance(end, Completion)
    assert (end.model, end.model_fingerprint) == ("able", "print of able")
    assert (end.finish_reason, end.usage, end.resumptions) == (END.finish_reason, END.usage, END.resumptions)
    assert 0 <= end.timings["first_token"] <= end.timings["total"]


async def test_without_a_token_there_is_no_time_of_the_first() -> None:
    *_, end = await all_of(Engine(END))
    assert isinstance(end, Completion)
    assert list(end.timings) == ["total"]


@pytest.mark.parametrize(("together", "sizes"), [(1, [1] * 10), (4, [4, 4, 2]), (32, [10])])
async def test_tokens_that_are_ready_together_travel_together(together: int, sizes: list[int]) -> None:
    _, *deltas, _ = await all_of(Engine(*tokens(10), END), tokens_together=together)
    assert [delta.token_count for delta in deltas if isinstance(delta, TokenDelta)] == sizes
    assert "".join(delta.text for delta in deltas if isinstance(delta, TokenDelta)) == "0 1 2 3 4 5 6 7 8 9 "


async def test_a_token_that_is_ready_does_not_wait_for_the_next() -> None:
    gate, began = asyncio.Event(), time.monotonic()
    events = service(Engine(*tokens(2), gate, *tokens(2, first=2), END)).generate(
        ASKED, principal=ANONYMOUS, deadline=soon()
    )
    async with asyncio.timeout(5):
        assert isinstance(await anext(events), GenerationStart)
        assert await anext(events) == TokenDelta("0 1 ", 0, 2)
        waited = time.monotonic() - began
        await asyncio.sleep(0.01)  # time that does not count as waiting for the first
        gate.set()
        assert await anext(events) == TokenDelta("2 3 ", 2, 2)
        end = await anext(events)
    assert isinstance(end, Completion)
    assert end.timings["first_token"] <= waited


class Slow(MessagePace):
    """As in a process that is so busy that tokens are worth a minute's wait."""

    pause = 60.0


@pytest.mark.parametrize(("together", "sizes"), [(32, [1, 9]), (1, [1] * 10)])
async def test_in_a_busy_process_later_tokens_wait_for_one_another_and_the_first_for_none(
    together: int, sizes: list[int]
) -> None:
    gates = [asyncio.Event() for _ in range(10)]
    engine = Engine(*(event for gate, token in zip(gates, tokens(10), strict=True) for event in (gate, token)), END)
    settings = GeneratorSettings(tokens_together=together)
    slow = GeneratorService(engine, settings, TokenAdmission(settings), pace=Slow())
    events = slow.generate(ASKED, principal=ANONYMOUS, deadline=soon())
    async with asyncio.timeout(5):
        assert isinstance(await anext(events), GenerationStart)
        gates[0].set()
        assert await anext(events) == TokenDelta("0 ", 0)
        following = asyncio.create_task(anext(events))
        for gate in gates[1:]:
            gate.set()
            for _ in range(5):
                await asyncio.sleep(0)
        found = [await following, *[event async for event in events]]
    assert [1, *(event.token_count for event in found if isinstance(event, TokenDelta))] == sizes
    assert isinstance(found[-1], Completion), "the end waits for nothing"


async def test_a_tool_call_keeps_its_place() -> None:
    end = replace(END, finish_reason=FinishReason.TOOL_CALLS)
    _, *events, completion = await all_of(Engine(*tokens(2), CALL, *tokens(1, first=2), end))
    assert events == [TokenDelta("0 1 ", 0, 2), CALL, TokenDelta("2 ", 2)]
    assert isinstance(completion, Completion)
    assert completion.finish_reason is FinishReason.TOOL_CALLS


async def test_the_deadline_reaches_the_engine() -> None:
    engine, deadline = Engine(END), soon()
    generator = service(engine)
    assert len([event async for event in generator.generate(ASKED, principal=ANONYMOUS, deadline=deadline)]) == 2
    await generator.models(deadline=deadline)
    assert await generator.count_tokens("plain", ["tea", ""], deadline=deadline) == (3, 0)
    assert set(engine.deadlines) == {deadline}


async def test_an_answer_has_a_limit_even_where_nobody_asks_for_one() -> None:
    engine = Engine(END)
    await all_of(engine, default_max_tokens=7)
    await all_of(engine, asked(max_tokens=9, temperature=0.5), default_max_tokens=7)
    assert [(request.options, request.default_max_tokens) for request in engine.requests] == [
        (SamplingOptions(), 7),
        (SamplingOptions(max_tokens=9, temperature=0.5), 7),
    ]


async def test_a_model_is_chosen_by_name() -> None:
    start, *_, end = await all_of(Engine(END), asked(model="plain"))
    assert start == GenerationStart("plain", "print of plain")
    assert isinstance(end, Completion)
    assert end.model == "plain"


TOOLS = (Tool("look", "Looks.", {}),)


@pytest.mark.parametrize(
    ("request_", "refusal", "says"),
    [
        (replace(ASKED, messages=(Message(Role.ASSISTANT, "Hm."),)), InvalidRequest, "messages"),
        (replace(ASKED, messages=(*ASKED.messages, Message(Role.SYSTEM, "Hm."))), InvalidRequest, "messages"),
        (asked(model="nobody"), ModelNotFound, "able, plain"),
        (replace(asked(model="plain"), tools=TOOLS), UnsupportedByModel, "tools"),
        (replace(asked(model="plain"), resume=ResumePoint("print of plain", (), "")), UnsupportedByModel, "resuming"),
        (replace(ASKED, resume=ResumePoint("print of plain", (), "")), ModelChanged, "print of able"),
    ],
    ids=["the assistant's word", "the system's word", "model", "tools", "resume", "other model"],
)
async def test_what_cannot_be_done_is_refused_before_the_engine_is_asked(
    request_: GenerationRequest, refusal: type[Exception], says: str
) -> None:
    engine = Engine(END)
    with pytest.raises(refusal, match=says):
        await all_of(engine, request_)
    assert engine.requests == []


@pytest.mark.parametrize(
    "request_",
    [
        replace(ASKED, messages=(*ASKED.messages, Message(Role.TOOL, "Found.", tool_call_id="t1"))),
        replace(ASKED, tools=TOOLS),
        replace(ASKED, resume=ResumePoint("print of able", (1, 2), "Ye")),
    ],
    ids=["a tool's result", "tools", "resume"],
)
async def test_what_the_model_can_do_reaches_it(request_: GenerationRequest) -> None:
    engine = Engine(END)
    await all_of(engine, request_, default_max_tokens=7)
    assert engine.requests == [replace(request_, default_max_tokens=7)]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [(BackendUnavailable("engine"), BackendUnavailable), (None, RuntimeError)],
    ids=["the engine goes down", "the engine forgets its end"],
)
async def test_an_engine_that_fails_has_its_tokens_delivered_first(
    failure: Exception | None, expected: type[Exception]
) -> None:
    engine = Engine(*tokens(3), *([failure] if failure else []))
    events = service(engine).generate(ASKED, principal=ANONYMOUS, deadline=soon())
    assert await anext(events) == GenerationStart("able", "print of able")
    assert await anext(events) == TokenDelta("0 1 2 ", 0, 3)
    with pytest.raises(expected):
        await anext(events)


@pytest.mark.parametrize("taken", [1, 2], ids=["before the first token", "after it"])
async def test_leaving_stops_the_engine_and_leaves_no_task(taken: int) -> None:
    before = asyncio.all_tasks()
    engine = Engine(*tokens(1), asyncio.Event(), END)
    events = service(engine).generate(ASKED, principal=ANONYMOUS, deadline=soon())
    for _ in range(taken):
        await anext(events)
    await events.aclose()
    assert engine.closed or not engine.requests
    assert asyncio.all_tasks() == before
