"""A real vLLM with a tiny model, and the mesh in front of it, on processors of their own."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from loremesh.v1 import answer_pb2, coordinator_service_pb2, coordinator_service_pb2_grpc

from bench.processes import running
from tests.engines.servers.vllm import VllmServer

_SERVE = ("loremesh_agents.cli", "serve")


@dataclass(frozen=True)
class Mesh:
    """The engine, and a client's channel to the coordinator."""

    engine: VllmServer
    channel: grpc.aio.Channel

    def ask(self, question: str, max_tokens: int) -> Any:
        """A call of Ask that goes to the model without retrieval."""
        return coordinator_service_pb2_grpc.CoordinatorServiceStub(self.channel).Ask(
            coordinator_service_pb2.AskRequest(
                question=question,
                route=coordinator_service_pb2.ROUTE_DIRECT,
                generation=answer_pb2.GenerationOptions(max_tokens=max_tokens),
            )
        )


def split_cores() -> tuple[list[int], list[int]]:
    """Processors of the engine, and those of everything else."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return cores[:half], cores[half:] or cores


@asynccontextmanager
async def serving(kind: str) -> AsyncIterator[Mesh]:
    """Serves engine, generator and coordinator within the block; this process moves to the processors of the mesh."""
    # It has been read, and the agents refuse names that are no settings of theirs.
    os.environ.pop("LOREMESH_TEST_ENGINE_CACHE", None)
    engine_cores, mesh_cores = split_cores()
    os.sched_setaffinity(0, mesh_cores)
    engine = await asyncio.to_thread(VllmServer, kind, cores=engine_cores)
    try:
        url = f"vllm+grpc://{engine.target}" if kind == "grpc" else f"openai+http://{engine.target}/v1"
        with tempfile.TemporaryDirectory() as data:
            shared = {"LOREMESH_STORES__DATA": data, "LOREMESH_STORES__MODEL": url}
            async with running(*_SERVE, "generator", "--free-ports", **shared) as generator:
                address = {"LOREMESH_ADDRESSES__GENERATOR": generator.target}
                async with (
                    running(*_SERVE, "coordinator", "--free-ports", **address) as coordinator,
                    grpc.aio.insecure_channel(coordinator.target) as channel,
                ):
                    yield Mesh(engine, channel)
    finally:
        await asyncio.to_thread(engine.stop)
        os.sched_setaffinity(0, [*engine_cores, *mesh_cores])
