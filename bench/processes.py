"""Programs that a benchmark runs beside itself."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

_QUIET = {
    "LOREMESH_TELEMETRY__LOG_LEVEL": "WARNING",
    "LOREMESH_SERVER__DRAIN_GRACE": "0",
    "OPENBLAS_NUM_THREADS": "1",  # as the command does
}
_LAST_WORDS = 5.0


class Program:
    """A program that runs; `target` is where it listens."""

    def __init__(self, process: asyncio.subprocess.Process, target: str) -> None:
        self._process = process
        self.target = target

    def processes(self) -> list[psutil.Process]:
        """The program's process and those that it has started."""
        main = psutil.Process(self._process.pid)
        return [main, *main.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """What all of them have used so far."""
        return sum(times.user + times.system for times in (process.cpu_times() for process in self.processes()))

    async def order(self, line: str) -> str:
        """Writes a line to the program, and gives the line with which it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n".encode())
        return (await self._process.stdout.readline()).decode()


@asynccontextmanager
async def running(*arguments: str, workers: int = 1, **environment: str) -> AsyncIterator[Program]:
    """Runs `python -m ARGUMENTS` within the block, from when each of its workers has said `NAME TARGET`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **_QUIET, **environment},
        # Ctrl-C is for the benchmark, which ends its programs itself, when it is done with them.
        start_new_session=True,
    )
    program = Program(process, "")
    try:
        assert process.stdout is not None
        for _ in range(workers):
            line = (await process.stdout.readline()).decode().split()
            if len(line) != 2:
                raise RuntimeError(f"{' '.join(arguments)} did not say where it listens, but {line}")
            program.target = line[1]
        yield program
    finally:
        if process.returncode is None:
            await _end(process, program.processes())


async def _end(process: asyncio.subprocess.Process, all_of_it: list[psutil.Process]) -> None:
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _LAST_WORDS)
    except TimeoutError:
        for member in all_of_it:
            if member.is_running():
                member.kill()
        await process.wait()
