"""Servers with OpenAI's interface that fail in every way that is known. They are doubles on a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from loremesh_agents.adapters.model.openai_http import OpenAiModel
from loremesh_agents.domain.answer import FinishReason, TokenDelta
from loremesh_agents.domain.conversation import Message, Role, Tool, ToolCall
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    ModelChanged,
    ModelNotFound,
    UnsupportedByModel,
)
from loremesh_agents.ports.language_model import (
    GenerationEnd,
    GenerationRequest,
    ResumePoint,
    SamplingOptions,
    ToolCallPiece,
)
from tests.documents import soon
from tests.doubles import tiny_language as language
from tests.doubles.openai_server import DONE, Behaviour, event, serving

QUESTION = "Where was Jane Doe born?"
ASKED = GenerationRequest((Message(Role.USER, QUESTION),), QUESTION)
PROMPT = language.prompt(QUESTION)
ANSWER = language.tokenizer().decode(language.answer_ids(PROMPT))
LOOK = Tool("look", "Looks.", {"type": "object"})


@pytest.fixture(params=[True, False], ids=["vllm", "plain"])
def vllm(request: pytest.FixtureRequest) -> bool:
    return request.param


@asynccontextmanager
async def opened(behaviour: Behaviour, *, idle_timeout: float = 10, **settings: object) -> AsyncIterator[OpenAiModel]:
    async with serving(behaviour) as base:
        model = OpenAiModel(base, context_tokens=language.CONTEXT, idle_timeout=idle_timeout, **settings)
        try:
            yield model
        finally:
            await model.close()


async def written(model: OpenAiModel, request: GenerationRequest = ASKED) -> tuple[str, GenerationEnd]:
    *deltas, end = [event async for event in model.generate(request, deadline=soon())]
    assert isinstance(end, GenerationEnd)
    return "".join(delta.text for delta in deltas), end


def said(text: str, reason: str | None = None) -> str:
    """An event of chat and of completions at once."""
    return event({"choices": [{"index": 0, "text": text, "delta": {"content": text}, "finish_reason": reason}]})


@pytest.mark.parametrize("cut", [1, 3, 1000])
async def test_where_the_bytes_are_cut_changes_nothing(vllm: bool, cut: int) -> None:
    async with opened(Behaviour(vllm=vllm, cut=cut)) as model:
        assert (await written(model))[0] == ANSWER


async def test_closing_stops_the_server(vllm: bool) -> None:
    never = asyncio.Event()
    behaviour = Behaviour(vllm=vllm, script=[said("One"), never])
    async with opened(behaviour) as model:
        async with aclosing(model.generate(ASKED, deadline=soon())) as events:
            await anext(events)
            assert behaviour.running == 1
        async with asyncio.timeout(10):
            await behaviour.idle.wait()


FAILURES = {
    "an error and then DONE": [said("One"), event({"error": {"message": "EngineDead", "code": 500}}), DONE],
    "an error as text": [event({"error": "dead"})],
    "DONE without a finish reason": [said("One"), DONE],
    "nothing more": [said("One")],
    "nothing at all": [],
    "a connection that breaks": [said("One"), None],
    "no JSON": [said("One"), "data: {nonsense\n\n"],
    "no object": ["data: [1]\n\n"],
    "an event without an end": ["data: " + "x" * 2_000_000],
    "an unknown finish reason": [said("One", "abort"), DONE],
    "bytes that are no text": [b"\xff\xfe\n\n\xff"],
}


@pytest.mark.parametrize("script", FAILURES.values(), ids=FAILURES)
async def test_a_stream_that_breaks_is_an_error(vllm: bool, script: list[object]) -> None:
    async with opened(Behaviour(vllm=vllm, script=script)) as model:
        with pytest.raises(BackendUnavailable):
            await written(model)


async def test_a_request_that_is_refused_in_the_middle_of_a_stream_is_no_failure_of_the_server(vllm: bool) -> None:
    refused = event({"error": {"message": "Grammar error", "type": "BadRequestError", "code": 400}})
    async with opened(Behaviour(vllm=vllm, script=[refused, DONE])) as model:
        with pytest.raises(UnsupportedByModel, match="Grammar error"):
            await written(model)


async def test_silence_is_a_server_that_is_gone(vllm: bool) -> None:
    behaviour = Behaviour(vllm=vllm, script=[said("One"), asyncio.Event()])
    async with opened(behaviour, idle_timeout=0.3) as model:
        events = model.generate(ASKED, deadline=soon())
        assert await anext(events) == TokenDelta("One", 0)
        with pytest.raises(BackendUnavailable):
            await anext(events)
        async with asyncio.timeout(10):
            await behaviour.idle.wait()


async def test_a_deadline_in_the_middle_is_said(vllm: bool) -> None:
    async with opened(Behaviour(vllm=vllm, script=[said("One"), asyncio.Event()])) as model:
        await model.models(deadline=soon())
        with pytest.raises(BudgetExhausted):
            async for _ in model.generate(ASKED, deadline=Deadline.after(0.3)):
                pass


async def test_an_endless_stream_is_ended(vllm: bool) -> None:
    more = event({"choices": [{"index": 0, "text": "a", "token_ids": [100], "delta": {"content": "a"}}]})
    behaviour = Behaviour(vllm=vllm, script=[more] * 10_000)
    async with opened(behaviour) as model:
        text, end = await written(model, replace(ASKED, options=SamplingOptions(max_tokens=50)))
    assert text == "a" * 50
    assert end.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (400, {"error": {"message": "the grammar has no start"}}, UnsupportedByModel),
        (422, {"detail": "no"}, UnsupportedByModel),
        (401, {"error": {"message": "wrong key"}}, BackendUnavailable),
        (429, {"error": {"message": "slowly"}}, BackendUnavailable),
        (500, {}, BackendUnavailable),
        (503, {}, BackendUnavailable),
    ],
)
async def test_a_refusal_is_translated(status: int, body: dict[str, object], error: type[Exception]) -> None:
    behaviour = Behaviour()
    async with opened(behaviour) as model:
        await model.models(deadline=soon())
        behaviour.statuses = [(status, body)]
        with pytest.raises(error) as caught:
            await written(model)
    if error is UnsupportedByModel:
        assert (
            str(next(iter(body.values())))[:4].strip("{'") in caught.value.message or "grammar" in caught.value.message
        )


async def test_a_model_that_went_away_is_not_found() -> None:
    behaviour = Behaviour()
    async with opened(behaviour) as model:
        await model.models(deadline=soon())
        behaviour.name = "another"
        with pytest.raises(ModelNotFound):
            await written(model)
        assert [entry.name for entry in await model.models(deadline=soon())] == ["another"]


async def test_a_server_that_came_back_with_another_model_is_noticed() -> None:
    behaviour = Behaviour(vllm=True)
    async with opened(behaviour) as model:
        fingerprint = (await model.models(deadline=soon()))[0].fingerprint
        behaviour.statuses = [(500, {})]
        with pytest.raises(BackendUnavailable):
            await written(model)
        behaviour.name = "another"
        with pytest.raises(ModelChanged):
            await written(model, replace(ASKED, resume=ResumePoint(fingerprint, (100,), "x")))


async def test_vllm_goes_on_after_any_token() -> None:
    async with opened(Behaviour(vllm=True)) as model:
        fingerprint = (await model.models(deadline=soon()))[0].fingerprint
        for cut in range(1, len(language.answer_ids(PROMPT)), 5):
            begun = [
                event
                async for event in model.generate(
                    replace(ASKED, options=SamplingOptions(max_tokens=cut)), deadline=soon()
                )
            ]
            ids = tuple(token for delta in begun[:-1] for token in delta.token_ids)
            text = "".join(delta.text for delta in begun[:-1])
            assert len(ids) == cut
            rest, end = await written(model, replace(ASKED, resume=ResumePoint(fingerprint, ids, text)))
            assert text + rest == ANSWER
            assert end.usage.completion_tokens == len(language.answer_ids(PROMPT))


async def test_tool_calls_come_in_pieces() -> None:
    def call(**piece: object) -> str:
        return event({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}, "finish_reason": None}]})

    script = [
        call(index=0, id="c1", type="function", function={"name": "look", "arguments": ""}),
        call(index=0, function={"arguments": '{"a":'}),
        call(index=0, function={"arguments": "1}"}),
        event({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}),
        DONE,
    ]
    behaviour = Behaviour(vllm=True, script=script)
    history = (
        *ASKED.messages,
        Message(Role.ASSISTANT, "", (ToolCall("c0", "look", "{}"),)),
        Message(Role.TOOL, "nothing", tool_call_id="c0"),
    )
    async with opened(behaviour) as model:
        request = replace(ASKED, messages=history, tools=(LOOK,))
        *pieces, end = [event async for event in model.generate(request, deadline=soon())]
    assert pieces == [
        ToolCallPiece(0, "c1", "look", ""),
        ToolCallPiece(0, "", "", '{"a":'),
        ToolCallPiece(0, "", "", "1}"),
    ]
    assert end.finish_reason is FinishReason.TOOL_CALLS
    path, body = behaviour.requests[-1]
    assert path == "/v1/chat/completions"
    assert body["tools"][0]["function"] == {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}
    assert body["messages"][1]["tool_calls"][0]["function"]["name"] == "look"
    assert body["messages"][2]["tool_call_id"] == "c0"


async def test_what_is_asked_reaches_the_server(vllm: bool) -> None:
    behaviour = Behaviour(vllm=vllm)
    options = SamplingOptions(
        temperature=0.5, top_p=0.25, seed=7, frequency_penalty=1.0, stop=("a", "b"), json_schema='{"type": "object"}'
    )
    async with opened(behaviour, api_key="k") as model:
        await written(model, replace(ASKED, options=options))
        with pytest.raises(UnsupportedByModel, match=f"seeds above {2**63 - 1}, as {2**63}"):
            await written(model, replace(ASKED, options=SamplingOptions(seed=2**63)))
    _, body = behaviour.requests[-1]
    assert {name: body[name] for name in ("temperature", "top_p", "seed", "frequency_penalty")} == {
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 7,
        "frequency_penalty": 1.0,
    }
    assert body["stop"] == ["a", "b"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert {headers["authorization"] for headers in behaviour.headers} == {"Bearer k"}


async def test_greedy_is_said_and_not_left_to_the_server(vllm: bool) -> None:
    behaviour = Behaviour(vllm=vllm)
    async with opened(behaviour) as model:
        await written(model)
    assert behaviour.requests[-1][1]["temperature"] == 0


async def test_what_does_not_fit_the_context_is_refused_with_both_numbers() -> None:
    behaviour = Behaviour(vllm=True)
    async with opened(behaviour) as model:
        with pytest.raises(UnsupportedByModel) as caught:
            await written(model, replace(ASKED, options=SamplingOptions(max_tokens=language.CONTEXT)))
    assert str(len(PROMPT)) in caught.value.message
    assert str(language.CONTEXT) in caught.value.message
    assert "/v1/completions" not in [path for path, _ in behaviour.requests]


async def test_a_model_is_named_where_the_server_has_several() -> None:
    async with opened(Behaviour(name="big"), name="big") as model:
        assert [found.name for found in await model.models(deadline=soon())] == ["big"]


async def test_nobody_at_the_address_is_a_server_that_does_not_answer() -> None:
    model = OpenAiModel("http://127.0.0.1:1/v1", context_tokens=1, idle_timeout=5)
    with pytest.raises(BackendUnavailable):
        await model.models(deadline=soon())
    await model.close()


async def test_a_server_that_lists_nothing_serves_nothing() -> None:
    behaviour = Behaviour(statuses=[(200, {"data": "what?"}), (200, json.loads('{"data": [{"id": 7}]}'))])
    async with opened(behaviour) as model:
        for _ in range(2):
            with pytest.raises(BackendUnavailable):
                await model.models(deadline=soon())
