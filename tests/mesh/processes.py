"""`loremesh serve` as processes of their own."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Endpoint:
    """An agent and where it listens."""

    agent: str
    target: str


class Served:
    """A process that serves.

    Attributes:
        process: The process.
        servers: Its agents.
        log: What it has written to stderr.
    """

    def __init__(self, process: asyncio.subprocess.Process, servers: list[Endpoint], log: Path) -> None:
        self.process = process
        self.servers = servers
        self.log = log

    @property
    def targets(self) -> dict[str, str]:
        return {server.agent: server.target for server in self.servers}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        """Its exit code."""
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def serving(folder: Path, *arguments: str, lines: int = 1, **environment: str) -> AsyncIterator[Served]:
    """Runs `loremesh serve` until it has said as many lines about where it listens; it ends with the block at the latest."""
    log = folder / f"{arguments[0]}.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loremesh_agents.cli", "serve", *arguments, "--data", str(folder)),
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "LOREMESH_STORES__EMBEDDER": "none", **environment},
        )
    try:
        assert process.stdout is not None
        said = [(await process.stdout.readline()).decode().split() for _ in range(lines)]
        assert all(said), log.read_text()
        yield Served(process, [Endpoint(*words) for words in said], log)
    finally:
        if process.returncode is None:
            # The first signal asks for a drain, the second one ends it.
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                await process.wait()
