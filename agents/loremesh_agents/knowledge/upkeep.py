"""Keeps derived indexes up with the graph, and the graph store itself tidy, in the background."""

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Protocol

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import LoremeshError, NotFound
from loremesh_agents.ports.derived import DerivedIndex

_log = logging.getLogger(__name__)
_SECONDS = 600.0
"""Time that one round may take."""
_SWEEP_SECONDS = 60.0
"""Time that one removal may take."""
_LONGEST_PAUSE = 15.0


class Sweep(Protocol):
    """Removes a bounded part of what no reader of a store needs any more; gives whether there may be more."""

    def __call__(self, *, deadline: Deadline) -> Awaitable[bool]:
        """Raises a `LoremeshError` where it cannot."""
        ...


class Upkeep:
    """One task an index and collection: what is written while it runs makes it run again, and what it fails at it tries again.

    Args:
        indexes: By the names that logs give them.
        sweep: Of a store that does not remove by itself what has ended; its writes may do so besides.
        first_pause: Seconds until what has failed is tried again; the next ones are longer.
        between: Seconds between two removals, so that writes come first.
        rest: Seconds between two looks for what can be removed.
    """

    def __init__(
        self,
        indexes: Mapping[str, DerivedIndex],
        sweep: Sweep | None = None,
        *,
        first_pause: float = 0.5,
        between: float = 0.1,
        rest: float = 60.0,
    ) -> None:
        self._indexes = indexes
        self._sweep = sweep
        self._first_pause = first_pause
        self._between = between
        self._rest = rest
        self._sweeping: asyncio.Task[None] | None = None
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._wanted: set[tuple[str, str]] = set()

    def start(self) -> None:
        """Does what an earlier process has left undone, and begins to look for what can be removed."""
        for name in self._indexes:
            self._want(name, "")
        if self._sweep is not None and self._sweeping is None:
            self._sweeping = asyncio.create_task(self._keep_sweeping(self._sweep))

    def written(self, collection: str) -> None:
        """Is to be called after each write to a collection."""
        for name in self._indexes:
            self._want(name, collection)

    def _want(self, name: str, collection: str) -> None:
        key = (name, collection)
        self._wanted.add(key)
        if key not in self._tasks:
            task = asyncio.create_task(self._keep_up(name, collection))
            self._tasks[key] = task
            task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def _keep_up(self, name: str, collection: str) -> None:
        key = (name, collection)
        pause = self._first_pause
        while key in self._wanted:
            self._wanted.discard(key)
            try:
                await self._once(name, collection)
            except NotFound:
                # Nothing was stored, or it has been deleted meanwhile.
                continue
            except LoremeshError as error:
                _log.warning(
                    "the %s index of %s is not up to date, and is tried again: %s",
                    *(name, collection or "all collections", error),
                )
                self._wanted.add(key)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                pause = self._first_pause

    async def _keep_sweeping(self, sweep: Sweep) -> None:
        """Also where nobody writes: what has ended goes, within some minutes."""
        while True:
            pause = self._rest
            try:
                if await sweep(deadline=Deadline.after(_SWEEP_SECONDS)):
                    pause = self._between
            except LoremeshError as error:
                _log.warning("what has ended in the graph store is not removed yet, and is tried again: %s", error)
            await asyncio.sleep(pause)

    async def _once(self, name: str, collection: str) -> None:
        deadline = Deadline.after(_SECONDS)
        if collection:
            await self._indexes[name].maintain(collection, deadline=deadline)
        else:
            await self._indexes[name].recover(deadline=deadline)

    async def close(self) -> None:
        """Ends what runs; the next start goes on with it."""
        self._wanted.clear()
        tasks = [*self._tasks.values(), *([self._sweeping] if self._sweeping is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
