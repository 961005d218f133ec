"""What every engine does. Another one is added to ENGINES."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest

from loremesh_agents.adapters.model.extractive import ExtractiveModel
from loremesh_agents.adapters.model.openai_http import OpenAiModel
from loremesh_agents.adapters.model.token_model import TokenModel
from loremesh_agents.adapters.model.trtllm_grpc import TrtllmGrpcEngine
from loremesh_agents.adapters.model.vllm_grpc import VllmGrpcEngine
from loremesh_agents.domain.answer import FinishReason, Resumption, Source, TokenDelta
from loremesh_agents.domain.conversation import Message, Role, Tool
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, ModelChanged, ModelNotFound, UnsupportedByModel
from loremesh_agents.ports.language_model import (
    Capability,
    GenerationEnd,
    GenerationRequest,
    LanguageModel,
    Model,
    ResumePoint,
    SamplingOptions,
)
from tests.documents import soon
from tests.doubles import grpc_engines, openai_server
from tests.engines.servers.vllm import vllm_server

Opened = AbstractAsyncContextManager[LanguageModel]


@asynccontextmanager
async def _extractive() -> AsyncIterator[LanguageModel]:
    yield ExtractiveModel()


@asynccontextmanager
async def _token_engine(kind: str) -> AsyncIterator[LanguageModel]:
    async with grpc_engines.serving(kind, grpc_engines.Behaviour()) as target:
        engine = {"vllm": VllmGrpcEngine, "trtllm": TrtllmGrpcEngine}[kind]
        yield TokenModel(engine(target, idle_timeout=10))


@asynccontextmanager
async def _openai(*, vllm: bool) -> AsyncIterator[LanguageModel]:
    async with openai_server.serving(openai_server.Behaviour(vllm=vllm)) as base:
        yield OpenAiModel(base, context_tokens=131_072, idle_timeout=10)


@asynccontextmanager
async def _real_vllm(kind: str) -> AsyncIterator[LanguageModel]:
    server = vllm_server(kind)
    if kind == "grpc":
        yield TokenModel(VllmGrpcEngine(server.target, idle_timeout=30))
    else:
        yield OpenAiModel(f"http://{server.target}/v1", context_tokens=1, idle_timeout=30)


ENGINES: Mapping[str, Callable[[], Opened]] = {
    "extractive": _extractive,
    "double of vllm over grpc": partial(_token_engine, "vllm"),
    "double of trtllm over grpc": partial(_token_engine, "trtllm"),
    "double of vllm over http": partial(_openai, vllm=True),
    "double of openai over http": partial(_openai, vllm=False),
}
REAL: Mapping[str, Callable[[], Opened]] = {
    "vllm over grpc": partial(_real_vllm, "grpc"),
    "vllm over http": partial(_real_vllm, "http"),
}

SOURCES = (
    Source(1, ("E1",), "Acme", "", "Acme", "Acme makes anvils in Köln. Jane Doe has led Acme since 2019."),
    Source(2, ("E2",), "Jane Doe", "", "Jane Doe", "Jane Doe is a chemist.  She was born in Lisbon\nin 1975."),
)
QUESTION = "Where was Jane Doe, who leads Acme, born?"
ASKED = GenerationRequest((Message(Role.USER, QUESTION),), QUESTION, SOURCES, default_max_tokens=96)


@pytest.fixture(params=[*ENGINES, *(pytest.param(name, marks=pytest.mark.engines) for name in REAL)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[LanguageModel]:
    async with {**ENGINES, **REAL}[request.param]() as opened:
        yield opened
        await opened.close()


@pytest.fixture
async def model(engine: LanguageModel) -> Model:
    """The default one."""
    return (await engine.models(deadline=soon()))[0]


def asked(**options: object) -> GenerationRequest:
    return replace(ASKED, options=SamplingOptions(**options))


async def written(
    engine: LanguageModel, request: GenerationRequest, *, first: int = 0
) -> tuple[list[TokenDelta], GenerationEnd]:
    """What an engine writes, where it keeps to the rules of every stream."""
    *deltas, end = [event async for event in engine.generate(request, deadline=soon())]
    assert isinstance(end, GenerationEnd)
    texts = [delta for delta in deltas if isinstance(delta, TokenDelta)]
    assert texts == deltas
    for delta in texts:
        assert delta.sequence == first
        assert delta.token_count >= 1
        assert len(delta.token_ids) in (0, delta.token_count)
        first += delta.token_count
    if not texts or texts[-1].token_ids or end.finish_reason is FinishReason.NO_ANSWER:
        # Who tells no ids sends a message of any length, and counts apart from that.
        assert end.usage.completion_tokens == first
    return texts, end


def said(result: tuple[list[TokenDelta], GenerationEnd]) -> tuple[str, GenerationEnd]:
    """What is the same each time; how many tokens come together is not."""
    return joined(result[0]), result[1]


def joined(deltas: Sequence[TokenDelta]) -> str:
    return "".join(delta.text for delta in deltas)


async def test_models_say_what_they_are(engine: LanguageModel) -> None:
    models = await engine.models(deadline=soon())
    assert models
    assert len({model.name for model in models}) == len(models)
    for model in models:
        assert model.name
        assert model.fingerprint
        assert model.context_tokens > 0
    assert await engine.models(deadline=soon()) == models


async def test_the_default_model_is_the_first(engine: LanguageModel, model: Model) -> None:
    assert said(await written(engine, asked(model=model.name))) == said(await written(engine, ASKED))


async def test_texts_are_counted_one_by_one(engine: LanguageModel, model: Model) -> None:
    texts = ["", "tea", "tea and " * 100, "日本語", " \n "]
    counts = await engine.count_tokens("", texts, deadline=soon())
    assert counts[0] == 0
    assert all(counts[1:])
    assert counts[2] > counts[1]
    assert await engine.count_tokens(model.name, texts, deadline=soon()) == counts
    assert await engine.count_tokens("", texts[::-1], deadline=soon()) == counts[::-1]
    assert await engine.count_tokens("", [], deadline=soon()) == ()


async def test_an_answer_is_tokens_and_one_end(engine: LanguageModel, model: Model) -> None:
    deltas, end = await written(engine, ASKED)
    answer = joined(deltas)
    assert answer.strip()
    assert end.finish_reason is FinishReason.STOP or _long(end)
    assert end.usage.prompt_tokens > 0
    if Capability.RESUME in model.capabilities and not _long(end):
        # What is counted is what is written, so a budget of tokens means something. A real model need not write as a tokenizer reads.
        assert await engine.count_tokens("", [answer], deadline=soon()) == (end.usage.completion_tokens,)


def _long(end: GenerationEnd) -> bool:
    """Whether the answer has no end of its own: a model with random weights goes on until it is stopped."""
    return end.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("limit", [1, 2, 7])
async def test_no_more_tokens_are_written_than_asked_for(engine: LanguageModel, limit: int) -> None:
    whole, _ = await written(engine, asked(temperature=0.0))
    deltas, end = await written(engine, asked(temperature=0.0, max_tokens=limit))
    assert end.usage.completion_tokens == limit
    assert end.finish_reason is FinishReason.LENGTH
    assert joined(whole).startswith(joined(deltas))


async def test_a_limit_that_is_not_reached_changes_nothing(engine: LanguageModel) -> None:
    whole, end = await written(engine, asked(temperature=0.0))
    exact = asked(temperature=0.0, max_tokens=end.usage.completion_tokens)
    assert joined((await written(engine, exact))[0]) == joined(whole)
    if not _long(end):
        assert said(await written(engine, asked(temperature=0.0, max_tokens=10_000))) == said((whole, end))


async def test_nothing_is_written_from_a_stop_text_on(engine: LanguageModel) -> None:
    answer = joined((await written(engine, asked(temperature=0.0)))[0])
    later, stop = answer.split()[4], answer.split()[2]
    deltas, end = await written(engine, asked(temperature=0.0, stop=("not in the answer", later, stop)))
    assert (
        joined(deltas)
        == answer[: min((answer.index(text) + len(text), answer.index(text)) for text in (later, stop))[1]]
    )
    assert end.finish_reason is FinishReason.STOP


async def test_an_unknown_model_is_not_found(engine: LanguageModel, model: Model) -> None:
    with pytest.raises(ModelNotFound) as caught:
        await written(engine, asked(model="nobody"))
    assert caught.value.metadata["model"] == "nobody"
    assert model.name in caught.value.metadata["served"]
    with pytest.raises(ModelNotFound):
        await engine.count_tokens("nobody", ["tea"], deadline=soon())


@pytest.mark.parametrize(
    ("capability", "request_", "feature"),
    [
        (Capability.TOOLS, replace(ASKED, tools=(Tool("look", "Looks.", {"type": "object"}),)), "tools"),
        (Capability.JSON_SCHEMA, asked(json_schema='{"type": "object"}'), "JSON schema"),
        (Capability.LOGPROBS, asked(top_logprobs=2), "log-probabilities"),
        (Capability.SAMPLING, asked(temperature=0.7), "sampling"),
        (Capability.SAMPLING, asked(top_p=0.5), "sampling"),
        (Capability.SAMPLING, asked(frequency_penalty=0.5), "penalties"),
        (Capability.SAMPLING, asked(presence_penalty=-0.5), "penalties"),
    ],
    ids=["tools", "schema", "log-probabilities", "temperature", "top p", "frequency penalty", "presence penalty"],
)
async def test_what_a_model_cannot_do_is_refused_by_name(
    engine: LanguageModel, model: Model, capability: Capability, request_: GenerationRequest, feature: str
) -> None:
    if capability in model.capabilities:
        assert await written(engine, request_)
        return
    with pytest.raises(UnsupportedByModel) as caught:
        await written(engine, request_)
    assert caught.value.metadata["model"] == model.name
    assert feature in caught.value.metadata["feature"]


async def test_options_that_mean_nothing_special_are_taken_by_every_model(engine: LanguageModel) -> None:
    plain, _ = await written(engine, asked(temperature=0.0))
    neutral = asked(temperature=0.0, top_p=1.0, seed=7, frequency_penalty=0.0, presence_penalty=0.0)
    assert joined((await written(engine, neutral))[0]) == joined(plain)


@pytest.mark.parametrize("limit", [1, 5, 10_000])
async def test_a_generation_goes_on_where_it_broke_off(engine: LanguageModel, model: Model, limit: int) -> None:
    whole, whole_end = await written(engine, asked(temperature=0.0))
    begun, broken_off = await written(
        engine, asked(temperature=0.0, max_tokens=min(limit, 10_000 if not _long(whole_end) else 50))
    )
    ids = tuple(token for delta in begun for token in delta.token_ids)
    resumed = replace(asked(temperature=0.0), resume=ResumePoint(model.fingerprint, ids, joined(begun)))
    if Capability.RESUME not in model.capabilities:
        with pytest.raises(UnsupportedByModel):
            await written(engine, resumed)
        return
    rest, end = await written(engine, resumed, first=broken_off.usage.completion_tokens)
    assert joined(begun) + joined(rest) == joined(whole)
    assert end.finish_reason is whole_end.finish_reason
    if Capability.GENERATION in model.capabilities:
        assert end.resumptions == (Resumption(len(ids), exact=True),)


async def test_a_generation_of_another_model_is_not_gone_on_with(engine: LanguageModel, model: Model) -> None:
    resumed = replace(ASKED, resume=ResumePoint("of another", (), ""))
    refusal = ModelChanged if Capability.RESUME in model.capabilities else UnsupportedByModel
    with pytest.raises(refusal):
        await written(engine, resumed)


async def test_closing_early_ends_the_stream_and_the_next_one_is_whole(engine: LanguageModel) -> None:
    long = replace(ASKED, sources=(replace(SOURCES[0], text=f"Jane Doe was born in {'very ' * 100}Lisbon."),))
    whole = said(await written(engine, long))
    async with aclosing(engine.generate(long, deadline=soon())) as events:
        async for event in events:
            assert isinstance(event, TokenDelta)
            break
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert said(await written(engine, long)) == whole


async def test_a_passed_deadline_is_said_and_harms_nobody(engine: LanguageModel) -> None:
    whole = said(await written(engine, ASKED))
    with pytest.raises(BudgetExhausted):
        async for _ in engine.generate(ASKED, deadline=Deadline.after(-1)):
            pass
    assert said(await written(engine, ASKED)) == whole


@pytest.mark.parametrize("question", ["日本はどこにありますか", "؟ أين", "?!", "", "x" * 100_000])
async def test_any_question_gets_an_answer_or_a_clear_no(engine: LanguageModel, question: str) -> None:
    request = GenerationRequest((Message(Role.USER, question),), question, SOURCES, default_max_tokens=96)
    if len(question) > (await engine.models(deadline=soon()))[0].context_tokens:
        with pytest.raises(UnsupportedByModel, match="its context is"):
            await written(engine, request)
        return
    deltas, end = await written(engine, request)
    assert joined(deltas).strip()
    assert end.finish_reason in (FinishReason.STOP, FinishReason.NO_ANSWER) or _long(end)


async def test_without_sources_an_engine_that_only_quotes_says_that_it_has_no_answer(
    engine: LanguageModel, model: Model
) -> None:
    _, end = await written(engine, replace(ASKED, sources=()))
    writes = Capability.GENERATION in model.capabilities
    assert end.finish_reason is (FinishReason.STOP if writes else FinishReason.NO_ANSWER) or (writes and _long(end))
