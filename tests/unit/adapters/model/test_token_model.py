"""Engines that speak gRPC and fail in every way that is known. They are doubles that speak the published contracts."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from smg_grpc_proto import vllm_engine_pb2

from loremesh_agents.adapters.model.token_model import TokenModel
from loremesh_agents.adapters.model.trtllm_grpc import TrtllmGrpcEngine
from loremesh_agents.adapters.model.vllm_grpc import VllmGrpcEngine
from loremesh_agents.domain.answer import FinishReason, Resumption, TokenDelta
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    InvalidRequest,
    ModelChanged,
    UnsupportedByModel,
)
from loremesh_agents.ports.language_model import GenerationEnd, GenerationRequest, ResumePoint, SamplingOptions
from tests.documents import soon
from tests.doubles import tiny_language as language
from tests.doubles.grpc_engines import Behaviour, serving
from tests.unit.runtime.support import until

QUESTION = "Where was Jane Doe born?"
ASKED = GenerationRequest((Message(Role.USER, QUESTION),), QUESTION)
PROMPT = language.prompt(QUESTION)
ANSWER = language.tokenizer().decode(language.answer_ids(PROMPT))
ENGINES = {"vllm": VllmGrpcEngine, "trtllm": TrtllmGrpcEngine}

Opened = Callable[[Behaviour], TokenModel]


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@asynccontextmanager
async def opened(
    kind: str, behaviour: Behaviour, *, idle_timeout: float = 10, tokenizer: Path | None = None, **times: float
) -> AsyncIterator[TokenModel]:
    async with serving(kind, behaviour) as target:
        model = TokenModel(ENGINES[kind](target, idle_timeout=idle_timeout), tokenizer=tokenizer, **times)
        try:
            yield model
        finally:
            await model.close()


async def written(model: TokenModel, request: GenerationRequest = ASKED) -> tuple[str, GenerationEnd]:
    *deltas, end = [event async for event in model.generate(request, deadline=soon())]
    assert isinstance(end, GenerationEnd)
    return "".join(delta.text for delta in deltas), end


def asked(**options: object) -> GenerationRequest:
    return replace(ASKED, options=SamplingOptions(**options))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
async def test_tokens_may_come_together(kind: str, chunk: int) -> None:
    async with opened(kind, Behaviour(chunk=chunk)) as model:
        text, end = await written(model)
    assert text == ANSWER
    assert end.usage.prompt_tokens == len(PROMPT)
    assert end.usage.completion_tokens == len(language.answer_ids(PROMPT))


async def test_closing_stops_the_engine(kind: str) -> None:
    never = asyncio.Event()

    async def stuck(token: int, _: object) -> None:
        if token == 3:
            await never.wait()

    behaviour = Behaviour(before_token=stuck)
    async with opened(kind, behaviour) as model:
        async with aclosing(model.generate(ASKED, deadline=soon())) as events:
            await anext(events)
            assert behaviour.running == 1
        async with asyncio.timeout(10):
            await behaviour.idle.wait()


async def test_who_is_cancelled_stops_the_engine(kind: str) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    async def stuck(token: int, _: object) -> None:
        if token == 3:
            reached.set()
            await never.wait()

    behaviour = Behaviour(before_token=stuck)
    async with opened(kind, behaviour) as model:
        task = asyncio.create_task(written(model))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(10):
            await behaviour.idle.wait()


async def _fails_after(model: TokenModel, request: GenerationRequest = ASKED) -> tuple[str, tuple[int, ...], Exception]:
    """What was given before a generation failed, and the failure."""
    deltas: list[TokenDelta] = []
    try:
        async for event in model.generate(request, deadline=soon()):
            assert isinstance(event, TokenDelta)
            deltas.append(event)
    except (BackendUnavailable, UnsupportedByModel, BudgetExhausted) as error:
        return "".join(d.text for d in deltas), tuple(i for d in deltas for i in d.token_ids), error
    raise AssertionError("the generation did not fail")


async def test_silence_is_an_engine_that_is_gone(kind: str) -> None:
    never = asyncio.Event()

    async def silent(token: int, _: object) -> None:
        if token == 20:
            await never.wait()

    behaviour = Behaviour(before_token=silent)
    async with opened(kind, behaviour, idle_timeout=0.3) as model:
        text, _, error = await _fails_after(model)
        assert isinstance(error, BackendUnavailable)
        assert text
        assert ANSWER.startswith(text)
        async with asyncio.timeout(10):
            await behaviour.idle.wait()


async def test_a_slow_reader_is_no_silent_engine(kind: str) -> None:
    async with (
        opened(kind, Behaviour(), idle_timeout=1.5) as model,
        aclosing(model.generate(ASKED, deadline=soon())) as events,
    ):
        await anext(events)
        await asyncio.sleep(2)  # longer than the engine may be silent
        rest = [event async for event in events]
    assert isinstance(rest[-1], GenerationEnd)


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNKNOWN])
async def test_after_an_engine_died_another_goes_on_from_what_was_emitted(kind: str, code: grpc.StatusCode) -> None:
    async def dies(token: int, context: grpc.aio.ServicerContext) -> None:
        if token == 23:
            await context.abort(code, "EngineCore died")

    async with opened(kind, Behaviour(before_token=dies)) as model:
        fingerprint = (await model.models(deadline=soon()))[0].fingerprint
        text, ids, error = await _fails_after(model)
        assert isinstance(error, BackendUnavailable)
        assert error.metadata["backend"] == kind
    async with opened(kind, Behaviour()) as other:
        resumed = replace(ASKED, resume=ResumePoint(fingerprint, ids, text))
        rest, end = await written(other, resumed)
        sampled = replace(resumed, options=SamplingOptions(temperature=0.7))
        assert (await written(other, sampled))[1].resumptions == (Resumption(len(ids), exact=False),)
    assert text + rest == ANSWER
    assert end.resumptions == (Resumption(len(ids), exact=True),)
    assert end.usage.completion_tokens == len(language.answer_ids(PROMPT))


async def test_an_engine_that_came_back_with_another_model_is_noticed(kind: str) -> None:
    behaviour = Behaviour()

    async def dies(token: int, context: grpc.aio.ServicerContext) -> None:
        if token == 5:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    behaviour.before_token = dies
    async with opened(kind, behaviour) as model:
        fingerprint = (await model.models(deadline=soon()))[0].fingerprint
        text, ids, _ = await _fails_after(model)
        behaviour.before_token, behaviour.name = None, "another"
        with pytest.raises(ModelChanged) as caught:
            await written(model, replace(ASKED, resume=ResumePoint(fingerprint, ids, text)))
        assert caught.value.metadata["expectedFingerprint"] == fingerprint
        assert (await model.models(deadline=soon()))[0].name == "another"


async def test_a_stream_without_an_end_is_an_error(kind: str) -> None:
    async with opened(kind, Behaviour(with_end=False, continuation=lambda ids, **_: [100, 101])) as model:
        assert isinstance((await _fails_after(model))[2], BackendUnavailable)


@pytest.mark.parametrize("reason", ["abort", "error", "what?"])
async def test_an_end_that_is_none_is_an_error(kind: str, reason: str) -> None:
    behaviour = Behaviour(finish_reason=reason, continuation=lambda ids, **_: [100, 101])
    async with opened(kind, behaviour) as model:
        assert isinstance((await _fails_after(model))[2], BackendUnavailable)


async def test_an_endless_stream_is_ended(kind: str) -> None:
    behaviour = Behaviour(endless=True, chunk=3, continuation=lambda ids, **_: [100, 101, 102] * 100_000)
    async with opened(kind, behaviour) as model:
        _, end = await written(model, asked(max_tokens=50))
        assert end.finish_reason is FinishReason.LENGTH
        assert end.usage.completion_tokens == 50
        async with asyncio.timeout(10):
            await behaviour.idle.wait()


async def test_a_frame_that_is_too_large_is_an_error(kind: str) -> None:
    behaviour = Behaviour(endless=True, chunk=5_000_000, continuation=lambda ids, **_: [100] * 5_000_000)
    async with opened(kind, behaviour) as model:
        assert isinstance((await _fails_after(model))[2], BackendUnavailable)


async def test_garbage_is_an_error(tmp_path: Path) -> None:
    async def garbage(request: bytes, context: object) -> AsyncIterator[bytes]:
        yield b"\xff\xff\xff"

    async def describe(request: bytes, context: object) -> bytes:
        return vllm_engine_pb2.GetModelInfoResponse(
            served_model_name="tiny", max_context_length=4096, is_generation=True
        ).SerializeToString()

    server = grpc.aio.server()
    handlers = {
        "Generate": grpc.unary_stream_rpc_method_handler(garbage),
        "GetModelInfo": grpc.unary_unary_rpc_method_handler(describe),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("vllm.grpc.engine.VllmEngine", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    engine = VllmGrpcEngine(f"127.0.0.1:{port}", idle_timeout=10)
    for name, content in language.files().items():
        (tmp_path / name).write_bytes(content)
    model = TokenModel(engine, tokenizer=tmp_path)
    try:
        assert isinstance((await _fails_after(model))[2], BackendUnavailable)
    finally:
        await model.close()
        await server.stop(None)


async def test_nobody_at_the_address_is_an_engine_that_does_not_answer() -> None:
    model = TokenModel(VllmGrpcEngine("127.0.0.1:1", idle_timeout=5))
    with pytest.raises(BackendUnavailable):
        await model.models(deadline=soon())
    await model.close()


async def test_what_does_not_fit_the_context_never_reaches_the_engine(kind: str) -> None:
    behaviour = Behaviour(context=60)
    async with opened(kind, behaviour) as model:
        with pytest.raises(UnsupportedByModel) as caught:
            await written(model, asked(max_tokens=60))
        assert str(len(PROMPT)) in caught.value.message
        assert "60 tokens" in caught.value.message
        assert not behaviour.requests
        # A default is a wish: what there is room for is written.
        _, end = await written(model, replace(ASKED, default_max_tokens=1000))
        assert end.finish_reason is FinishReason.LENGTH
        assert end.usage.completion_tokens == 60 - len(PROMPT)


async def test_every_request_has_an_id_of_its_own(kind: str) -> None:
    behaviour = Behaviour()
    async with opened(kind, behaviour) as model:
        await asyncio.gather(*(written(model) for _ in range(20)))
    ids = [request.request_id for request in behaviour.requests]
    assert all(ids)
    assert len(set(ids)) == 20


async def test_vllm_is_told_everything_that_it_would_guess_otherwise() -> None:
    behaviour = Behaviour()
    async with opened("vllm", behaviour) as model:
        await written(model)
        await written(model, asked(temperature=0.5, top_p=0.25, seed=7, frequency_penalty=1.0, presence_penalty=-1.0))
        with pytest.raises(UnsupportedByModel, match=f"seeds above {2**31 - 1}, as {2**31}"):
            await written(model, asked(seed=2**31))
    plain, full = (request.sampling_params for request in behaviour.requests)
    assert plain.HasField("temperature")
    assert (plain.temperature, plain.top_p, plain.n, plain.HasField("seed")) == (0, 1, 1, False)
    assert plain.max_tokens == language.CONTEXT - len(PROMPT)
    assert (full.temperature, full.top_p, full.seed) == (0.5, 0.25, 7)
    assert (full.frequency_penalty, full.presence_penalty) == (1, -1)


async def test_trtllm_is_told_everything_that_it_would_guess_otherwise() -> None:
    behaviour = Behaviour()
    async with opened("trtllm", behaviour) as model:
        await written(model)
        await written(model, asked(temperature=0.5, top_p=0.25, seed=2**40))
        with pytest.raises(UnsupportedByModel, match="JSON schema"):
            await written(model, asked(json_schema="{}"))
    plain, full = behaviour.requests
    assert (plain.streaming, plain.sampling_config.top_k, plain.sampling_config.beam_width) == (True, 1, 1)
    assert plain.output_config.exclude_input_from_output
    assert full.sampling_config.seed == 2**40
    assert not full.sampling_config.HasField("top_k")


async def test_log_probabilities_come_with_their_tokens(kind: str) -> None:
    async with opened(kind, Behaviour(chunk=3)) as model:
        events = [event async for event in model.generate(asked(top_logprobs=1, max_tokens=30), deadline=soon())]
    told = [entry for event in events[:-1] for entry in event.logprobs]
    ids = [token for event in events[:-1] for token in event.token_ids]
    assert [entry.chosen.token_id for entry in told] == ids
    for delta in events[:-1]:
        assert len(delta.logprobs) == delta.token_count
    assert {entry.chosen.logprob for entry in told} == {-0.5}
    assert all([top.token_id for top in entry.top] == [entry.chosen.token_id] for entry in told)


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({"frequency_penalty": 0.5}, "resuming a generation with penalties"),
        ({"presence_penalty": 0.5}, "resuming a generation with penalties"),
        ({"json_schema": "{}"}, "resuming a generation that follows a JSON schema"),
    ],
)
async def test_what_cannot_be_resumed_is_refused(options: dict[str, object], feature: str) -> None:
    async with opened("vllm", Behaviour()) as model:
        fingerprint = (await model.models(deadline=soon()))[0].fingerprint
        with pytest.raises(UnsupportedByModel) as caught:
            await written(model, replace(asked(**options), resume=ResumePoint(fingerprint, (100,), "x")))
    assert caught.value.metadata["feature"] == feature


@pytest.mark.parametrize(
    ("resume", "field"),
    [(ResumePoint("", (100, 400), "x"), "resume.token_ids[1]"), (ResumePoint("", (), "x"), "resume.token_ids")],
)
async def test_a_place_that_the_model_cannot_have_reached_is_refused(resume: ResumePoint, field: str) -> None:
    async with opened("vllm", Behaviour()) as model:
        fingerprint = (await model.models(deadline=soon()))[0].fingerprint
        with pytest.raises(InvalidRequest) as caught:
            await written(model, replace(ASKED, resume=replace(resume, model_fingerprint=fingerprint)))
    assert caught.value.violations[0].field == field


@pytest.mark.parametrize("schema", ["{", "[]", "7"])
async def test_a_schema_that_is_none_is_refused(schema: str) -> None:
    async with opened("vllm", Behaviour()) as model:
        with pytest.raises(InvalidRequest) as caught:
            await written(model, asked(json_schema=schema))
    assert caught.value.violations[0].field == "options.json_schema"


async def test_what_the_engine_refuses_is_told() -> None:
    async def refuses(token: int, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the grammar has no start")

    async with opened("vllm", Behaviour(before_token=refuses)) as model:
        _, _, error = await _fails_after(model, asked(json_schema="{}"))
    assert isinstance(error, UnsupportedByModel)
    assert "the grammar has no start" in error.message


@pytest.mark.parametrize(
    "behaviour",
    [Behaviour(checksum="0" * 64), Behaviour(archive=b""), Behaviour(archive=b"x" * (65 * 1024 * 1024))],
    ids=["wrong checksum", "nothing", "too large"],
)
async def test_a_tokenizer_that_came_damaged_is_not_used(kind: str, behaviour: Behaviour) -> None:
    async with opened(kind, behaviour) as model:
        with pytest.raises(BackendUnavailable):
            await model.models(deadline=soon())


async def test_a_tokenizer_that_is_none_or_of_another_model_is_refused_by_name(kind: str) -> None:
    async with opened(kind, Behaviour(archive=b"no archive")) as model:
        with pytest.raises(UnsupportedByModel, match="its tokenizer is refused"):
            await model.models(deadline=soon())
    async with opened(kind, Behaviour(vocabulary=100)) as model:
        with pytest.raises(UnsupportedByModel, match="ids up to 309, the model 100 ids"):
            await model.models(deadline=soon())


async def test_a_tokenizer_of_a_folder_is_taken_where_one_is_named(kind: str, tmp_path: Path) -> None:
    for name, content in language.files().items():
        (tmp_path / name).write_bytes(content)
    async with opened(kind, Behaviour(archive=b"no archive"), tokenizer=tmp_path) as model:
        assert (await written(model))[0] == ANSWER


async def test_the_engine_is_asked_once_for_many_requests(kind: str) -> None:
    behaviour = Behaviour()
    async with opened(kind, behaviour) as model:
        await asyncio.gather(*(written(model) for _ in range(20)))
    assert behaviour.described < 5


async def test_an_engine_in_use_is_asked_again_before_a_request_must_wait_for_it(kind: str) -> None:
    behaviour = Behaviour()
    async with opened(kind, behaviour, fresh=0.02) as model:
        await written(model)
        await until(lambda: behaviour.described >= 4)
        behaviour.name = "another"
        described = behaviour.described
        await until(lambda: behaviour.described >= described + 2)
        assert [served.name for served in await model.models(deadline=soon())] == ["another"]


async def test_an_engine_that_nobody_uses_is_left_alone(kind: str) -> None:
    behaviour = Behaviour()
    async with opened(kind, behaviour, fresh=0.02, kept_fresh=0.5) as model:
        await written(model)
        await until(lambda: not any("serves" in task.get_name() for task in asyncio.all_tasks()))
        described = behaviour.described
        await written(model)
        await until(
            lambda: behaviour.described >= described + 2
        )  # by the request itself at the most, and then without one
    assert not any("serves" in task.get_name() for task in asyncio.all_tasks())


@pytest.mark.parametrize("size", [10, 5000], ids=["in the event loop", "in a thread"])
async def test_a_prompt_is_the_same_wherever_it_is_made(kind: str, size: int) -> None:
    behaviour = Behaviour(context=100_000)
    question = "word " * (size // 5)
    async with opened(kind, behaviour) as model:
        request = replace(ASKED, messages=(Message(Role.USER, question),), options=SamplingOptions(max_tokens=1))
        _, end = await written(model, request)
    assert end.usage.prompt_tokens == len(language.prompt(question))


async def test_a_deadline_in_the_middle_is_said(kind: str) -> None:
    never = asyncio.Event()

    async def stuck(token: int, _: object) -> None:
        if token == 3:
            await never.wait()

    behaviour = Behaviour(before_token=stuck)
    async with opened(kind, behaviour) as model:
        await model.models(deadline=soon())
        with pytest.raises(BudgetExhausted):
            async for _ in model.generate(ASKED, deadline=Deadline.after(0.3)):
                pass
        async with asyncio.timeout(10):
            await behaviour.idle.wait()
