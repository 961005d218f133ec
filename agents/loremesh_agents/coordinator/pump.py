"""Reads a stream ahead of its consumer, by a bounded number of items."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self, TypeVar

_Item = TypeVar("_Item")

_AHEAD = 64


class Pump(Generic[_Item]):
    """A stream that is read by a task of its own, so that its consumer can wait with a time limit and take all that is ready.

    An asynchronous context manager: leaving it stops the task and closes the stream. Back-pressure reaches the stream after 64 items.

    Args:
        stream: The stream; closed by the pump.
    """

    def __init__(self, stream: AsyncGenerator[_Item]) -> None:
        self._stream = stream
        self._ready: asyncio.Queue[_Item] = asyncio.Queue(_AHEAD)
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = self._task
        if task is not None and not task.done():
            task.cancel()
        if task is not None:
            await asyncio.wait([task])
            if not task.cancelled():
                task.exception()

    async def _read(self) -> None:
        try:
            async with aclosing(self._stream) as stream:
                async for item in stream:
                    await self._ready.put(item)
                    self._news.set()
        finally:
            self._news.set()

    async def take(self, timeout: float) -> list[_Item] | None:
        """All items that are ready, at least one; an empty list when none came in time, None when the stream has ended.

        Args:
            timeout: Seconds to wait.

        Raises:
            Exception: What the stream raised, after its items.
        """
        task = self._task
        if task is None:
            raise RuntimeError("the pump is not running")
        while self._ready.empty():
            if task.done():
                await task
                return None
            self._news.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._news.wait()
            except TimeoutError:
                return []
        return [self._ready.get_nowait() for _ in range(self._ready.qsize())]
