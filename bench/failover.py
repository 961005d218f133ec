"""What a client sees of engines that die: client -> coordinator -> generator -> several vLLM, of which one after the other is killed while it writes.

Each round asks some questions at once, greedily. When so many tokens of them have come as was drawn, an engine that writes is killed with SIGKILL, as long as
another one is there; it starts again in the background, and the next round begins when two are there. Ctrl-C ends after the round. Every answer is compared, token by token, with
the one to the same question that came while nobody was killed and nothing else was asked.

The engines compute in single precision, where batches of different shapes hardly ever have another likeliest token. How often they do, `noise` tells: it
counts the answers that differ although nobody was killed, where only all questions were asked at once.
"""

import argparse
import asyncio
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import grpc
import uvloop
from loremesh.v1 import answer_pb2

from bench.vllm_mesh import Mesh, in_front_of
from tests.engines.servers.vllm import VllmServer

_QUESTIONS = 16
_AT_ONCE = 4
_TOKENS = 400
_LONGEST_WAIT = 600.0
_BAR = 40


class Answer:
    """What came of one question.

    Attributes:
        token_ids: The tokens.
        text: Their text.
        in_order: Whether each delta began where the one before had ended.
        gaps_ms: Between the last token of an engine and the first one of the next.
        failure: Why there was no end; empty where there was one.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.in_order = True
        self.gaps_ms: list[float] = []
        self.failure = ""
        self._arrivals: list[tuple[int, float]] = []

    def take(self, delta: answer_pb2.TokenDelta) -> None:
        self.in_order = self.in_order and delta.sequence == len(self.token_ids)
        self.token_ids += delta.token_ids
        self.text += delta.text
        self._arrivals.append((len(self.token_ids), time.monotonic()))

    def end(self, completion: answer_pb2.Completion) -> None:
        for resumption in completion.resumptions:
            before = [when for count, when in self._arrivals if count <= resumption.at_token]
            after = [when for count, when in self._arrivals if count > resumption.at_token]
            if before and after:
                self.gaps_ms.append((after[0] - before[-1]) * 1e3)
        if completion.finish_reason not in (answer_pb2.FINISH_REASON_STOP, answer_pb2.FINISH_REASON_LENGTH):
            self.failure = answer_pb2.FinishReason.Name(completion.finish_reason)

    def equals(self, whole: "Answer") -> bool:
        return self.in_order and (self.token_ids, self.text) == (whole.token_ids, whole.text)


async def _answer(mesh: Mesh, question: str, note: Callable[[int], None] = lambda _: None) -> Answer:
    """Asks; `note` is told how many tokens have come with each message."""
    answer = Answer()
    answer.failure = "no completion"
    try:
        async for event in mesh.ask(question, _TOKENS):
            if event.HasField("delta"):
                answer.take(event.delta)
                note(len(event.delta.token_ids))
            elif event.HasField("completion"):
                answer.failure = ""
                answer.end(event.completion)
    except grpc.aio.AioRpcError as error:
        answer.failure = f"{error.code().name}: {error.details()}"
    return answer


class _Killer:
    """Kills engines that write, and starts them again in the background."""

    def __init__(self, engines: tuple[VllmServer, ...], chosen: random.Random) -> None:
        self._chosen = chosen
        self._alive = list(engines)
        self._starting: set[asyncio.Task[None]] = set()
        self._killing = asyncio.Lock()
        self.kills = 0

    async def ready(self) -> int:
        """Waits until two engines are there; gives how many are."""
        async with asyncio.timeout(_LONGEST_WAIT):
            while len(self._alive) < 2:
                done, _ = await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        return len(self._alive)

    async def kill(self) -> None:
        """Kills one that writes, where another is there and one writes."""
        async with self._killing:
            alive = list(self._alive)
            running = await asyncio.gather(*(asyncio.to_thread(engine.running) for engine in alive))
            writing = [engine for engine, count in zip(alive, running, strict=True) if count]
            if len(alive) < 2 or not writing:
                return
            victim = self._chosen.choice(writing)
            self._alive.remove(victim)
            await asyncio.to_thread(victim.kill)
            self.kills += 1
            task = asyncio.create_task(self._start_again(victim))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def settled(self) -> None:
        """Waits until all are there that start."""
        await asyncio.gather(*self._starting)

    async def _start_again(self, engine: VllmServer) -> None:
        await asyncio.to_thread(engine.restart)
        self._alive.append(engine)


class _Round:
    """Some questions at once, and kills at the tokens that were drawn."""

    def __init__(self, mesh: Mesh, killer: _Killer, places: list[int]) -> None:
        self._mesh = mesh
        self._killer = killer
        self._places = sorted(places)
        self._tokens = 0
        self._killing: list[asyncio.Task[None]] = []

    async def answers(self, questions: list[str]) -> list[Answer]:
        answers = await asyncio.gather(*(_answer(self._mesh, question, self._note) for question in questions))
        await asyncio.gather(*self._killing)
        return answers

    def _note(self, tokens: int) -> None:
        self._tokens += tokens
        while self._places and self._tokens >= self._places[0]:
            del self._places[0]
            self._killing.append(asyncio.create_task(self._killer.kill()))


async def _measure(kind: str, kills: int, engines: int, seed: int) -> dict[str, Any]:
    chosen = random.Random(seed)
    questions = [
        f"Question {number}: what does statement {chosen.getrandbits(32)} say?" for number in range(_QUESTIONS)
    ]
    servers = tuple(VllmServer(kind) for _ in range(engines))
    killer = _Killer(servers, chosen)
    try:
        await asyncio.gather(*(asyncio.to_thread(server.wait_until_ready) for server in servers))
        async with in_front_of(servers, log_level="ERROR") as mesh:
            return await _killed(mesh, killer, questions, chosen, kills) | {"adapter": kind, "engines": engines}
    finally:
        await asyncio.wait([asyncio.ensure_future(killer.settled())])
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in servers))


async def _killed(
    mesh: Mesh, killer: _Killer, questions: list[str], chosen: random.Random, kills: int
) -> dict[str, Any]:
    wholes = {question: await _answer(mesh, question) for question in questions}
    again = await asyncio.gather(*(_answer(mesh, question) for question in questions))
    noise = sum(not answer.equals(whole) for answer, whole in zip(again, wholes.values(), strict=True))
    if failures := [answer.failure for answer in [*wholes.values(), *again] if answer.failure]:
        raise RuntimeError(f"answers failed while nobody was killed: {failures[0]}")
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, enough.set)
    answers = 0
    broken: list[str] = []
    wrong: list[str] = []
    gaps: list[float] = []
    while killer.kills < kills and not enough.is_set():
        spare = min(await killer.ready() - 1, kills - killer.kills)
        asked = chosen.sample(questions, _AT_ONCE)
        most = int(sum(len(wholes[question].token_ids) for question in asked) * 0.8)
        found = await _Round(mesh, killer, [chosen.randint(1, most) for _ in range(spare)]).answers(asked)
        answers += len(found)
        for question, answer in zip(asked, found, strict=True):
            gaps += answer.gaps_ms
            if answer.failure:
                broken.append(answer.failure)
            elif not answer.equals(wholes[question]):
                wrong.append(question)
        done = killer.kills * _BAR // kills
        bar = f"[{'#' * done}{' ' * (_BAR - done)}]"
        told = f"{killer.kills}/{kills} kills, {len(gaps)} answers went on, {len(broken)} broken, {len(wrong)} wrong"
        print(f"\r{bar} {told}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for failure in broken:
        print(failure, file=sys.stderr)
    return {
        "gap_ms_p50": _percentile(gaps, 0.5),
        "gap_ms_p99": _percentile(gaps, 0.99),
        "broken": len(broken),
        "wrong": len(wrong),
        "kills": killer.kills,
        "answers": answers,
        "continuations": len(gaps),
        "noise": noise,
    }


def _percentile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    if share == 0.5:
        return round(statistics.median(values), 1)
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument(
        "--kills",
        type=int,
        default=100,
        help="Engines to kill, one after the other; Ctrl-C ends earlier with the figures so far.",
    )
    parser.add_argument(
        "--adapter", choices=("grpc", "http"), default="grpc", help="How the generator asks the engines."
    )
    parser.add_argument("--engines", type=int, default=3, help="Engines; with more of them, more start again at once.")
    parser.add_argument(
        "--seed", type=int, default=1, help="Of the questions and of the tokens at which one is killed."
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures; gives the figures."""
    if arguments.engines < 2:
        raise SystemExit(f"--engines must be at least 2, not {arguments.engines}: who would go on?")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(arguments.adapter, arguments.kills, arguments.engines, arguments.seed))
