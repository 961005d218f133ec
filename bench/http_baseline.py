"""The mesh against the pipeline that is built with FastAPI and httpx: the same question, through the same four services, in the same run.

A question goes to the coordinator, which has evidence found (eight passages), a prompt made of it, and an answer written, and streams all of
this to the client.

The same on both sides: the passages, the synthesizer's and the generator's use cases, the count of the prompt's tokens by the generator, the
engine, how tokens are joined (what is ready together travels together, at most 32, and waits for nothing; "uncoalesced": one token a message), the
scan for citations, a process for each service, a connection for each stream of the client, uvloop.

Different: the wire. On one side the agents as they are served, with all that they do for each call: validation, deadlines, admission, metrics, errors
with details. On the other FastAPI on uvicorn with httptools, httpx between the services, orjson, retrieval and synthesis in one response each, no access
log, and the answer as server-sent events that the coordinator reads with httpx's `aiter_lines`, scans and passes on one by one. Beside that pipeline
("http") stand two coordinators that no one writes by habit: "chunks" splits the bytes itself and passes on in one piece what came in one, "verbatim"
does not read them at all.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import httpx
import orjson
import uvloop
from loremesh.v1 import (
    coordinator_service_pb2,
    coordinator_service_pb2_grpc,
    generator_service_pb2,
    generator_service_pb2_grpc,
    message_pb2,
)

from bench.http_pipeline import events
from bench.http_pipeline.connections import connection
from bench.processes import Program, running

_STREAMS = 64
_PACE = 50.0
_PACED_TOKENS = 250
_FIRST_TOKENS = 100
_PIPELINE = "bench.http_pipeline"


class Side(Protocol):
    """One of the pipelines; each of its users has a connection of its own."""

    coordinator: Program

    def ask(self, user: int, order: str) -> AsyncIterator[tuple[int, str]]:
        """Tokens and their text, message by message, through the whole pipeline."""
        ...

    def generate(self, user: int, order: str) -> AsyncIterator[tuple[int, str]]:
        """The same from the generator directly."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class GrpcSide:
    """The mesh."""

    def __init__(self, generator: Program, coordinator: Program) -> None:
        self.coordinator = coordinator
        self._channels = [(_channel(generator.target), _channel(coordinator.target)) for _ in range(_STREAMS)]

    async def ask(self, user: int, order: str) -> AsyncIterator[tuple[int, str]]:
        stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(self._channels[user][1])
        question = coordinator_service_pb2.AskRequest(question=order, route=coordinator_service_pb2.ROUTE_RETRIEVAL)
        async for event in stub.Ask(question):
            if event.HasField("delta"):
                yield event.delta.token_count, event.delta.text

    async def generate(self, user: int, order: str) -> AsyncIterator[tuple[int, str]]:
        stub = generator_service_pb2_grpc.GeneratorServiceStub(self._channels[user][0])
        message = message_pb2.Message(role=message_pb2.ROLE_USER, text=order)
        async for event in stub.Generate(generator_service_pb2.GenerateRequest(messages=[message])):
            if event.HasField("delta"):
                yield event.delta.token_count, event.delta.text

    async def close(self) -> None:
        for pair in self._channels:
            for channel in pair:
                await channel.close()


def _channel(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])


class HttpSide:
    """FastAPI and httpx."""

    def __init__(self, generator: Program, coordinator: Program) -> None:
        self.coordinator = coordinator
        self._connections = [(connection(generator.target), connection(coordinator.target)) for _ in range(_STREAMS)]

    def ask(self, user: int, order: str) -> AsyncIterator[tuple[int, str]]:
        return self._deltas(self._connections[user][1], "/ask", {"question": order})

    def generate(self, user: int, order: str) -> AsyncIterator[tuple[int, str]]:
        body = {"question": order, "messages": [{"role": "user", "text": order}]}
        return self._deltas(self._connections[user][0], "/generate", body)

    async def _deltas(self, http: httpx.AsyncClient, path: str, body: Any) -> AsyncIterator[tuple[int, str]]:
        async with http.stream("POST", path, content=orjson.dumps(body)) as response:
            response.raise_for_status()
            async for arrived in events.chunks(response):
                for content in map(events.decode, arrived):
                    if content["type"] == "delta":
                        yield content["token_count"], content["text"]

    async def close(self) -> None:
        for pair in self._connections:
            for http in pair:
                await http.aclose()


