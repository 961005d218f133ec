"""The coordinator: asks the stages one after the other and passes the answer on as it is written."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from bench.http_pipeline import events
from bench.http_pipeline.connections import Connections
from loremesh_agents.domain.citations import CitationScanner


class Question(BaseModel):
    """Body of `/ask`."""

    question: str
    k: int = 8


class Relay(Enum):
    """How the generator's stream is passed on."""

    LINES = "lines"
    """Event by event."""
    CHUNKS = "chunks"
    """All events of a chunk together: what is written one by one may travel on as one piece."""
    VERBATIM = "verbatim"
    """Unread: without citations, and with the generator's completion."""


def coordinator(retriever: Connections, synthesizer: Connections, generator: Connections, relay: Relay) -> FastAPI:
    """`POST /ask`, which streams.

    Args:
        retriever: To the retriever.
        synthesizer: To the synthesizer.
        generator: To the generator.
        relay: How to pass the generator's stream on.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for stage in (retriever, synthesizer, generator):
            await stage.close()

    app = FastAPI(lifespan=lifespan)

    async def answer(asked: Question) -> AsyncIterator[bytes]:
        began = time.monotonic()
        plan = {"question": asked.question, "steps": ["retrieve", "synthesize", "generate"]}
        yield events.join(events.encode("plan", plan))
        found = await retriever.post("/retrieve", {"question": asked.question, "k": asked.k})
        evidence = found["evidence"]
        yield events.join(*(events.encode("evidence", piece) for piece in evidence))
        prompt = await synthesizer.post("/synthesize", {"question": asked.question, "evidence": evidence})
        yield events.join(events.encode("sources", {"sources": prompt["sources"]}))
        async with generator.stream("/generate", {"question": asked.question, **prompt}) as response:
            if relay is Relay.VERBATIM:
                passed_on = response.aiter_raw()
            else:
                arriving = events.lines(response) if relay is Relay.LINES else events.chunks(response)
                passed_on = _with_citations(arriving, prompt["sources"], began)
            async for chunk in passed_on:
                yield chunk

    @app.post("/ask")
    async def ask(question: Question) -> StreamingResponse:
        return StreamingResponse(answer(question), media_type=events.MEDIA_TYPE)

    return app


async def _with_citations(
    arriving: AsyncIterator[list[bytes]], sources: list[dict[str, Any]], began: float
) -> AsyncIterator[bytes]:
    """The generator's events, its deltas as they came, with the citations in them and what is known at the end."""
    scanner = CitationScanner({source["number"]: tuple(source["evidence_ids"]) for source in sources})
    timings: dict[str, float] = {}
    async for arrived in arriving:
        passed_on: list[bytes] = []
        for event in arrived:
            content = events.decode(event)
            if content["type"] == "completion":
                timings["total"] = time.monotonic() - began
                passed_on.append(events.encode("completion", {**content, "timings": timings}))
                continue
            timings.setdefault("first_token", time.monotonic() - began)
            passed_on.append(event)
            citations = scanner.feed(content["text"])
            passed_on += [events.encode("citation", {"citation": citation}) for citation in citations]
        yield events.join(*passed_on)
