"""A knowledge agent with encoders of the tests in a process of its own: `python reembedding_process.py STORES [SECONDS]`. Prints its address.

Args:
    STORES: Settings of that group, as JSON.
    SECONDS: That the new encoder takes for a batch of texts.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from loremesh_agents.bootstrap import backends
from loremesh_agents.bootstrap.serve import build, serve
from loremesh_agents.bootstrap.settings import Settings, StoreSettings
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.knowledge import reembedding
from tests.doubles.encoders import HashingEmbedder

PACE = 0.01
OLD, NEW = HashingEmbedder("old", 16), HashingEmbedder("new", 24)


class PacedEmbedder(HashingEmbedder):
    """Takes its time, so that a kill meets it at work."""

    async def embed(self, texts: Sequence[str], *, deadline: Deadline) -> NDArray[np.float32]:
        await asyncio.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else PACE)
        return await super().embed(texts, deadline=deadline)


async def main() -> None:
    new = PacedEmbedder(NEW.model, NEW.dimension)
    with (
        patch.object(backends, "open_embedder", lambda _: new),
        patch.object(backends, "open_previous_embedder", lambda _: OLD),
        # A small collection is as much work as a large one.
        patch.object(reembedding, "_ADDED_TOGETHER", 32),
    ):
        settings = Settings(stores=StoreSettings(**json.loads(sys.argv[1])))
        mesh = await build(["knowledge"], settings, free_ports=True)
        print(mesh.servers[0].target, flush=True)
        await serve(mesh, settings)


if __name__ == "__main__":
    asyncio.run(main())
