"""A generator whose engine counts aloud, slowly: `python generator_process.py`. Prints its address."""

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from unittest.mock import patch

from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.serve import build, serve
from loremesh_agents.bootstrap.settings import Settings
from loremesh_agents.domain.answer import FinishReason, Resumption, TokenDelta, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model

TOKENS = 60
PACE = 0.01


class CountingModel:
    """An engine whose n-th token is the number n."""

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        return (Model("counting", 4096, "", "1", frozenset({Capability.GENERATION, Capability.RESUME})),)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | GenerationEnd]:
        first = len(request.resume.token_ids) if request.resume is not None else 0
        for place in range(first, TOKENS):
            await asyncio.sleep(PACE)  # what an engine takes for a token
            yield TokenDelta(f"{place} ", place, 1, (place,))
        resumptions = (Resumption(first, exact=True),) if request.resume is not None else ()
        yield GenerationEnd(FinishReason.STOP, Usage(completion_tokens=TOKENS), resumptions)

    async def close(self) -> None:
        pass


async def main() -> None:
    with patch.object(backends, "open_model", lambda *_: CountingModel()):
        settings = Settings()
        mesh = await build(["generator"], settings, free_ports=True)
        print(mesh.servers[0].target, flush=True)
        await serve(mesh, settings)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
