"""A stream that is read ahead of its consumer."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from loremesh_agents.domain.read_ahead import ReadAhead


class Numbers:
    """A stream of numbers that notes how far it was read and whether it was closed."""

    def __init__(self, count: int, gate: asyncio.Event | None = None) -> None:
        self.count = count
        self.gate = gate
        self.read = 0
        self.closed = False

    async def stream(self) -> AsyncGenerator[int]:
        try:
            for number in range(self.count):
                self.read += 1
                yield number
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.closed = True


async def test_what_is_ready_comes_together_and_the_end_is_none() -> None:
    async with ReadAhead(Numbers(10).stream()) as ahead:
        assert await ahead.take() == list(range(10))
        assert await ahead.take() is None
        assert await ahead.take() is None


async def test_nothing_is_lost_and_reading_stops_at_the_bound() -> None:
    numbers = Numbers(1000)
    taken: list[int] = []
    async with ReadAhead(numbers.stream()) as ahead:
        while (items := await ahead.take()) is not None:
            taken += items
            assert numbers.read - len(taken) <= 64
    assert taken == list(range(1000))


async def test_a_silence_gives_an_empty_list_and_the_stream_goes_on() -> None:
    gate = asyncio.Event()
    async with ReadAhead(Numbers(1, gate).stream(), silence=0.001) as ahead:
        assert await ahead.take() == [0]
        assert await ahead.take() == []
        assert await ahead.take() == []
        gate.set()
        while (items := await ahead.take()) is not None:
            assert items == []


async def test_leaving_closes_the_stream_at_any_point() -> None:
    for taken in (0, 1):
        numbers = Numbers(1000)
        async with ReadAhead(numbers.stream()) as ahead:
            for _ in range(taken):
                await ahead.take()
        assert numbers.closed or not numbers.read


async def test_an_error_comes_after_the_items_before_it() -> None:
    async def broken() -> AsyncGenerator[int]:
        yield 1
        raise RuntimeError("broken")

    async with ReadAhead(broken()) as ahead:
        assert await ahead.take() == [1]
        with pytest.raises(RuntimeError, match="broken"):
            await ahead.take()


async def test_a_cancelled_take_loses_nothing() -> None:
    gate = asyncio.Event()

    async def late() -> AsyncGenerator[int]:
        await gate.wait()
        yield 1

    async with ReadAhead(late()) as ahead:
        waiting = asyncio.create_task(ahead.take())
        await asyncio.wait([waiting], timeout=0.001)
        waiting.cancel()
        gate.set()
        assert await ahead.take() == [1]


async def trickle(count: int, gate: asyncio.Event) -> AsyncGenerator[int]:
    """Numbers, each some turns of the loop after the one before; then nothing until the gate opens."""
    for number in range(count):
        for _ in range(5):
            await asyncio.sleep(0)
        yield number
    await gate.wait()


async def test_a_pause_gathers_what_comes_meanwhile() -> None:
    gate = asyncio.Event()
    async with ReadAhead(trickle(20, gate)) as ahead:
        assert await ahead.take() == [0], "without a pause the first one comes at once"
        assert await ahead.take(0.05) == list(range(1, 20))
        gate.set()
        assert await ahead.take(0.05) is None


async def test_after_a_pause_in_which_nothing_came_the_next_item_comes_at_once() -> None:
    gate = asyncio.Event()

    async def late() -> AsyncGenerator[int]:
        await gate.wait()
        yield 1
        await asyncio.Event().wait()

    async with ReadAhead(late()) as ahead:
        taking = asyncio.create_task(ahead.take(0.001))
        done, _ = await asyncio.wait([taking], timeout=0.02)
        assert not done
        gate.set()
        async with asyncio.timeout(5):
            assert await taking == [1]


@pytest.mark.parametrize("count", [3, 64], ids=["the end of the stream", "no room for more"])
async def test_a_pause_ends_with(count: int) -> None:
    gate = asyncio.Event()
    if count < 64:
        gate.set()
    async with ReadAhead(trickle(count, gate)) as ahead, asyncio.timeout(5):
        assert await ahead.take(60) == list(range(count))
        gate.set()
        assert await ahead.take() is None


async def test_leaving_ends_a_pause() -> None:
    async with asyncio.timeout(5), ReadAhead(trickle(1, asyncio.Event())) as ahead:
        taking = asyncio.create_task(ahead.take(60))
        await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert await ahead.take() == [0], "and the pause of a take that was cancelled with it"