@dataclass(slots=True)
class Round:
    """What streams that ran together gave: tokens, seconds, seconds of the coordinator's CPU, lags of paced tokens."""

    tokens: int
    seconds: float
    cpu: float
    lags: list[float] = field(default_factory=list)


async def _round(side: Side, streams: int, tokens: int, pace: float = 0.0) -> Round:
    order = _order(tokens, pace)
    lags: list[float] = []

    async def read(user: int) -> int:
        count = 0
        async for number, text in side.ask(user, order):
            count += number
            if pace:
                now = time.monotonic()
                lags.extend(now - float(due) for due in text.split())
        return count

    cpu = side.coordinator.cpu_seconds()
    began = time.monotonic()
    found = sum(await asyncio.gather(*(read(user) for user in range(streams))))
    seconds = time.monotonic() - began
    if found != streams * tokens:
        raise RuntimeError(f"{found} of {streams * tokens} tokens came")
    return Round(found, seconds, side.coordinator.cpu_seconds() - cpu, lags)


def _order(tokens: int, pace: float = 0.0) -> str:
    return json.dumps({"tokens": tokens, "pace": pace})


async def _rounds(
    sides: dict[str, Side], rounds: int, streams: int, tokens: int, pace: float = 0.0
) -> dict[str, list[Round]]:
    """Rounds of each side, in turn; the first ones warm up and do not count."""
    found: dict[str, list[Round]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        # Which side comes first alternates, so that a drift of the machine meets both.
        for name in sides if number % 2 else reversed(sides):
            measured = await _round(sides[name], streams, tokens, pace)
            if number:
                found[name].append(measured)
    return found


def _rate(rounds: Sequence[Round]) -> float:
    return statistics.median(found.tokens / found.seconds for found in rounds)


def _times(rounds: dict[str, list[Round]], other: str) -> float:
    """How many times the tokens a second of another side gRPC gives: the median of the rounds."""
    pairs = zip(rounds["grpc"], rounds[other], strict=True)
    return statistics.median(one.tokens / one.seconds / (two.tokens / two.seconds) for one, two in pairs)


def _cpu_us(rounds: Sequence[Round]) -> float:
    return sum(found.cpu for found in rounds) / sum(found.tokens for found in rounds) * 1e6


async def _full_speed(sides: dict[str, Side], together: int, rounds: int) -> dict[str, float]:
    name = "" if together > 1 else "_uncoalesced"
    many = await _rounds(sides, rounds, _STREAMS, 4_000 if together > 1 else 400)
    one = await _rounds(sides, rounds, 1, 20_000 if together > 1 else 4_000)
    cpu = {side: _cpu_us(found) for side, found in many.items()}
    figures = {
        f"tokens_per_s_times{name}": round(_times(many, "http"), 3),
        f"tokens_per_s_times_1{name}": round(_times(one, "http"), 3),
        f"cpu_per_token_ratio{name}": round(cpu["grpc"] / cpu["http"], 3),
    }
    for other in ("chunks", "verbatim"):
        figures[f"tokens_per_s_times_{other}{name}"] = round(_times(many, other), 3)
        figures[f"tokens_per_s_times_1_{other}{name}"] = round(_times(one, other), 3)
    for side in sides:
        figures[f"tokens_per_s_{side}{name}"] = round(_rate(many[side]))
        figures[f"tokens_per_s_1_{side}{name}"] = round(_rate(one[side]))
        figures[f"cpu_us_per_token_{side}{name}"] = round(cpu[side], 2)
    return figures


async def _paced(sides: dict[str, Side]) -> dict[str, float]:
    rounds = await _rounds(sides, 2, _STREAMS, _PACED_TOKENS, _PACE)
    cpu = {side: _cpu_us(found) for side, found in rounds.items()}
    figures = {"paced_cpu_per_token_ratio": round(cpu["grpc"] / cpu["http"], 3)}
    for side, found in rounds.items():
        lags = sorted(lag for measured in found for lag in measured.lags)
        figures[f"paced_p50_lag_ms_{side}"] = round(lags[len(lags) // 2] * 1e3, 2)
        figures[f"paced_p99_lag_ms_{side}"] = round(lags[int(len(lags) * 0.99)] * 1e3, 2)
        figures[f"paced_cpu_us_per_token_{side}"] = round(cpu[side], 1)
    return figures


async def _first_token(sides: dict[str, Side]) -> dict[str, float]:
    """What the way through retriever, synthesizer and coordinator adds to the time to the generator's first token."""
    order = _order(1)
    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(_FIRST_TOKENS):
        for name in sides if number % 2 else reversed(sides):
            for way, call in (("ask", sides[name].ask), ("generate", sides[name].generate)):
                began = time.monotonic()
                stream = call(0, order)
                await anext(stream)
                if number:
                    seconds.setdefault((name, way), []).append(time.monotonic() - began)
                async for _ in stream:
                    pass
    added = {
        name: statistics.median(seconds[name, "ask"]) - statistics.median(seconds[name, "generate"]) for name in sides
    }
    figures = {f"added_first_token_ms_{name}": round(value * 1e3, 2) for name, value in added.items()}
    return {"added_first_token_ratio": round(added["grpc"] / added["http"], 3), **figures}


async def _measure(rounds: int) -> dict[str, Any]:
    figures: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        # All programs run before the first channel opens: gRPC dislikes forks.
        served = {together: await _serve(stack, together) for together in (32, 1)}
        for together, programs in served.items():
            sides: dict[str, Side] = {
                "grpc": GrpcSide(*programs["grpc"]),
                "http": HttpSide(*programs["http"]),
                "chunks": HttpSide(*programs["chunks"]),
                "verbatim": HttpSide(*programs["verbatim"]),
            }
            for side in sides.values():
                stack.push_async_callback(side.close)
            figures |= await _full_speed(sides, together, rounds)
            del sides["chunks"], sides["verbatim"]
            if together > 1:
                figures |= await _first_token(sides)
                figures |= await _paced(sides)
    return figures


async def _serve(stack: AsyncExitStack, together: int) -> dict[str, tuple[Program, Program]]:
    """Generator and coordinator of each side."""

    async def start(*arguments: str, **environment: str) -> Program:
        return await stack.enter_async_context(running(*arguments, **environment))

    async def agent(name: str, **peers: Program) -> Program:
        addresses = {f"LOREMESH_ADDRESSES__{peer.upper()}": program.target for peer, program in peers.items()}
        addresses["LOREMESH_COORDINATOR__TOKENS_TOGETHER"] = str(together)
        return await start("loremesh_agents.cli", "serve", name, "--free-ports", **addresses)

    async def stage(name: str, *options: str, **peers: Program) -> Program:
        addresses = (option for peer, program in peers.items() for option in (f"--{peer}", program.target))
        return await start(_PIPELINE, name, *addresses, *options)

    retriever = await start("bench.canned_retriever")
    generator = await start("bench.relay", "generator", str(together))
    synthesizer = await agent("synthesizer", generator=generator)
    mesh = await agent("coordinator", retriever=retriever, synthesizer=synthesizer, generator=generator)
    stages = {"retriever": await stage("retriever"), "generator": await stage("generator", "--together", str(together))}
    stages["synthesizer"] = await stage("synthesizer", generator=stages["generator"])
    return {
        "grpc": (generator, mesh),
        **{
            name: (stages["generator"], await stage("coordinator", "--relay", relay, **stages))
            for name, relay in (("http", "lines"), ("chunks", "chunks"), ("verbatim", "verbatim"))
        },
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--rounds", type=int, default=5, help="Rounds that the medians are taken over.")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.rounds))
