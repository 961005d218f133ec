"""A real vLLM with a tiny model, and the mesh in front of it, on processors of their own."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from loremesh.v1 import answer_pb2, coordinator_service_pb2, coordinator_service_pb2_grpc

from bench.processes import Program, running
from tests.engines.servers.vllm import VllmServer

_SERVE = ("loremesh_agents.cli", "serve")


@dataclass(frozen=True)
class Mesh:
    """The engines, the agents, and a client's channel to the coordinator."""

    engines: tuple[VllmServer, ...]
    generator: Program
    coordinator: Program
    channel: grpc.aio.Channel

    @property
    def engine(self) -> VllmServer:
        """The first of them."""
        return self.engines[0]

    def ask(self, question: str, max_tokens: int) -> Any:
        """A call of Ask that goes to the model without retrieval."""
        return coordinator_service_pb2_grpc.CoordinatorServiceStub(self.channel).Ask(
            coordinator_service_pb2.AskRequest(
                question=question,
                route=coordinator_service_pb2.ROUTE_DIRECT,
                generation=answer_pb2.GenerationOptions(max_tokens=max_tokens),
            )
        )


@dataclass(frozen=True)
class _Cores:
    engine: list[int]
    agents: list[int]
    client: list[int]


def _split(cores: list[int]) -> _Cores:
    """One processor for the client, one for each of the two agents, and the others for the engine; from four on."""
    return _Cores(cores[:-3], cores[-3:-1], cores[-1:]) if len(cores) > 3 else _Cores(cores, cores, cores)


@asynccontextmanager
async def serving(kind: str, engine_arguments: Sequence[str] = ()) -> AsyncIterator[Mesh]:
    """Serves engine, generator and coordinator within the block; this process is the client, and moves to its processor."""
    all_cores = sorted(os.sched_getaffinity(0))
    cores = _split(all_cores)
    engine = VllmServer(kind, executor="mp", cores=cores.engine, arguments=engine_arguments)
    try:
        await asyncio.to_thread(engine.wait_until_ready)
        # Those who are started inherit it.
        os.sched_setaffinity(0, cores.agents)
        async with in_front_of((engine,)) as mesh:
            os.sched_setaffinity(0, cores.client)
            yield mesh
    finally:
        await asyncio.to_thread(engine.stop)
        os.sched_setaffinity(0, all_cores)


@asynccontextmanager
async def in_front_of(engines: tuple[VllmServer, ...], log_level: str = "WARNING") -> AsyncIterator[Mesh]:
    """Serves a generator, for which the engines are one, and a coordinator within the block."""
    # It has been read, and the agents refuse names that are no settings of theirs.
    os.environ.pop("LOREMESH_TEST_ENGINE_CACHE", None)
    with tempfile.TemporaryDirectory() as data:
        settings = {"LOREMESH_STORES__DATA": data, "LOREMESH_TELEMETRY__LOG_LEVEL": log_level}
        urls = ",".join(map(model_url, engines))
        async with running(*_SERVE, "generator", "--free-ports", LOREMESH_STORES__MODEL=urls, **settings) as generator:
            settings["LOREMESH_ADDRESSES__GENERATOR"] = generator.target
            async with (
                running(*_SERVE, "coordinator", "--free-ports", **settings) as coordinator,
                grpc.aio.insecure_channel(coordinator.target) as channel,
            ):
                yield Mesh(engines, generator, coordinator, channel)


def model_url(engine: VllmServer) -> str:
    """An engine's address as settings name it."""
    return f"vllm+grpc://{engine.target}" if engine.kind == "grpc" else f"openai+http://{engine.target}/v1"
