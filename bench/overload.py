"""What one who floods costs another who asks now and then: a generator over gRPC, before an engine double of fixed speed.

The engine is at work on 16 generations at once, writes a token of each every 10 ms, and takes 100 ms to read a prompt; what comes beyond waits in it in the order
of arrival. The flooder keeps 200 calls in flight and repeats a refused one after half a second in the mean, whatever it is told. The polite principal asks one question after the
other. Measured are its times to the first token alone, beside the flooder, and beside the flooder where the generator admits everything. Generator, flooder and
the polite one are processes of their own, on processors of their own.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import uvloop
from loremesh.v1 import answer_pb2, generator_service_pb2, generator_service_pb2_grpc, message_pb2, principal_pb2

from bench.processes import Program, running
from loremesh_agents.domain.answer import FinishReason, TokenDelta, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.generator.admission import TokenAdmission
from loremesh_agents.generator.service import GeneratorService
from loremesh_agents.generator.servicer import GeneratorServicer
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model
from loremesh_agents.runtime.interceptors.authentication import PeerTrust
from loremesh_agents.runtime.lifecycle import exempt_from_collection
from loremesh_agents.runtime.server import AgentServer, ServerOptions, Service

_SLOTS = 16
_PREFILL = 0.1
_STEP = 0.01
_TOKENS = 32
_PROMPT = 16
_FLOOD = 200
_REPEAT = 0.5
_EVERYTHING = 1 << 40
_BLOCK = 20
"""Questions of the polite principal alone, and then as many beside the flooder."""
_LEAD = 2.0
"""Seconds for which the flood runs before anything is measured."""


class FixedSpeedEngine:
    """An engine double: so many generations at once, each at the same speed, the others in a queue."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(_SLOTS)

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        return (Model("fixed", 1 << 20, "", "fixed", frozenset({Capability.GENERATION})),)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        return tuple(len(text.split()) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | GenerationEnd]:
        async with self._slots:
            began = time.monotonic()
            for sequence in range(request.options.max_tokens):
                due = began + _PREFILL + sequence * _STEP
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                yield TokenDelta("token ", sequence)
            yield GenerationEnd(FinishReason.LENGTH, Usage(_PROMPT, request.options.max_tokens))

    async def close(self) -> None:
        """Holds nothing."""


async def _serve_generator(address: str, limit: int) -> None:
    model: Any = FixedSpeedEngine()
    settings = GeneratorSettings(tokens_in_flight=limit, queue_length=128)
    servicer = GeneratorServicer(GeneratorService(model, settings, TokenAdmission(settings)))
    descriptor = generator_service_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
    add = generator_service_pb2_grpc.add_GeneratorServiceServicer_to_server
    options = ServerOptions(address=address, trust=PeerTrust.SOCKET, max_in_flight=None)
    async with AgentServer("generator", [Service.of(descriptor, add, servicer)], options) as server:
        exempt_from_collection()
        print("generator", server.target, flush=True)
        await asyncio.Event().wait()


def _call(stub: Any, subject: str) -> Any:
    # The words make up the prompt's tokens as the generator estimates them.
    message = message_pb2.Message(role=message_pb2.ROLE_USER, text="word" * (_PROMPT - 4))
    options = answer_pb2.GenerationOptions(max_tokens=_TOKENS)
    principal = principal_pb2.Principal(subject=subject).SerializeToString()
    request = generator_service_pb2.GenerateRequest(messages=[message], options=options)
    return stub.Generate(request, metadata=(("loremesh-principal-bin", principal),), timeout=60)


