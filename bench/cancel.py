"""How soon an engine rests after a client has cancelled Ask: client -> coordinator -> generator -> vLLM, over gRPC and HTTP.

Every stream has brought tokens, and the engine reports requests for at least three quarters of them (random weights end an answer now and then), when all calls are
cancelled at once. The time ends when the engine
reports that nothing runs and nothing waits; it is asked again and again, so the time of one such question is a part of the figure (`asking_ms`).
"""

import argparse
import asyncio
import re
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import uvloop
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from bench.vllm_mesh import Mesh, serving
from loremesh_agents.adapters.model.chat_tokenizer import ChatTokenizer, read_folder
from loremesh_agents.domain.conversation import Message, Role
from tests.engines.servers.vllm import tiny_model

_STREAMS = (1, 16)
_MAX_TOKENS = 1500
_GAUGES = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([\d.]+)$", re.MULTILINE)


@asynccontextmanager
async def _asking(mesh: Mesh) -> AsyncIterator[Callable[[], Awaitable[int]]]:
    """Asks the engine how many requests it has."""
    if mesh.engine.kind == "grpc":
        async with grpc.aio.insecure_channel(mesh.engine.target) as channel:
            stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)

            async def loads() -> int:
                answer = await stub.GetLoads(vllm_engine_pb2.GetLoadsRequest(), timeout=10)
                return sum(load.num_running_reqs + load.num_waiting_reqs for load in answer.loads)

            yield loads
    else:
        async with httpx.AsyncClient(base_url=f"http://{mesh.engine.target}", timeout=10, trust_env=False) as client:

            async def metrics() -> int:
                return sum(int(float(number)) for number in _GAUGES.findall((await client.get("/metrics")).text))

            yield metrics


async def _until(asking: Callable[[], Awaitable[int]], reached: Callable[[int], bool]) -> None:
    async with asyncio.timeout(60):
        while not reached(await asking()):
            await asyncio.sleep(0.001)


def _rests(count: int) -> bool:
    return count == 0


async def _begun(call: Any) -> Any:
    """The call, when it has brought tokens."""
    tokens = 0
    async for event in call:
        tokens += event.WhichOneof("event" if hasattr(event, "delta") else "response") in ("delta", "chunk")
        if tokens == 2:
            break
    return call


async def _round(ask: Callable[[], Any], asking: Callable[[], Awaitable[int]], streams: int) -> float:
    """Milliseconds from the cancel to rest."""
    await _until(asking, _rests)
    calls = await asyncio.gather(*(_begun(ask()) for _ in range(streams)))
    await _until(asking, lambda count: count * 4 >= streams * 3)
    began = time.monotonic()
    for call in calls:
        call.cancel()
    await _until(asking, _rests)
    return (time.monotonic() - began) * 1e3


@asynccontextmanager
async def _sides(mesh: Mesh) -> AsyncIterator[dict[str, Callable[[], Any]]]:
    """Calls to be cancelled: through the mesh, and over gRPC without it."""

    def question() -> str:
        return f"{time.monotonic_ns()}: what is said about this?"

    sides = {f"_{mesh.engine.kind}": lambda: mesh.ask(question(), _MAX_TOKENS)}
    if mesh.engine.kind != "grpc":
        yield sides
        return
    chat = ChatTokenizer(read_folder(tiny_model()))
    async with grpc.aio.insecure_channel(mesh.engine.target) as channel:
        stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)

        def direct() -> Any:
            prompt = chat.prompt([Message(Role.USER, question())])
            return stub.Generate(
                vllm_engine_pb2.GenerateRequest(
                    request_id=uuid.uuid4().hex,
                    tokenized=vllm_engine_pb2.TokenizedInput(input_ids=prompt),
                    sampling_params=vllm_engine_pb2.SamplingParams(temperature=0.0, max_tokens=_MAX_TOKENS),
                    stream=True,
                )
            )

        yield {**sides, "_grpc_direct": direct}


async def _measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for kind in ("grpc", "http"):
        async with serving(kind) as mesh, _asking(mesh) as asking, _sides(mesh) as sides:
            for streams in _STREAMS:
                times: dict[str, list[float]] = {side: [] for side in sides}
                # The first round opens connections and fetches the tokenizer.
                for number in range(rounds + 1):
                    for side, ask in sides.items():
                        took = await _round(ask, asking, streams)
                        times[side] += [took] if number else []
                for side, found in times.items():
                    found.sort()
                    figures[f"p50_ms{side}_{streams}"] = round(statistics.median(found), 1)
                    figures[f"p99_ms{side}_{streams}"] = round(found[min(len(found) - 1, int(len(found) * 0.99))], 1)
            began = time.monotonic()
            for _ in range(20):
                await asking()
            figures[f"asking_ms_{kind}"] = round((time.monotonic() - began) / 20 * 1e3, 1)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=100, help="Cancels of each kind and number of streams.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.rounds))
