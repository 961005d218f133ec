"""How many paced streams a coordinator holds: 20 tokens a second each, one token a message, until the 99th percentile of the lag passes 100 ms.

A token carries the time at which it was due; its lag is how much later a client had it. Streams begin spread over a second, run until they have settled, and
are then measured for some seconds. The number is found by doubling and bisection. One coordinator process is measured, and one coordinator with
`--workers`; its workers share a port, so that the kernel gives each connection to one of them.

Clients and generators are several processes each, and bare of all that agents do, so that they are not what fails first; they share the machine with the
coordinator all the same.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import uvloop
from loremesh.v1 import (
    answer_pb2,
    coordinator_service_pb2,
    coordinator_service_pb2_grpc,
    generator_service_pb2,
    generator_service_pb2_grpc,
)

from bench.processes import Program, running

_PACE = 20.0
_MOST_LAG = 0.1
_SPREAD = 1.0
_SETTLE = 1.5
_SECONDS = 4.0
_LATE = 1.0
"""Seconds after its due time at which a token counts as lost."""
_FIRST = 100
_MOST = 6400
_EXACT = 0.06
"""How close the bisection comes: share of the number."""
_CHANNELS = 16
_PROGRAMS = 2
"""Processes of clients, and of generators."""
_BUDGET = 60.0


class PacedGenerator(generator_service_pb2_grpc.GeneratorServiceServicer):
    """Writes tokens at the pace that is measured, for as many seconds as the question says; each says when it was due."""

    async def Generate(  # noqa: N802 - the name in the contract
        self, request: generator_service_pb2.GenerateRequest, _: Any
    ) -> AsyncIterator[generator_service_pb2.GenerateResponse]:
        began = time.monotonic()
        yield generator_service_pb2.GenerateResponse(
            start=generator_service_pb2.GenerationStart(model="paced", model_fingerprint="paced")
        )
        for sequence in range(int(float(request.question) * _PACE)):
            due = began + sequence / _PACE
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            delta = answer_pb2.TokenDelta(text=f"{due:.6f}", sequence=sequence, token_count=1)
            yield generator_service_pb2.GenerateResponse(delta=delta)
        completion = answer_pb2.Completion(finish_reason=answer_pb2.FINISH_REASON_STOP)
        yield generator_service_pb2.GenerateResponse(completion=completion)


async def _generate(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    generator_service_pb2_grpc.add_GeneratorServiceServicer_to_server(PacedGenerator(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("generator", f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


async def _read(target: str) -> None:
    """Answers each order of a line, a number of streams and the time at which to begin, with the lags in milliseconds, counted."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in range(_CHANNELS)]
    stubs = [coordinator_service_pb2_grpc.CoordinatorServiceStub(channel) for channel in channels]
    print("clients", target, flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        order = json.loads(line)
        streams: int = order["streams"]
        measured = order["begin"] + _SPREAD + _SETTLE
        lags: Counter[int] = Counter()
        with suppress(TimeoutError):  # what has not come by then counts as late
            async with asyncio.timeout_at(measured + _SECONDS + _LATE), asyncio.TaskGroup() as group:
                for number in range(streams):
                    begin = order["begin"] + number / streams * _SPREAD
                    group.create_task(_count_lags(stubs[number % _CHANNELS], begin, measured, lags))
        # A stream that begins later within the pace may have one token less in the time that is measured.
        expected = streams * round(_PACE * _SECONDS - 1)
        lags[int(_LATE * 1000)] += max(0, expected - lags.total())
        print(json.dumps(lags), flush=True)


async def _count_lags(stub: Any, begin: float, measured: float, lags: Counter[int]) -> None:
    await asyncio.sleep(begin - time.monotonic())
    length = measured + _SECONDS - begin
    question = coordinator_service_pb2.AskRequest(question=str(length), route=coordinator_service_pb2.ROUTE_DIRECT)
    try:
        async for event in stub.Ask(question, timeout=_BUDGET):
            if event.HasField("delta"):
                due = float(event.delta.text)
                if measured <= due < measured + _SECONDS:
                    lags[int((time.monotonic() - due) * 1000)] += 1
    except grpc.aio.AioRpcError:
        return  # what it did not bring counts as late


class _Load:
    """The clients of one coordinator."""

    def __init__(self, coordinator: Program, clients: list[Program]) -> None:
        self._coordinator = coordinator
        self._clients = clients
        self.cpu_us_per_message = 0.0

    async def p99_lag(self, streams: int) -> float:
        """Seconds by which one token in a hundred is late."""
        share = -(-streams // len(self._clients))
        order = json.dumps({"streams": share, "begin": time.monotonic() + 0.2})
        cpu = self._coordinator.cpu_seconds()
        answers = await asyncio.gather(*(clients.order(order) for clients in self._clients))
        cpu = self._coordinator.cpu_seconds() - cpu
        lags = sum(
            (Counter({int(lag): count for lag, count in json.loads(answer).items()}) for answer in answers),
            Counter[int](),
        )
        self.cpu_us_per_message = cpu / (share * len(self._clients) * _PACE * (_SPREAD / 2 + _SETTLE + _SECONDS)) * 1e6
        rest = lags.total() * 0.99
        for lag in sorted(lags):
            rest -= lags[lag]
            if rest <= 0:
                return (lag + 1) / 1000
        return _LATE

    async def held(self) -> tuple[int, float]:
        """Most streams whose lag stays small, and the coordinator's CPU for a message of theirs in microseconds."""
        good, bad, cpu = 0, _FIRST, 0.0
        while bad <= _MOST and await self.p99_lag(bad) <= _MOST_LAG:
            good, bad, cpu = bad, bad * 2, self.cpu_us_per_message
        while bad - good > _EXACT * bad:
            middle = (good + bad) // 2
            if await self.p99_lag(middle) <= _MOST_LAG:
                good, cpu = middle, self.cpu_us_per_message
            else:
                bad = middle
        return good, cpu


def _free_port() -> int:
    """A port that was free a moment ago: programs that share one cannot take any."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


async def _held(workers: int) -> tuple[int, float]:
    port = _free_port()
    environment = {
        "LOREMESH_ADDRESSES__COORDINATOR": f"127.0.0.1:{_free_port()}",
        "LOREMESH_SERVER__MAX_IN_FLIGHT": str(2 * _MOST),
        "LOREMESH_COORDINATOR__TOKENS_TOGETHER": "1",
    }
    async with AsyncExitStack() as stack:
        for _ in range(_PROGRAMS):
            generator = await stack.enter_async_context(running("bench.streams", "generator", str(port)))
        environment["LOREMESH_ADDRESSES__GENERATOR"] = generator.target
        serve = ("loremesh_agents.cli", "serve", "coordinator", "--workers", str(workers))
        coordinator = await stack.enter_async_context(running(*serve, workers=workers, **environment))
        target = coordinator.target
        clients = [
            await stack.enter_async_context(running("bench.streams", "clients", target)) for _ in range(_PROGRAMS)
        ]
        return await _Load(coordinator, clients).held()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="Processes of the coordinator with several."
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    one, cpu = asyncio.run(_held(1))
    several, _ = asyncio.run(_held(arguments.workers))
    return {
        "held_per_process": one,
        "held_all_workers": several,
        "workers": arguments.workers,
        "cpu_us_per_message": round(cpu, 1),
    }


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        match sys.argv[1:]:
            case ["generator", port]:
                runner.run(_generate(int(port)))
            case ["clients", target]:
                runner.run(_read(target))
            case _:
                raise SystemExit("this is started by python -m bench streams")
