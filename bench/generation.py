"""What the mesh takes from a real engine: client -> coordinator -> generator -> vLLM against client -> vLLM, over gRPC, in one run.

The engine has processors of its own, and so have mesh and client: else the mesh would only take the engine's. Each stream asks for as many tokens of its own
prompt; sides alternate, and the figures are medians over the rounds. The direct client reads ids and turns none into text.
"""

import argparse
import asyncio
import statistics
import time
import uuid
from typing import Any

import grpc
import uvloop
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc

from bench.vllm_mesh import Mesh, serving
from loremesh_agents.adapters.model.chat_tokenizer import ChatTokenizer, read_folder
from loremesh_agents.domain.conversation import Message, Role
from tests.engines.servers.vllm import tiny_model

_STREAMS = (1, 8, 64)
_TOKENS = 128


class _Sides:
    def __init__(self, mesh: Mesh, channel: grpc.aio.Channel) -> None:
        self._mesh = mesh
        self._stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        self._tokenizer = ChatTokenizer(read_folder(tiny_model()))

    async def _direct(self, prompt: list[int]) -> tuple[int, float]:
        request = vllm_engine_pb2.GenerateRequest(
            request_id=uuid.uuid4().hex,
            tokenized=vllm_engine_pb2.TokenizedInput(input_ids=prompt),
            sampling_params=vllm_engine_pb2.SamplingParams(temperature=0.0, max_tokens=_TOKENS),
            stream=True,
        )
        began = time.monotonic()
        first = 0.0
        tokens = 0
        async for response in self._stub.Generate(request):
            if response.HasField("chunk"):
                first = first or time.monotonic() - began
                tokens += len(response.chunk.token_ids)
        return tokens, first

    async def _through(self, question: str) -> tuple[int, float]:
        began = time.monotonic()
        first = 0.0
        tokens = 0
        async for event in self._mesh.ask(question, _TOKENS):
            if event.WhichOneof("event") == "delta":
                first = first or time.monotonic() - began
                tokens += event.delta.token_count
        return tokens, first

    async def round(self, side: str, streams: int) -> tuple[float, float]:
        """Tokens a second over all streams, and the median time to the first token in seconds."""
        questions = [f"{uuid.uuid4().hex}: what does the statement compare?" for _ in range(streams)]
        if side == "direct":
            calls = [self._direct(self._tokenizer.prompt([Message(Role.USER, question)])) for question in questions]
        else:
            calls = [self._through(question) for question in questions]
        began = time.monotonic()
        found = await asyncio.gather(*calls)
        seconds = time.monotonic() - began
        return sum(tokens for tokens, _ in found) / seconds, statistics.median(first for _, first in found)


async def _measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with serving("grpc") as mesh, grpc.aio.insecure_channel(mesh.engine.target) as channel:
        sides = _Sides(mesh, channel)
        for streams in _STREAMS:
            rates: dict[str, list[float]] = {"direct": [], "mesh": []}
            firsts: dict[str, list[float]] = {"direct": [], "mesh": []}
            for number in range(rounds + 1):
                for side in ("direct", "mesh") if number % 2 else ("mesh", "direct"):
                    rate, first = await sides.round(side, streams)
                    if number:
                        rates[side].append(rate)
                        firsts[side].append(first)
            ratios = [mesh / direct for mesh, direct in zip(rates["mesh"], rates["direct"], strict=True)]
            added = [mesh - direct for mesh, direct in zip(firsts["mesh"], firsts["direct"], strict=True)]
            figures[f"tokens_ratio_{streams}"] = round(statistics.median(ratios), 3)
            figures[f"added_first_token_ms_{streams}"] = round(statistics.median(added) * 1e3, 2)
            figures[f"tokens_per_s_{streams}"] = round(statistics.median(rates["mesh"]))
            figures[f"first_token_ms_{streams}"] = round(statistics.median(firsts["mesh"]) * 1e3, 1)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=15, help="Rounds that the medians are taken over.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.rounds))
