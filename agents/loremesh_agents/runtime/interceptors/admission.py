"""Lets in as many calls as the agent can serve, and none once it shuts down."""

import asyncio

from loremesh_agents.domain.errors import Draining, Overloaded
from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.interceptors.base import Proceed


class AdmissionInterceptor:
    """Refuses calls at once instead of queueing them: the caller's deadline runs, and another replica may be free."""

    def __init__(self, agent: str, limit: int | None, retry_after: float) -> None:
        """Sets up the limit.

        Args:
            agent: Name of the agent, for errors.
            limit: How many calls may be in flight, None for any number.
            retry_after: Seconds that a refused caller is told to wait.
        """
        self._agent = agent
        self._limit = limit
        self._retry_after = retry_after
        self._tasks: set[asyncio.Task[object]] = set()
        self._draining = False
        self._interrupted = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def in_flight(self) -> int:
        """How many calls are being served."""
        return len(self._tasks)

    def drain(self) -> None:
        """Refuses all further calls; those in flight go on."""
        self._draining = True

    async def wait_idle(self) -> None:
        """Returns as soon as no call is in flight."""
        await self._idle.wait()

    def interrupt(self) -> None:
        """Ends the calls in flight with the error Draining, which tells their callers to go on at another replica."""
        self.drain()
        self._interrupted = True
        for task in self._tasks:
            task.cancel()

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call if there is room.

        Raises:
            Draining: The agent is shutting down.
            Overloaded: There is no room.
        """
        if self._draining:
            raise Draining(self._agent)
        if self._limit is not None and len(self._tasks) >= self._limit:
            raise Overloaded(self._agent, self._limit, self._retry_after)
        task = asyncio.current_task()
        assert task is not None, "calls run in tasks"
        self._tasks.add(task)
        self._idle.clear()
        try:
            await proceed(call)
        except asyncio.CancelledError:
            if not self._interrupted:
                raise
            task.uncancel()
            raise Draining(self._agent) from None
        finally:
            self._tasks.discard(task)
            if not self._tasks:
                self._idle.set()
