"""Sending the changes of one write in parts, each while the next is computed."""

import asyncio

from loremesh_agents.adapters.graph.versioned.engine import Changes, GraphEngine
from loremesh_agents.domain.deadline import Deadline


class Sending:
    """The parts of one write: sent in order, one at a time, in tasks that `stop` ends.

    Args:
        engine: Takes them.
        unless: Id of the decision on the write.
        deadline: When to give up.
    """

    def __init__(self, engine: GraphEngine, unless: str, deadline: Deadline) -> None:
        self._engine = engine
        self._unless = unless
        self._deadline = deadline
        self._parts: list[asyncio.Task[None]] = []

    @property
    def begun(self) -> bool:
        """Whether anything may have been written."""
        return bool(self._parts)

    def send(self, changes: Changes) -> None:
        """Sends a part after those before it; `finish` says what became of it."""
        self._parts.append(asyncio.create_task(self._send(changes, self._parts[-1] if self._parts else None)))

    async def finish(self) -> None:
        """Waits until all parts are there.

        Raises:
            LoremeshError: As `GraphEngine.apply`, of the first part that failed; none after it was sent.
        """
        if self._parts:
            await self._parts[-1]

    async def stop(self) -> None:
        """Breaks off what is under way."""
        for part in self._parts:
            part.cancel()
        await asyncio.gather(*self._parts, return_exceptions=True)

    async def _send(self, changes: Changes, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        await self._engine.apply(changes, unless=self._unless, deadline=self._deadline)
