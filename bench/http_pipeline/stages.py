"""Retriever, synthesizer and generator: the use cases of the mesh behind FastAPI."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from bench.canned_retriever import CannedRetriever
from bench.http_pipeline import events
from bench.http_pipeline.connections import Connections
from loremesh_agents.domain.answer import Completion, Source, TokenDelta
from loremesh_agents.domain.conversation import Message
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.principal import ANONYMOUS
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.ports.language_model import GenerationRequest
from loremesh_agents.ports.peers import Prompt, SynthesisStart
from loremesh_agents.synthesizer.service import SynthesizerService
from loremesh_agents.synthesizer.settings import SynthesizerSettings

_BUDGET = 60.0


class Retrieval(BaseModel):
    """Body of `/retrieve`."""

    question: str
    k: int = 8


class Synthesis(BaseModel):
    """Body of `/synthesize`."""

    question: str
    evidence: list[Evidence]


class Generation(BaseModel):
    """Body of `/generate`."""

    question: str
    messages: tuple[Message, ...]
    sources: tuple[Source, ...] = ()


class Texts(BaseModel):
    """Body of `/count_tokens`."""

    model: str
    texts: list[str]


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


def retriever(service: CannedRetriever) -> FastAPI:
    """`POST /retrieve`."""
    app = FastAPI()

    @app.post("/retrieve")
    async def retrieve(body: Retrieval) -> Response:
        request = RetrievalRequest(body.question, k=body.k)
        found = service.retrieve(request, principal=ANONYMOUS, deadline=Deadline.after(_BUDGET))
        items = [item async for item in found]
        return _json({"evidence": items[:-1], "usage": items[-1].usage})

    return app


class HttpTokenCounter:
    """Counts tokens by asking the generator."""

    def __init__(self, generator: Connections) -> None:
        self._generator = generator

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        return tuple(await self._generator.post("/count_tokens", {"model": model, "texts": texts}))


def synthesizer(generator: Connections) -> FastAPI:
    """`POST /synthesize`."""
    service = SynthesizerService(HttpTokenCounter(generator), SynthesizerSettings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await generator.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/synthesize")
    async def synthesize(body: Synthesis) -> Response:
        async def inputs() -> AsyncIterator[SynthesisStart | Evidence]:
            yield SynthesisStart(body.question)
            for piece in body.evidence:
                yield piece

        made = service.synthesize(inputs(), deadline=Deadline.after(_BUDGET))
        prompts = [event async for event in made if isinstance(event, Prompt)]
        return _json(prompts[0])

    return app


def generator(service: GeneratorService) -> FastAPI:
    """`POST /generate`, which streams, and `POST /count_tokens`."""
    app = FastAPI()

    async def written(body: Generation) -> AsyncIterator[bytes]:
        request = GenerationRequest(body.messages, body.question, body.sources)
        async for event in service.generate(request, principal=ANONYMOUS, deadline=Deadline.after(_BUDGET)):
            if isinstance(event, TokenDelta):
                delta = {"text": event.text, "sequence": event.sequence, "token_count": event.token_count}
                yield events.join(events.encode("delta", delta))
            elif isinstance(event, Completion):
                completion = {"finish_reason": event.finish_reason, "usage": event.usage}
                yield events.join(events.encode("completion", completion))

    @app.post("/generate")
    async def generate(body: Generation) -> StreamingResponse:
        return StreamingResponse(written(body), media_type=events.MEDIA_TYPE)

    @app.post("/count_tokens")
    async def count_tokens(body: Texts) -> Response:
        return _json(await service.count_tokens(body.model, body.texts, deadline=Deadline.after(_BUDGET)))

    return app
