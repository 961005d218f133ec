"""Generations of a real vLLM, and what came of them."""

import asyncio
from dataclasses import replace

from loremesh_agents.adapters.model.openai_http import OpenAiModel
from loremesh_agents.adapters.model.token_model import TokenModel
from loremesh_agents.adapters.model.vllm_grpc import VllmGrpcEngine
from loremesh_agents.domain.answer import TokenDelta
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.ports.language_model import GenerationEnd, GenerationRequest, LanguageModel, SamplingOptions
from tests.engines.servers.vllm import VllmServer

QUESTION = "Which statement compares 日本語 with 🙂?"
ASKED = GenerationRequest((Message(Role.USER, QUESTION),), QUESTION)
KINDS = ("grpc", "http")


def opened(server: VllmServer, *, target: str = "", idle_timeout: float = 30) -> LanguageModel:
    """The product's way to a server, or to a target that stands for it."""
    target = target or server.target
    if server.kind == "grpc":
        return TokenModel(VllmGrpcEngine(target, idle_timeout=idle_timeout))
    return OpenAiModel(f"http://{target}/v1", context_tokens=1, idle_timeout=idle_timeout)


def soon() -> Deadline:
    return Deadline.after(200)


def asked(**options: object) -> GenerationRequest:
    return replace(ASKED, options=SamplingOptions(**options))


async def written(model: LanguageModel, request: GenerationRequest) -> tuple[list[TokenDelta], GenerationEnd]:
    *deltas, end = [event async for event in model.generate(request, deadline=soon())]
    assert isinstance(end, GenerationEnd)
    return [delta for delta in deltas if isinstance(delta, TokenDelta)], end


def text(deltas: list[TokenDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids(deltas: list[TokenDelta]) -> tuple[int, ...]:
    return tuple(token for delta in deltas for token in delta.token_ids)


async def quiet(server: VllmServer, running: int = 0) -> None:
    """Waits until so many requests are in the engine."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(server.running) != running:
            await asyncio.sleep(0.01)  # the engine does not tell when
