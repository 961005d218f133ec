"""Liveness and readiness by grpc.health.v1.

The empty service name asks for liveness: whoever answers lives. A service's full name asks for readiness: its hard
dependencies answer. A soft dependency is watched, for metrics and logs, and never makes an agent unready.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.runtime.metrics import AgentMetrics

_log = logging.getLogger(__name__)

Probe: TypeAlias = Callable[[Deadline], Awaitable[None]]
"""Asks a dependency whether it is there; raises when it is not, or when the deadline passes."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that an agent needs.

    Attributes:
        name: As it appears in metrics and logs.
        probe: Asks whether it is there.
        hard: Whether the agent is of no use without it.
    """

    name: str
    probe: Probe
    hard: bool = True


@dataclass(frozen=True, slots=True)
class HealthOptions:
    """How dependencies are watched.

    Attributes:
        interval: Seconds from one look at the dependencies to the next.
        timeout: Seconds that a probe may take.
    """

    interval: float = 5.0
    timeout: float = 2.0


class Health:
    """The health of one agent.

    Attributes:
        servicer: The grpc.health.v1 service.
    """

    def __init__(
        self,
        services: Sequence[str],
        dependencies: Sequence[Dependency],
        metrics: AgentMetrics,
        options: HealthOptions = HealthOptions(),
    ) -> None:
        """Sets up the service; its services are not ready until `start`.

        Args:
            services: Full names of the agent's services.
            dependencies: What they need.
            metrics: Where the state of the dependencies is shown.
            options: How they are watched.
        """
        self.servicer = health_aio.HealthServicer()
        self._services = tuple(services)
        self._dependencies = tuple(dependencies)
        self._metrics = metrics
        self._options = options
        self._up: dict[str, bool] = {}
        self._watcher: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        """Announces the services as not ready, before the server answers anything."""
        for service in self._services:
            await self.servicer.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)

    async def start(self) -> None:
        """Looks at the dependencies, and goes on looking at them until `stop`."""
        await self.refresh()
        if self._dependencies:
            self._watcher = asyncio.create_task(self._watch(), name="health")

    async def refresh(self) -> None:
        """Looks at all dependencies now and sets the readiness accordingly."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._answers(dependency)) for dependency in self._dependencies]
        for dependency, task in zip(self._dependencies, tasks, strict=True):
            self._note(dependency, task.result())
        ready = all(self._up[dependency.name] for dependency in self._dependencies if dependency.hard)
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            await self.servicer.set(service, status)

    async def drain(self) -> None:
        """Announces that the agent is going away. There is no way back."""
        await self.servicer.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Stops looking at the dependencies."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._options.interval)
            await self.refresh()

    async def _answers(self, dependency: Dependency) -> BaseException | None:
        """None if the dependency is there, else what it lacks."""
        try:
            async with asyncio.timeout(self._options.timeout):
                await dependency.probe(Deadline.after(self._options.timeout))
        except Exception as error:  # noqa: BLE001 - each driver has its own; all mean that it is not there
            return error
        return None

    def _note(self, dependency: Dependency, error: BaseException | None) -> None:
        up = error is None
        if up is not self._up.get(dependency.name, True):
            if up:
                _log.info("dependency %s is back", dependency.name)
            else:
                _log.warning("dependency %s is down: %r", dependency.name, error)
        self._up[dependency.name] = up
        self._metrics.dependency(dependency.name, up=up)
