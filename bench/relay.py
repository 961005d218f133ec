"""What the coordinator adds to a token stream: client -> coordinator -> generator against client -> generator.

Each of the three is a process of its own. The generator's engine makes tokens one by one, as fast as they are taken or at a pace; those that are ready together
travel together, at most 32, on both sides alike, or one a message ("uncoalesced"). Sides alternate within a run, and the figures are medians over the
rounds. A paced token carries the time at which it was due; its lag is how much later the client had it.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import grpc
import uvloop
from loremesh.v1 import coordinator_service_pb2 as ask_pb
from loremesh.v1 import (
    coordinator_service_pb2_grpc,
    generator_service_pb2,
    generator_service_pb2_grpc,
    message_pb2,
)

from bench.processes import Program, running
from loremesh_agents.domain.answer import FinishReason, TokenDelta, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.generator.admission import TokenAdmission
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.generator.servicer import GeneratorServicer
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model
from loremesh_agents.runtime.lifecycle import exempt_from_collection
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service

_STREAMS = 64
_PACE = 50.0


class PacedModel:
    """An engine that makes tokens and means nothing by them. The question says how: how many, and how many a second (0: as fast as can be)."""

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        return (Model("paced", 1 << 20, "", "paced", frozenset({Capability.GENERATION})),)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | GenerationEnd]:
        order = json.loads(request.question)
        count, pace = order["tokens"], order["pace"]
        began = time.monotonic()
        for sequence in range(count):
            if pace:
                due = began + sequence / pace
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                yield TokenDelta(f"{due:.6f} ", sequence)
            else:
                yield TokenDelta("token ", sequence)
        yield GenerationEnd(FinishReason.STOP, Usage(completion_tokens=count))

    async def close(self) -> None:
        """Holds nothing."""


async def _serve_generator(together: int) -> None:
    model: Any = PacedModel()
    settings = GeneratorSettings(default_max_tokens=1 << 20, tokens_together=together, tokens_in_flight=1 << 40)
    servicer = GeneratorServicer(GeneratorService(model, settings, TokenAdmission(settings)))
    descriptor = generator_service_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
    add = generator_service_pb2_grpc.add_GeneratorServiceServicer_to_server
    async with AgentServer("generator", [Service.of(descriptor, add, servicer)], ServerOptions()) as server:
        exempt_from_collection()
        print("generator", server.target, flush=True)
        await asyncio.Event().wait()


class _Sides:
    """The same order, to the generator directly and through the coordinator."""

    def __init__(self, generator: str, coordinator: str) -> None:
        self._channels = [grpc.aio.insecure_channel(generator), grpc.aio.insecure_channel(coordinator)]
        self._generator = generator_service_pb2_grpc.GeneratorServiceStub(self._channels[0])
        self._coordinator = coordinator_service_pb2_grpc.CoordinatorServiceStub(self._channels[1])

    def call(self, side: str, order: str) -> Any:
        if side == "direct":
            message = message_pb2.Message(role=message_pb2.ROLE_USER, text=order)
            return self._generator.Generate(generator_service_pb2.GenerateRequest(messages=[message]))
        return self._coordinator.Ask(ask_pb.AskRequest(question=order, route=ask_pb.ROUTE_DIRECT))

    async def stream(self, side: str, order: str, lags: list[float]) -> tuple[int, float]:
        """Tokens and the time to the first one, in seconds."""
        began = time.monotonic()
        first = 0.0
        tokens = 0
        async for event in self.call(side, order):
            if event.WhichOneof("event") == "delta":
                now = time.monotonic()
                first = first or now - began
                tokens += event.delta.token_count
                if lags is not _NO_LAGS:
                    lags += [now - float(due) for due in event.delta.text.split()]
        return tokens, first

    async def round(self, side: str, streams: int, order: str, lags: list[float]) -> tuple[float, float]:
        """Tokens a second over all streams, and the median time to the first token in seconds."""
        began = time.monotonic()
        found = await asyncio.gather(*(self.stream(side, order, lags) for _ in range(streams)))
        seconds = time.monotonic() - began
        return sum(tokens for tokens, _ in found) / seconds, statistics.median(first for _, first in found)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


_NO_LAGS: list[float] = []


def _order(tokens: int, pace: float = 0.0) -> str:
    return json.dumps({"tokens": tokens, "pace": pace})


async def _compare(sides: _Sides, streams: int, tokens: int, rounds: int) -> tuple[float, float]:
    """Median ratio of the rounds, and median tokens a second through the coordinator."""
    order = _order(tokens)
    ratios: list[float] = []
    rates: list[float] = []
    for number in range(rounds + 1):
        # Which side comes first alternates, so that a drift of the machine meets both.
        first, second = ("direct", "mesh") if number % 2 else ("mesh", "direct")
        rate = {side: (await sides.round(side, streams, order, _NO_LAGS))[0] for side in (first, second)}
        if number:
            ratios.append(rate["mesh"] / rate["direct"])
            rates.append(rate["mesh"])
    return statistics.median(ratios), statistics.median(rates)


async def _measure(rounds: int) -> dict[str, Any]:
    serve = ("loremesh_agents.cli", "serve", "coordinator", "--free-ports")
    figures: dict[str, Any] = {}
    for name, together in (("", 32), ("_uncoalesced", 1)):
        async with running("bench.relay", "generator", str(together)) as generator:
            environment = {
                "LOREMESH_ADDRESSES__GENERATOR": generator.target,
                "LOREMESH_COORDINATOR__TOKENS_TOGETHER": str(together),
            }
            async with running(*serve, **environment) as coordinator:
                sides = _Sides(generator.target, coordinator.target)
                figures |= await _measure_side(sides, coordinator, name, together, rounds)
                await sides.close()
    return figures


async def _measure_side(sides: _Sides, coordinator: Program, name: str, together: int, rounds: int) -> dict[str, Any]:
    one, one_rate = await _compare(sides, 1, 20_000 if together > 1 else 4_000, rounds)
    many, many_rate = await _compare(sides, _STREAMS, 4_000 if together > 1 else 400, rounds)
    figures: dict[str, Any] = {
        f"ratio_1{name}": round(one, 3),
        f"ratio_64{name}": round(many, 3),
        f"tokens_per_s_1{name}": round(one_rate),
        f"tokens_per_s_64{name}": round(many_rate),
    }
    before = coordinator.cpu_seconds()
    tokens = 4_000 if together > 1 else 400
    await sides.round("mesh", _STREAMS, _order(tokens), _NO_LAGS)
    cpu = coordinator.cpu_seconds() - before
    figures[f"cpu_us_per_token{name}"] = round(cpu / (tokens * _STREAMS) * 1e6, 2)
    if name:
        return figures
    lags: list[float] = []
    await sides.round("mesh", _STREAMS, _order(250, _PACE), lags)
    lags.sort()
    figures["paced_64_p99_lag_ms"] = round(lags[int(len(lags) * 0.99)] * 1e3, 2)
    firsts: dict[str, list[float]] = {"direct": [], "mesh": []}
    for number in range(100):
        for side in ("direct", "mesh") if number % 2 else ("mesh", "direct"):
            firsts[side].append((await sides.round(side, 1, _order(1), _NO_LAGS))[1])
    added = statistics.median(firsts["mesh"]) - statistics.median(firsts["direct"])
    figures["added_first_token_ms_p50"] = round(added * 1e3, 2)
    return figures


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="Rounds that the medians are taken over.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.rounds))


if __name__ == "__main__":
    if sys.argv[1:2] != ["generator"]:
        raise SystemExit(f"{Path(__file__).name} is started by python -m bench relay")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as generator_runner:
        generator_runner.run(_serve_generator(int(sys.argv[2])))
