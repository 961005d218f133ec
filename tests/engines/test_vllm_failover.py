"""Real engines that die, fall silent or lose their connection while they write: the reader of the pool sees one answer, whole."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from loremesh_agents.adapters.model.pool import EnginePool
from loremesh_agents.domain.answer import Resumption, TokenDelta
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.ports.language_model import GenerationEnd, GenerationRequest, LanguageModel
from tests.engines.cut_proxy import proxy
from tests.engines.generations import KINDS, asked, ids, opened, quiet, soon, text, written
from tests.engines.servers.vllm import VllmServer, vllm_server

KILLS = 5
CUTS = 45
TOKENS = 600
CUT_TOKENS = 60
QUESTIONS = 5


@asynccontextmanager
async def engine_to_harm(kind: str, **options: object) -> AsyncIterator[VllmServer]:
    """An engine besides the one that all tests share."""
    server = VllmServer(kind, **options)
    try:
        await asyncio.to_thread(server.wait_until_ready)
        yield server
    finally:
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def pool_of(**engines: LanguageModel) -> AsyncIterator[EnginePool]:
    pool = EnginePool(engines)
    try:
        yield pool
    finally:
        await pool.close()


def question(number: int, tokens: int) -> GenerationRequest:
    request = asked(max_tokens=tokens)
    return replace(request, messages=(Message(Role.SYSTEM, f"Case {number}."), *request.messages))


async def harmed(
    pool: EnginePool, request: GenerationRequest, at: int, harm: Callable[[], Awaitable[object]]
) -> tuple[list[TokenDelta], GenerationEnd]:
    """What comes of a generation to which harm is done when so many of its tokens have come."""
    deltas: list[TokenDelta] = []
    harmless = True
    async with aclosing(pool.generate(request, deadline=soon())) as events:
        async for event in events:
            if isinstance(event, GenerationEnd):
                return deltas, event
            assert isinstance(event, TokenDelta)
            deltas.append(event)
            if harmless and delta_end(event) >= at:
                harmless = False
                await harm()
    raise AssertionError("the stream has no end")


def delta_end(delta: TokenDelta) -> int:
    return delta.sequence + delta.token_count


def assert_one_answer(
    deltas: list[TokenDelta], end: GenerationEnd, whole: list[TokenDelta], whole_end: GenerationEnd
) -> None:
    assert text(deltas) == text(whole)
    assert ids(deltas) == ids(whole)
    places = [delta.sequence for delta in deltas]
    assert places == [sum(delta.token_count for delta in deltas[:number]) for number in range(len(deltas))]
    assert (end.finish_reason, end.usage) == (whole_end.finish_reason, whole_end.usage)


async def taken_by(server: VllmServer, pool: EnginePool, tokens: int) -> GenerationRequest:
    """A request that the pool gives to this server."""
    async with asyncio.timeout(120):
        for number in range(1_000_000):
            request = question(number, tokens)
            async with aclosing(pool.generate(request, deadline=soon())) as events:
                await anext(events)
                if await asyncio.to_thread(server.running):
                    return request
    raise AssertionError("the pool never asks this server")


async def killed_again_and_again(kind: str) -> None:
    chosen = random.Random(11)
    other = vllm_server(kind)
    async with (
        engine_to_harm(kind) as doomed,
        pool_of(doomed=opened(doomed), other=opened(other)) as pool,
    ):
        went_on = 0
        killed = False

        async def kill() -> None:
            nonlocal killed
            # It may have written all of it while we read the beginning.
            if await asyncio.to_thread(doomed.running):
                killed = True
                await asyncio.to_thread(doomed.kill)

        # One that had written its last token between the question whether it writes and the kill does not count.
        while went_on < KILLS:
            if killed:
                await asyncio.to_thread(doomed.restart)
                killed = False
            request = await taken_by(doomed, pool, TOKENS)
            whole = await written(pool, request)
            at = chosen.randint(1, 300)
            deltas, end = await harmed(pool, request, at, kill)
            assert_one_answer(deltas, end, *whole)
            assert all(resumption.exact and resumption.at_token >= at for resumption in end.resumptions)
            went_on += len(end.resumptions)


@pytest.mark.timeout(1200)  # twelve starts of an engine, of 25 seconds of a processor each
async def test_ten_engines_are_killed_and_no_token_is_lost_or_repeated() -> None:
    for kind in KINDS:
        await asyncio.to_thread(vllm_server, kind)
    # At the same time, for most of it is waiting until an engine has started again.
    async with asyncio.TaskGroup() as group:
        for kind in KINDS:
            group.create_task(killed_again_and_again(kind))


@pytest.mark.parametrize("kind", KINDS)
async def test_wherever_a_connection_is_cut_no_token_is_lost_or_repeated(kind: str) -> None:
    chosen = random.Random(12)
    server = await asyncio.to_thread(vllm_server, kind)
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(proxy(server.target)) for _ in range(2)]
        pool = await stack.enter_async_context(
            pool_of(one=opened(server, target=one.target), two=opened(server, target=two.target))
        )
        requests = [question(number, CUT_TOKENS) for number in range(QUESTIONS)]
        wholes = [await written(pool, request) for request in requests]
        before = one.passed + two.passed
        await written(pool, requests[0])
        most = one.passed + two.passed - before
        went_on = 0
        # Some cuts meet a question about the model, or an answer that is written already: more of them on a slow machine.
        while one.cuts + two.cuts < CUTS or went_on < CUTS // 3:
            number = chosen.randrange(QUESTIONS)
            if chosen.random() < 0.5:
                # Each of them once, wherever that is: in the answer, or in a question about the model.
                for way in (one, two):
                    way.cut_after(chosen.randint(1, most))
                deltas, end = await written(pool, requests[number])
                for way in (one, two):
                    way.cut_after(None)
            else:

                async def cut() -> None:
                    one.cut()
                    two.cut()

                deltas, end = await harmed(pool, requests[number], chosen.randint(1, CUT_TOKENS - 20), cut)
            assert_one_answer(deltas, end, *wholes[number])
            assert all(resumption.exact for resumption in end.resumptions)
            went_on += len(end.resumptions)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_engine_that_falls_silent_is_left_and_asked_again_when_it_is_back(kind: str) -> None:
    other = await asyncio.to_thread(vllm_server, kind)
    # Two workers over gRPC, of which one stops; the engine's own process otherwise. Health stays good in both cases.
    options = {"executor": "mp", "arguments": ("--tensor-parallel-size", "2")} if kind == "grpc" else {}
    async with (
        engine_to_harm(kind, **options) as stopped,
        pool_of(stopped=opened(stopped, idle_timeout=5), other=opened(other)) as pool,
    ):
        request = await taken_by(stopped, pool, TOKENS)
        whole, whole_end = await written(pool, request)
        assert len(ids(whole)) == TOKENS

        async def stop() -> None:
            stopped.signal_worker(signal.SIGSTOP)

        end = whole_end
        # It may have written all of it while we read the beginning.
        while not end.resumptions:
            try:
                deltas, end = await harmed(pool, request, 100, stop)
            finally:
                stopped.signal_worker(signal.SIGCONT)
            assert_one_answer(deltas, end, whole, whole_end)
        assert end.resumptions == (Resumption(end.resumptions[0].at_token, exact=True),)
        # What it was at when it stopped, it has dropped; and it writes again.
        await quiet(stopped)
        await taken_by(stopped, pool, TOKENS)
