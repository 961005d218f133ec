"""What the mesh takes from a real engine: client -> coordinator -> generator -> vLLM against client -> vLLM, over gRPC, in one run.

The client, each agent and the engine have processors of their own: else the mesh would only take the engine's, and the client the mesh's. In a round both sides
send the same prompts, and the engine keeps none of them (no prefix cache), so that neither finds it warmer and both have as many tokens to write; which comes first
alternates. Both sides begin with a question and end with text: the direct client too writes the prompt, turns it into ids, and the ids of the answer into text.
"""

import argparse
import asyncio
import statistics
import time
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import uvloop
from smg_grpc_proto import vllm_engine_pb2, vllm_engine_pb2_grpc
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from bench.vllm_mesh import Mesh, serving
from loremesh_agents.adapters.model.chat_tokenizer import ChatTokenizer, read_folder
from loremesh_agents.domain.conversation import Message, Role
from tests.engines.servers.vllm import tiny_model

_TOKENS = 128
_ROUNDS_MORE = {1: 6, 8: 2, 64: 1}
"""Streams at once, and how many more rounds they get: one stream is one measurement of the first token a round."""


class _Sides:
    def __init__(self, mesh: Mesh, channel: grpc.aio.Channel) -> None:
        self._mesh = mesh
        self._stub: Any = vllm_engine_pb2_grpc.VllmEngineStub(channel)
        folder = tiny_model()
        self._chat = ChatTokenizer(read_folder(folder))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    async def _direct(self, question: str) -> tuple[int, float]:
        began = time.monotonic()
        request = vllm_engine_pb2.GenerateRequest(
            request_id=uuid.uuid4().hex,
            tokenized=vllm_engine_pb2.TokenizedInput(input_ids=self._chat.prompt([Message(Role.USER, question)])),
            sampling_params=vllm_engine_pb2.SamplingParams(temperature=0.0, max_tokens=_TOKENS),
            stream=True,
        )
        first = 0.0
        tokens = 0
        text = ""
        decoding = DecodeStream(skip_special_tokens=True)
        async for response in self._stub.Generate(request):
            if response.HasField("chunk"):
                text += "".join(decoding.step(self._tokenizer, token) or "" for token in response.chunk.token_ids)
                first = first or time.monotonic() - began
                tokens += len(response.chunk.token_ids)
        return tokens, first

    async def _through(self, question: str) -> tuple[int, float]:
        began = time.monotonic()
        first = 0.0
        tokens = 0
        text = ""
        async for event in self._mesh.ask(question, _TOKENS):
            if event.WhichOneof("event") == "delta":
                text += event.delta.text
                first = first or time.monotonic() - began
                tokens += event.delta.token_count
        return tokens, first

    async def round(self, side: str, questions: Sequence[str]) -> tuple[float, float]:
        """Tokens a second over all streams, and the median time to the first token in seconds."""
        call = self._direct if side == "direct" else self._through
        began = time.monotonic()
        found = await asyncio.gather(*(call(question) for question in questions))
        seconds = time.monotonic() - began
        return sum(tokens for tokens, _ in found) / seconds, statistics.median(first for _, first in found)


def _told(values: Sequence[float], digits: int) -> tuple[float, list[float]]:
    """The median, and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return round(middle, digits), [round(low, digits), round(high, digits)]


async def _compare(sides: _Sides, mesh: Mesh, streams: int, rounds: int) -> dict[str, Any]:
    rates: dict[str, list[float]] = {"direct": [], "mesh": []}
    firsts: dict[str, list[float]] = {"direct": [], "mesh": []}
    agents = {"generator": mesh.generator, "coordinator": mesh.coordinator}
    cpu = {}
    for number in range(rounds + 1):
        questions = [f"{uuid.uuid4().hex}: what does the statement compare?" for _ in range(streams)]
        if number == 1:
            cpu = {name: agent.cpu_seconds() for name, agent in agents.items()}
        for side in ("direct", "mesh") if number % 2 else ("mesh", "direct"):
            rate, first = await sides.round(side, questions)
            if number:
                rates[side].append(rate)
                firsts[side].append(first)
    figures: dict[str, Any] = {
        f"{name}_cpu_us_per_token_{streams}": round(
            (agent.cpu_seconds() - cpu[name]) / (rounds * streams * _TOKENS) * 1e6
        )
        for name, agent in agents.items()
    }
    ratios = [mesh / direct for mesh, direct in zip(rates["mesh"], rates["direct"], strict=True)]
    added = [(mesh - direct) * 1e3 for mesh, direct in zip(firsts["mesh"], firsts["direct"], strict=True)]
    figures[f"tokens_ratio_{streams}"], figures[f"tokens_ratio_quartiles_{streams}"] = _told(ratios, 3)
    added_names = (f"added_first_token_ms_{streams}", f"added_first_token_ms_quartiles_{streams}")
    figures[added_names[0]], figures[added_names[1]] = _told(added, 2)
    figures[f"tokens_per_s_{streams}"] = round(statistics.median(rates["mesh"]))
    figures[f"first_token_ms_{streams}"] = round(statistics.median(firsts["mesh"]) * 1e3, 1)
    return figures


async def _measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with (
        serving("grpc", ("--no-enable-prefix-caching",)) as mesh,
        grpc.aio.insecure_channel(mesh.engine.target) as channel,
    ):
        sides = _Sides(mesh, channel)
        for streams, more in _ROUNDS_MORE.items():
            figures |= await _compare(sides, mesh, streams, rounds * more)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--rounds",
        type=int,
        default=15,
        help="Rounds with 64 streams; with 8 there are twice as many, with one six times.",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.rounds))
