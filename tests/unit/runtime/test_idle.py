import asyncio
import time

from loremesh_agents.runtime.idle import IdleTimer


async def test_it_goes_off_once_when_nothing_has_happened():
    gone = asyncio.Event()
    began = time.monotonic()
    timer = IdleTimer(0.02, lambda: began, gone.set)
    await asyncio.wait_for(gone.wait(), 5)
    assert timer.expired
    assert time.monotonic() - began >= 0.019


async def test_activity_puts_it_off():
    gone = asyncio.Event()
    began = time.monotonic()
    # Somebody was active until 60 ms from now.
    timer = IdleTimer(0.02, lambda: min(time.monotonic(), began + 0.06), gone.set)
    await asyncio.wait_for(gone.wait(), 5)
    assert timer.expired
    assert time.monotonic() - began >= 0.079


async def test_a_stopped_one_stays_silent():
    gone = asyncio.Event()
    IdleTimer(0.005, lambda: 0.0, gone.set).stop()
    other = asyncio.Event()
    IdleTimer(0.02, lambda: 0.0, other.set)
    await asyncio.wait_for(other.wait(), 5)
    assert not gone.is_set()
