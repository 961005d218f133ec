"""How long tokens wait for one another."""

import asyncio
import math
from contextlib import ExitStack

from loremesh_agents.domain.message_pace import MessagePace
from tests.unit.runtime.support import until


class LateClock:
    """A clock on which every timer of 10 ms goes off so much too late."""

    def __init__(self, late: float) -> None:
        self.late = late
        self.read = 0
        self._now = 0.0

    def __call__(self) -> float:
        self.read += 1
        self._now += 0.01 + self.late
        return self._now


async def looked(clock: LateClock, times: int = 40) -> None:
    before = clock.read
    await until(lambda: clock.read >= before + times)


async def test_nothing_waits_where_the_loop_keeps_up() -> None:
    clock = LateClock(0.0004)
    pace = MessagePace(clock=clock)
    with ExitStack() as streams:
        for _ in range(64):
            streams.enter_context(pace.stream())
        await looked(clock)
        assert pace.pause == 0


async def test_the_pause_grows_with_the_lag_and_goes_with_it() -> None:
    clock = LateClock(0.001)
    pace = MessagePace(clock=clock)
    with ExitStack() as streams:
        for _ in range(64):
            streams.enter_context(pace.stream())
        await looked(clock)
        little = pace.pause
        clock.late = 0.0015
        await looked(clock)
        assert 0 < little < pace.pause < 0.05
        clock.late = 1.0
        await looked(clock)
        assert math.isclose(pace.pause, 0.032), "half a millisecond for each stream"
        for _ in range(64):
            streams.enter_context(pace.stream())
        assert pace.pause == 0.05, "and no more than that"
        clock.late = 0.0
        await looked(clock, 120)
        assert pace.pause == 0


async def test_a_stream_by_itself_hardly_waits_however_late_the_loop_is() -> None:
    clock = LateClock(1.0)
    pace = MessagePace(clock=clock)
    with pace.stream():
        await looked(clock)
        assert 0 < pace.pause <= 0.0005


async def test_without_streams_nobody_looks() -> None:
    clock = LateClock(0.0)
    pace = MessagePace(clock=clock)
    with pace.stream():
        await looked(clock, 2)
    read = clock.read
    await asyncio.sleep(0.03)  # time in which two timers would go off
    assert clock.read == read
    with pace.stream():
        await looked(clock, 2)
