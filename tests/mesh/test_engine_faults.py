"""What a caller of Ask gets of an engine that does wrong, or is asked for what it has not. The engines are doubles of published contracts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from loremesh.v1 import answer_pb2, coordinator_service_pb2_grpc
from loremesh.v1 import coordinator_service_pb2 as pb

from loremesh_agents.bootstrap.serve import running
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    InvalidRequest,
    LoremeshError,
    ModelNotFound,
    UnsupportedByModel,
)
from tests.doubles import grpc_engines, openai_server
from tests.doubles import tiny_language as language
from tests.doubles.openai_server import DONE, event
from tests.mesh.conftest import answers, settings_for

QUESTION = "Where was Jane Doe born?"
ANSWER = language.tokenizer().decode(language.answer_ids(language.prompt(QUESTION)))
SERVERS = {
    "vllm+grpc": partial(grpc_engines.serving, "vllm"),
    "trtllm+grpc": partial(grpc_engines.serving, "trtllm"),
    "openai+http": openai_server.serving,
}

Behaviour = grpc_engines.Behaviour | openai_server.Behaviour


class Asked:
    """What came of a question: the text, the completion where there is one, and the error where there is one."""

    def __init__(self) -> None:
        self.text = ""
        self.completion: answer_pb2.Completion | None = None
        self.error: LoremeshError | None = None

    async def take(self, events: AsyncIterator[pb.AskResponse]) -> None:
        try:
            async for found in events:
                self.text += found.delta.text
                if found.HasField("completion"):
                    self.completion = found.completion
        except LoremeshError as error:
            self.error = error


Ask = Callable[..., Awaitable[Asked]]


@asynccontextmanager
async def in_front_of(scheme: str, behaviour: Behaviour, folder: Path) -> AsyncIterator[Ask]:
    """Serves generator and coordinator in front of the double of an engine; gives a way to ask."""
    async with SERVERS[scheme](behaviour) as address:
        settings = settings_for(folder)
        url = f"{scheme}://{address.removeprefix('http://')}"
        stores = settings.stores.model_copy(update={"model": url})
        async with (
            running(("generator", "coordinator"), settings.model_copy(update={"stores": stores})) as mesh,
            grpc.aio.insecure_channel(mesh.targets["coordinator"]) as channel,
        ):
            stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(channel)

            async def ask(**options: object) -> Asked:
                generation = answer_pb2.GenerationOptions(**options)
                request = pb.AskRequest(question=QUESTION, route=pb.ROUTE_DIRECT, generation=generation)
                asked = Asked()
                await asked.take(answers(stub.Ask, request))
                return asked

            yield ask


def engine(scheme: str, **behaviour: object) -> Behaviour:
    if scheme == "openai+http":
        return openai_server.Behaviour(vllm=True, **behaviour)
    return grpc_engines.Behaviour(**behaviour)


@pytest.fixture(params=SERVERS)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"model": "gpt"}, ModelNotFound, "tiny"),
        ({"json_schema": "{"}, InvalidRequest, "generation.json_schema"),
        ({"temperature": 2.5}, InvalidRequest, "generation.temperature"),
        ({"temperature": float("nan")}, InvalidRequest, "generation.temperature"),
        ({"max_tokens": language.CONTEXT}, UnsupportedByModel, f"its context is {language.CONTEXT} tokens"),
    ],
    ids=["unknown model", "bad schema", "bad temperature", "temperature that is none", "too many tokens"],
)
async def test_what_cannot_be_asked_for_is_refused_and_never_reaches_the_engine(
    scheme: str, tmp_path: Path, options: dict[str, object], error: type[LoremeshError], said: str
) -> None:
    behaviour = engine(scheme)
    async with in_front_of(scheme, behaviour, tmp_path) as ask:
        refused = await ask(**options)
        assert type(refused.error) is error
        assert said in str(refused.error)
        assert refused.text == ""
        # Over HTTP what is seen are questions about the model, and counting, as well.
        asked_for = [path for path, _ in behaviour.requests] if scheme == "openai+http" else behaviour.requests
        assert [path for path in asked_for if scheme != "openai+http" or path.endswith("completions")] == []
        assert (await ask()).text == ANSWER


@pytest.mark.parametrize(("scheme", "largest"), [("vllm+grpc", 2**31 - 1), ("openai+http", 2**63 - 1)])
async def test_a_seed_that_the_engine_cannot_take_is_refused_with_both_numbers(
    scheme: str, largest: int, tmp_path: Path
) -> None:
    async with in_front_of(scheme, engine(scheme), tmp_path) as ask:
        assert (await ask(seed=largest)).text == ANSWER
        refused = await ask(seed=largest + 1)
    assert type(refused.error) is UnsupportedByModel
    assert f"seeds above {largest}, as {largest + 1}" in str(refused.error)


@pytest.mark.parametrize("scheme", ["vllm+grpc", "trtllm+grpc"])
async def test_a_tokenizer_of_another_model_is_refused_by_name(scheme: str, tmp_path: Path) -> None:
    async with in_front_of(scheme, engine(scheme, vocabulary=100), tmp_path) as ask:
        refused = await ask()
    assert type(refused.error) is UnsupportedByModel
    assert "this tokenizer: it has ids up to 309, the model 100 ids" in str(refused.error)


async def test_an_engine_that_restarts_with_another_model_does_not_go_on_with_the_answer(
    scheme: str, tmp_path: Path
) -> None:
    behaviour = engine(scheme)

    async def restarts(token: int, context: grpc.aio.ServicerContext | None = None) -> None:
        if token == 5 and behaviour.name == "tiny":
            behaviour.name = "another"
            if context is None:
                raise ConnectionError
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    behaviour.before_token = restarts
    async with in_front_of(scheme, behaviour, tmp_path) as ask:
        broken = await ask()
        # What had come stays the beginning of one answer: nothing of the other model is joined to it.
        assert broken.text
        assert ANSWER.startswith(broken.text)
        assert broken.completion is None
        assert isinstance(broken.error, BackendUnavailable | ModelNotFound)
        again = await ask()
        assert (again.text, again.completion.model) == (ANSWER, "another")


GARBAGE = {
    "no JSON": ["data: {nonsense\n\n", DONE],
    "no text": [b"\xff\xfe\n\n\xff"],
    "an event without an end": ["data: " + "x" * 2_000_000],
    "the end without an answer": [DONE],
    "an error and then DONE": [event({"error": {"message": "EngineDead", "code": 500}}), DONE],
}


@pytest.mark.parametrize("script", GARBAGE.values(), ids=GARBAGE)
async def test_an_http_engine_that_sends_garbage_is_an_engine_that_failed(script: list[object], tmp_path: Path) -> None:
    behaviour = engine("openai+http", script=script)
    async with in_front_of("openai+http", behaviour, tmp_path) as ask:
        failed = await ask()
        assert type(failed.error) is BackendUnavailable
        assert failed.completion is None
        behaviour.script = None
        assert (await ask()).text == ANSWER


@pytest.mark.parametrize("scheme", ["vllm+grpc", "trtllm+grpc"])
async def test_a_grpc_engine_that_sends_a_frame_above_the_limit_is_an_engine_that_failed(
    scheme: str, tmp_path: Path
) -> None:
    usual = language.continuation
    behaviour = engine(scheme, chunk=5_000_000, endless=True, continuation=lambda *_, **__: [100] * 5_000_000)
    async with in_front_of(scheme, behaviour, tmp_path) as ask:
        failed = await ask()
        assert type(failed.error) is BackendUnavailable
        behaviour.chunk, behaviour.endless, behaviour.continuation = 1, False, usual
        assert (await ask()).text == ANSWER


async def test_an_endless_stream_ends_at_the_limit(scheme: str, tmp_path: Path) -> None:
    if scheme == "openai+http":
        more = event({"choices": [{"index": 0, "text": "a", "token_ids": [100]}]})
        behaviour = engine(scheme, script=[more] * 10_000)
    else:
        behaviour = engine(scheme, endless=True, chunk=3, continuation=lambda *_, **__: [100, 101, 102] * 10_000)
    async with in_front_of(scheme, behaviour, tmp_path) as ask:
        ended = await ask(max_tokens=50)
    assert ended.error is None
    assert ended.completion.finish_reason == answer_pb2.FINISH_REASON_LENGTH
    assert ended.completion.usage.completion_tokens == 50
