"""Several worker processes behind one port, for agents that need more than one core.

The supervisor reserves the port, starts the same command several times, passes signals on, and starts a worker anew
that has ended by itself. The workers listen on the port with `reuse_port`, so that the kernel spreads connections over
them. Their metrics go through files (prometheus_client's multiprocess mode), which the supervisor adds up and shows.
"""

import asyncio
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import (
    MultiProcessCollector,
    mark_process_dead,  # pyright: ignore[reportUnknownVariableType] - it has no types
)

from loremesh_agents.domain.errors import ConfigurationError
from loremesh_agents.runtime.lifecycle import StopSignals
from loremesh_agents.runtime.metrics import MetricsServer

_log = logging.getLogger(__name__)

METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable by which prometheus_client learns, when it is imported, that metrics go through files."""


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How workers are run. Times are in seconds.

    Attributes:
        count: How many.
        host: Address of the shared port.
        port: The shared port, 0 for any free one.
        metrics_host: Address of the port that shows the metrics of all.
        metrics_port: That port, 0 for any free one, None for no metrics.
        first_backoff: Pause before a worker that ended by itself is started anew; doubled each time.
        max_backoff: Longest pause.
        stable: A worker that ran as long as this starts again with the first pause.
        environment: Added to the workers' environment.
    """

    count: int
    host: str = "0.0.0.0"  # noqa: S104 - the port of an agent that is to be reached
    port: int = 0
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = 0
    first_backoff: float = 0.5
    max_backoff: float = 30.0
    stable: float = 60.0
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


class PortReservation:
    """Holds a port, without listening on it, so that nobody but our workers gets it between their starts."""

    def __init__(self, host: str, port: int) -> None:
        """Reserves the port.

        Args:
            host: Address to listen on.
            port: Port to listen on, 0 for any free one.

        Raises:
            ConfigurationError: The port is taken.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if port:
                # With SO_REUSEPORT alone we would share the port with any other program that sets it.
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host, port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ConfigurationError(f"workers cannot listen on {host}:{port}: {error.strerror}") from error
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._socket.close()


class Supervisor:
    """Runs the workers.

    Attributes:
        port: The shared port, once `run` has begun.
        metrics_port: The port that shows the metrics, once `run` has begun; None without metrics.
        pids: Process ids of the workers that are running.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], options: WorkerOptions) -> None:
        """Sets up the supervisor.

        Args:
            command: Gives a worker's command for the shared port.
            options: How to run the workers.
        """
        self._command = command
        self._options = options
        self.port = 0
        self.metrics_port: int | None = None
        self._running: dict[int, asyncio.subprocess.Process] = {}

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of the workers that are running."""
        return frozenset(self._running)

    async def run(self, signals: StopSignals | None = None, ready: asyncio.Event | None = None) -> None:
        """Runs the workers until a signal comes and all of them have ended.

        The first signal reaches the workers as SIGTERM, and so does the second.

        Args:
            signals: Where the wish to end comes from; by default SIGTERM and SIGINT.
            ready: Set when all workers have been started.

        Raises:
            ConfigurationError: A port is taken.
        """
        stop = signals if signals is not None else StopSignals()
        options = self._options
        async with AsyncExitStack() as stack:
            self.port = stack.enter_context(PortReservation(options.host, options.port)).port
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loremesh-metrics-")))
            if options.metrics_port is not None:
                registry = CollectorRegistry()
                MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]  # it has no types
                shown = await stack.enter_async_context(
                    MetricsServer(registry, options.metrics_host, options.metrics_port)
                )
                self.metrics_port = shown.port
            stack.enter_context(stop.installed())
            passing = asyncio.create_task(self._pass_on(stop), name="signals to workers")
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(options.count):
                        group.create_task(self._keep_running(number, folder, stop), name=f"worker {number}")
                    if ready is not None:
                        ready.set()
            finally:
                passing.cancel()
                await asyncio.wait([passing])

    async def _keep_running(self, number: int, folder: Path, stop: StopSignals) -> None:
        options = self._options
        backoff = options.first_backoff
        while not stop.drain.is_set():
            started = time.monotonic()
            code = await self._run_once(number, folder, stop)
            if stop.drain.is_set():
                return
            if time.monotonic() - started >= options.stable:
                backoff = options.first_backoff
            _log.warning("worker %d ended with code %d, a new one starts in %g s", number, code, backoff)
            await _pause(stop.drain, backoff)
            backoff = min(2 * backoff, options.max_backoff)

    async def _run_once(self, number: int, folder: Path, stop: StopSignals) -> int:
        process = await asyncio.create_subprocess_exec(
            *self._command(self.port),
            env={**os.environ, **self._options.environment, METRICS_FOLDER: str(folder)},
            # A terminal sends its signals to a whole session: workers would get each of them twice, and stop at once.
            start_new_session=True,
        )
        _log.info("worker %d runs as process %d", number, process.pid)
        self._running[process.pid] = process
        try:
            if stop.drain.is_set():
                _terminate(process)
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            del self._running[process.pid]
            # Its gauges go, its counters stay: totals must never fall.
            mark_process_dead(process.pid, str(folder))  # type: ignore[no-untyped-call]  # it has no types

    async def _pass_on(self, stop: StopSignals) -> None:
        for event in (stop.drain, stop.now):
            await event.wait()
            for process in list(self._running.values()):
                _terminate(process)


def _terminate(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)


async def _pause(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
