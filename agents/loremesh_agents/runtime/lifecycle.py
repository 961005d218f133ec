"""From start to exit of a process that serves: order of start, signals, order of the end."""

import asyncio
import gc
import logging
import signal
from collections.abc import Generator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass

from loremesh_agents.runtime.server import AgentServer

_log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class DrainOptions:
    """How a process ends. An orchestrator must give it `delay + grace` seconds and a few more.

    Attributes:
        delay: Seconds between the announcement and the refusal of new calls: load balancers need them to look
            elsewhere.
        grace: Seconds for the calls in flight, of all servers together.
    """

    delay: float = 5.0
    grace: float = 20.0


class StopSignals:
    """What signals ask for: the first one for a drain, the second one for an end at once.

    Attributes:
        drain: Set by the first signal.
        now: Set by the second one.
    """

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.now = asyncio.Event()

    def receive(self) -> None:
        """Takes one signal."""
        if self.drain.is_set():
            self.now.set()
        self.drain.set()

    @contextmanager
    def installed(self, signals: Sequence[signal.Signals] = SIGNALS) -> Generator[None]:
        """Receives the process's signals within the block. For the main thread."""
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self.receive)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)


def exempt_from_collection() -> None:
    """Takes all that the process has made so far out of the garbage collector's sight. Once a process, when it is built.

    It lives as long as the process does, modules and message types above all, and a full collection would look at all of it: 20 to 60 ms now and then in
    which no token leaves.
    """
    gc.collect()
    gc.freeze()


async def run(
    servers: Sequence[AgentServer],
    resources: AsyncExitStack,
    options: DrainOptions = DrainOptions(),
    *,
    signals: StopSignals | None = None,
    ready: asyncio.Event | None = None,
) -> None:
    """Starts the servers, waits for a signal, drains.

    Args:
        servers: In order of dependency: each one needs only those before it.
        resources: What the servers use; closed at the end in reverse, so telemetry, which sees everything, belongs in
            first. It is closed too when a server does not start.
        options: How long the end may take.
        signals: Where the wish to end comes from; by default SIGTERM and SIGINT.
        ready: Set when all servers serve.

    Raises:
        ConfigurationError: A server cannot listen; those before it have been stopped.
    """
    stop = signals if signals is not None else StopSignals()
    async with resources:
        started: list[AgentServer] = []
        with stop.installed():
            try:
                for server in servers:
                    await server.start()
                    started.append(server)
                    _log.info("the %s agent serves on %s", server.agent, server.target)
                if ready is not None:
                    ready.set()
                await stop.drain.wait()
            finally:
                await drain(started, options if stop.drain.is_set() else DrainOptions(0, 0), stop.now)


async def drain(servers: Sequence[AgentServer], options: DrainOptions, now: asyncio.Event) -> None:
    """Stops servers without cutting off the calls in flight, as far as time allows.

    All announce their end, then the delay passes, then they stop one after the other, those first that nobody else here
    needs.

    Args:
        servers: In order of dependency.
        options: How long it may take.
        now: Ends all waiting as soon as it is set.
    """
    _log.info("draining")
    for server in servers:
        await server.announce_stop()
    await _wait(now, options.delay)
    end = asyncio.get_running_loop().time() + options.grace
    for server in reversed(servers):
        grace = max(0.0, end - asyncio.get_running_loop().time())
        stopping = asyncio.create_task(server.stop(0 if now.is_set() else grace))
        hurry = asyncio.create_task(now.wait())
        await asyncio.wait((stopping, hurry), return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            await server.stop(0)
        hurry.cancel()
        await stopping
    _log.info("drained")


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
