"""Reads a stream ahead of its consumer, by a bounded number of items."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self, TypeVar

_Item = TypeVar("_Item")

_AHEAD = 64
_CLOCK_STEP = 0.001
"""Seconds by which event loops round time down."""


class ReadAhead(Generic[_Item]):
    """A stream that is read by a task of its own, so that its consumer can wait with a time limit and take all that is ready.

    An asynchronous context manager: leaving it stops the task and closes the stream. Back-pressure reaches the stream after 64 items.

    Args:
        stream: The stream; closed by this.
        silence: Seconds after which the consumer hears that there is nothing yet; None for never.
    """

    def __init__(self, stream: AsyncGenerator[_Item], silence: float | None = None) -> None:
        self._stream = stream
        self._silence = silence
        self._waiting_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._gathering: asyncio.TimerHandle | None = None
        self._ready: deque[_Item] = deque()
        self._consumer: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        self._task.add_done_callback(self._wake)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for timer in (self._timer, self._gathering):
            if timer is not None:
                timer.cancel()
        task = self._task
        if task is not None and not task.done():
            task.cancel()
        if task is not None:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _read(self) -> None:
        ready = self._ready
        loop = asyncio.get_running_loop()
        async with aclosing(self._stream) as stream:
            async for item in stream:
                ready.append(item)
                if self._gathering is None or len(ready) >= _AHEAD:
                    self._wake()
                if len(ready) >= _AHEAD:
                    self._room = loop.create_future()
                    await self._room

    def _wake(self, _: object = None) -> None:
        consumer = self._consumer
        if consumer is not None and not consumer.done():
            consumer.set_result(None)

    def _look(self) -> None:
        """Wakes a consumer that has waited long enough. A timer for each wait would cost more than the wait."""
        loop = asyncio.get_running_loop()
        rest = self._waiting_since + (self._silence or 0.0) - loop.time()
        if rest < _CLOCK_STEP:
            self._wake()
            rest = self._silence or 0.0
        self._timer = loop.call_later(rest, self._look)

    def _gathered(self) -> None:
        self._gathering = None
        if self._ready:
            self._wake()

    async def take(self, pause: float = 0.0) -> list[_Item] | None:
        """All items that are ready, at least one; an empty list after a silence, None when the stream has ended.

        Args:
            pause: Seconds for which items are gathered that come meanwhile; less where the stream ends or there is no room for more.

        Raises:
            Exception: What the stream raised, after its items.
        """
        task = self._task
        if task is None:
            raise RuntimeError("the stream is not being read")
        ready = self._ready
        gathers = pause > 0 and len(ready) < _AHEAD
        if (gathers or not ready) and not task.done():
            loop = asyncio.get_running_loop()
            self._consumer = loop.create_future()
            if gathers and self._gathering is None:
                self._gathering = loop.call_later(pause, self._gathered)
            if self._silence is not None:
                self._waiting_since = loop.time()
                if self._timer is None:
                    self._timer = loop.call_later(self._silence, self._look)
            try:
                await self._consumer
            finally:
                if self._gathering is not None:
                    self._gathering.cancel()
                    self._gathering = None
            if not ready and not task.done():
                return []
        if not ready:
            await task
            return None
        items = list(ready)
        ready.clear()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return items