async def _flood(target: str) -> None:
    """Floods until it is told to stop, by a line; answers with what it got."""
    got = {"answered": 0, "shed": 0}

    async def repeat(stub: Any) -> None:
        while True:
            try:
                async for _ in _call(stub, "flooder"):
                    pass
                got["answered"] += 1
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                got["shed"] += 1
                await asyncio.sleep(random.uniform(0, 2 * _REPEAT))

    async with grpc.aio.insecure_channel(target) as channel:
        stub = generator_service_pb2_grpc.GeneratorServiceStub(channel)
        calls = [asyncio.create_task(repeat(stub)) for _ in range(_FLOOD)]
        print("flood", target, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    print(json.dumps(got), flush=True)


async def _polite(target: str, questions: int) -> list[float]:
    """Milliseconds to the first token of each question."""
    firsts: list[float] = []
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generator_service_pb2_grpc.GeneratorServiceStub(channel)
        for number in range(questions + 1):
            began, first = time.monotonic(), 0.0
            async for event in _call(stub, "polite"):
                if event.HasField("delta"):
                    first = first or time.monotonic() - began
            if number:
                firsts.append(first * 1e3)
    return firsts


def _split(cores: Sequence[int]) -> tuple[Sequence[int], Sequence[int], Sequence[int]]:
    """Processors of the generator, of the flooder and of the polite one; from four on each has its own."""
    return (cores[:-2], cores[-2:-1], cores[-1:]) if len(cores) > 3 else (cores, cores, cores)


@asynccontextmanager
async def _generating(limit: int, cores: Sequence[int]) -> AsyncIterator[Program]:
    with tempfile.TemporaryDirectory(prefix="loremesh-") as folder:
        address = f"unix:{folder}/generator"
        async with running("bench.overload", "generator", address, str(limit)) as generator:
            _move(generator, cores)
            yield generator


async def _beside_flood(generator: Program, questions: int, cores: Sequence[int]) -> tuple[list[float], dict[str, int]]:
    async with running("bench.overload", "flood", generator.target) as flood:
        _move(flood, cores)
        await asyncio.sleep(_LEAD)
        firsts = await _polite(generator.target, questions)
        return firsts, json.loads(await flood.order("stop"))


def _move(program: Program, cores: Sequence[int]) -> None:
    """Moves all of its threads."""
    for process in program.processes():
        for thread in process.threads():
            os.sched_setaffinity(thread.id, cores)


async def _compare(questions: int) -> dict[str, Any]:
    all_cores = sorted(os.sched_getaffinity(0))
    generator_cores, flood_cores, polite_cores = _split(all_cores)
    os.sched_setaffinity(0, polite_cores)
    limit = _SLOTS * (_PROMPT + _TOKENS)
    alone: list[float] = []
    beside: list[float] = []
    got = {"answered": 0, "shed": 0}
    async with _generating(limit, generator_cores) as generator:
        # In turns, so that a drift of the machine meets both.
        for _ in range(max(1, questions // _BLOCK)):
            alone += await _polite(generator.target, _BLOCK)
            firsts, counts = await _beside_flood(generator, _BLOCK, flood_cores)
            beside += firsts
            got = {name: got[name] + count for name, count in counts.items()}
    async with _generating(_EVERYTHING, generator_cores) as generator:
        unbounded, _ = await _beside_flood(generator, 3, flood_cores)
    os.sched_setaffinity(0, all_cores)
    figures: dict[str, Any] = {}
    for name, firsts in (("alone", alone), ("beside_flooder", beside), ("without_admission", unbounded)):
        firsts.sort()
        figures[f"first_token_ms_p50_{name}"] = round(statistics.median(firsts), 1)
        figures[f"first_token_ms_p99_{name}"] = round(firsts[int(len(firsts) * 0.99)], 1)
    for quantile in ("p50", "p99"):
        ratio = figures[f"first_token_ms_{quantile}_beside_flooder"] / figures[f"first_token_ms_{quantile}_alone"]
        figures[f"ratio_{quantile}"] = round(ratio, 3)
    return {**figures, "flooder_answered": got["answered"], "flooder_shed": got["shed"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--questions",
        type=int,
        default=200,
        help="Questions of the polite principal alone, and as many beside the flooder.",
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_compare(arguments.questions))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as program:
        match sys.argv[1:]:
            case ["generator", address, limit]:
                program.run(_serve_generator(address, int(limit)))
            case ["flood", target]:
                program.run(_flood(target))
            case _:
                raise SystemExit(f"{Path(__file__).name} is started by python -m bench overload")
