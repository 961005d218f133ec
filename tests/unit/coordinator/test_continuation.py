"""A generation goes on at another generator from where one broke off, and its reader sees one stream."""

from collections.abc import AsyncGenerator, Sequence

import pytest

from loremesh_agents.domain.answer import Completion, FinishReason, Resumption, TokenDelta
from loremesh_agents.domain.conversation import Message, Role, Tool
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    InternalError,
    LoremeshError,
    ModelChanged,
    Overloaded,
    PeerUnavailable,
    StreamIdle,
)
from loremesh_agents.ports.continuation import continued
from loremesh_agents.ports.language_model import GenerationRequest, SamplingOptions, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart

WORDS = ["water", "is", "wet", "and", "fire", "is", "hot"]
REQUEST = GenerationRequest((Message(Role.USER, "What is water?"),), "What is water?")


class Pods:
    """Generators that each write up to a token and break off there, the last one to the end.

    Attributes:
        asked: What each was asked.
    """

    def __init__(self, *breaks: tuple[int, LoremeshError], fingerprint: Sequence[str] = ("f",)) -> None:
        self._breaks = breaks
        self._fingerprints = fingerprint
        self.asked: list[GenerationRequest] = []

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
        pod = len(self.asked)
        self.asked.append(request)
        end, error = self._breaks[pod] if pod < len(self._breaks) else (len(WORDS), None)
        fingerprint = self._fingerprints[min(pod, len(self._fingerprints) - 1)]
        resume = request.resume
        if resume is not None and resume.model_fingerprint != fingerprint:
            raise ModelChanged("m", resume.model_fingerprint, fingerprint)
        yield GenerationStart("m", fingerprint)
        first = len(resume.token_ids) if resume is not None else 0
        if request.tools and end:
            yield ToolCallPiece(0, "call", "retrieve", "{")
        for place in range(first, end):
            yield TokenDelta(f"{WORDS[place]} ", place, 1, (place,))
        if error is not None:
            raise error
        greedy = not request.options.temperature
        resumptions = (Resumption(first, exact=greedy),) if resume is not None else ()
        yield Completion(FinishReason.STOP, resumptions=resumptions)


async def written(pods: Pods, request: GenerationRequest = REQUEST, attempts: int = 4) -> tuple[str, Completion]:
    """The text that a reader sees, checked to come token by token, and the end."""
    deadline = Deadline.after(5)
    events = continued(
        request,
        lambda rest: pods.generate(rest, deadline=deadline),
        attempts=attempts,
        pause=0,
        deadline=deadline,
    )
    text, tokens, starts, last = "", 0, 0, None
    async for event in events:
        assert last is None
        if isinstance(event, TokenDelta):
            assert event.sequence == tokens
            tokens += event.token_count
            text += event.text
        starts += isinstance(event, GenerationStart)
        last = event if isinstance(event, Completion) else None
    assert starts == 1
    assert last is not None
    return text, last


WHOLE = "".join(f"{word} " for word in WORDS)


@pytest.mark.parametrize(
    "error",
    [PeerUnavailable("generator"), BackendUnavailable("vllm"), StreamIdle("generator", 5.0), InternalError("incident")],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("tokens", [0, 1, 6])
async def test_no_token_is_lost_or_repeated_where_a_generator_breaks_off(error: LoremeshError, tokens: int) -> None:
    text, completion = await written(Pods((tokens, error)))
    assert text == WHOLE
    assert completion.resumptions == ((Resumption(tokens, exact=True),) if tokens else ())


async def test_the_completion_tells_every_place_where_another_generator_went_on() -> None:
    gone = PeerUnavailable("generator")
    sampling = GenerationRequest(REQUEST.messages, "", options=SamplingOptions(temperature=0.7, seed=1))
    text, completion = await written(Pods((2, gone), (2, gone), (5, gone)), sampling)
    assert text == WHOLE
    assert completion.resumptions == (Resumption(2, exact=False), Resumption(5, exact=False))


async def test_what_was_emitted_goes_along() -> None:
    pods = Pods((3, PeerUnavailable("generator")))
    await written(pods)
    resume = pods.asked[1].resume
    assert resume is not None
    assert (resume.model_fingerprint, resume.token_ids, resume.text) == ("f", (0, 1, 2), "water is wet ")


@pytest.mark.parametrize(
    "request_",
    [
        GenerationRequest(REQUEST.messages, "", options=SamplingOptions(frequency_penalty=0.5)),
        GenerationRequest(REQUEST.messages, "", options=SamplingOptions(presence_penalty=0.5)),
        GenerationRequest(REQUEST.messages, "", options=SamplingOptions(json_schema="{}")),
        GenerationRequest(REQUEST.messages, "", tools=(Tool("retrieve", "", {}),)),
    ],
    ids=["frequency penalty", "presence penalty", "schema", "tools"],
)
async def test_what_depends_on_all_that_was_emitted_is_not_gone_on_with(request_: GenerationRequest) -> None:
    pods = Pods((2, PeerUnavailable("generator")))
    with pytest.raises(PeerUnavailable):
        await written(pods, request_)
    assert len(pods.asked) == 1
    untouched = Pods((0, PeerUnavailable("generator")))
    await written(untouched, request_)
    assert len(untouched.asked) == 2


async def test_another_model_does_not_go_on_and_the_failure_is_told() -> None:
    with pytest.raises(PeerUnavailable):
        await written(Pods((2, PeerUnavailable("generator")), fingerprint=("f", "another")))


async def test_it_ends_after_some_attempts() -> None:
    pods = Pods(*[(1, PeerUnavailable("generator"))] * 9)
    with pytest.raises(PeerUnavailable):
        await written(pods, attempts=3)
    assert len(pods.asked) == 3


@pytest.mark.parametrize("error", [Overloaded("generator", 1, 1.0), BudgetExhausted("generator", "generation")])
async def test_what_says_that_nothing_is_broken_is_not_tried_elsewhere(error: LoremeshError) -> None:
    pods = Pods((2, error))
    with pytest.raises(type(error)):
        await written(pods)
    assert len(pods.asked) == 1
