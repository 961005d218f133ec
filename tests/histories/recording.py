"""Histories: writers in processes of their own that are killed at random moments, readers beside them, and one who writes after all."""

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import LoremeshError, WriteConflict
from loremesh_agents.ports.graph import GraphStore
from tests.histories.clients import SQLITE, carry_out, look, opened_store
from tests.histories.model import Attempt, Look, Operation

_READERS = 2
_ATTEMPTS_OF_A_WRITER = 1_000_000
_SURVIVES = 60.0
"""Seconds in which somebody must be able to write after the others have died."""
_BEFORE_A_KILL = 8
"""Most operations that a writer begins before the one that it is killed in."""


@dataclass
class History:
    """What was done to one collection, and seen of it.

    Attributes:
        attempts: All that writers began.
        looks: All that readers saw.
        killed: Writers that were.
    """

    attempts: list[Attempt] = field(default_factory=list[Attempt])
    looks: list[Look] = field(default_factory=list[Look])
    killed: int = 0

    @property
    def acknowledged(self) -> int:
        """Operations that the store said to have carried out."""
        return sum(attempt.revision is not None for attempt in self.attempts)

    @property
    def unknown(self) -> int:
        """Operations that may have happened or not."""
        return sum(attempt.unknown for attempt in self.attempts)


class Recorder:
    """Makes histories on one engine, one after the other, each in a collection of its own.

    Args:
        engine: One of `ENGINES`, or `sqlite`.
        url: Where it is.
        seed: Of the random numbers; what servers and machine do is not decided by it.
    """

    def __init__(self, engine: str, url: str, *, seed: int) -> None:
        self._engine = engine
        self._url = url
        self._random = random.Random(seed)
        self._next = 0
        # The embedded store has one writing process.
        self._writers = 1 if engine == SQLITE else 2
        self._started: list[asyncio.Task[asyncio.subprocess.Process]] = []

    async def history(self) -> History:
        """Makes the next one."""
        self._next += 1
        collection = f"history {self._next}"
        made = History()
        processes = [await self._process() for _ in range(self._writers)]
        # The next ones start meanwhile.
        self._start(self._writers)
        reading = [asyncio.create_task(self._read(collection, made)) for _ in range(_READERS)]
        try:
            await asyncio.gather(
                *(
                    self._write(process, collection, place * _ATTEMPTS_OF_A_WRITER, made)
                    for place, process in enumerate(processes, start=1)
                )
            )
            # Who is dead stops nobody for long.
            await self._survive(collection, made)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            for process in processes:
                await _ended(process)
        async with self._store() as store:
            made.looks.append(await look(store, collection))
        return made

    async def close(self) -> None:
        """Ends the processes that no history took."""
        for task in self._started:
            await _ended(await task)

    def _start(self, count: int) -> None:
        while len(self._started) < count:
            self._started.append(asyncio.create_task(_spawned(self._engine, self._url)))

    async def _process(self) -> asyncio.subprocess.Process:
        self._start(1)
        return await self._started.pop(0)

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[GraphStore]:
        store = opened_store(self._engine, self._url)
        try:
            yield store
        finally:
            await store.close()

    async def _write(self, process: asyncio.subprocess.Process, collection: str, first: int, made: History) -> None:
        """Has a process write, and kills it at some moment of some operation."""
        assert process.stdin is not None
        assert process.stdout is not None
        order = {"collection": collection, "first": first, "seed": self._random.getrandbits(32)}
        process.stdin.write(f"{json.dumps(order)}\n".encode())
        fatal = self._random.randint(1, _BEFORE_A_KILL)
        attempts: dict[int, Attempt] = {}
        took = 0.05
        async for said in process.stdout:
            line = json.loads(said)
            if "began" in line:
                operation = Operation(line["number"], tuple(line["documents"]), line["deletes"])
                attempts[operation.number] = Attempt(operation, line["began"])
                made.attempts.append(attempts[operation.number])
                if len(attempts) == fatal:
                    delay = self._random.uniform(0, 1.2 * took)
                    asyncio.get_running_loop().call_later(delay, process.kill)
            else:
                attempt = attempts[line["number"]]
                attempt.ended = line["ended"]
                attempt.revision = line.get("revision")
                attempt.refused = line.get("refused", False)
                took = attempt.ended - attempt.began
        await process.wait()
        made.killed += 1

    async def _survive(self, collection: str, made: History) -> None:
        end = Deadline.after(_SURVIVES)
        async with self._store() as store:
            for number in count(1):
                attempt = Attempt(Operation(number, ("a", "f")), time.monotonic())
                made.attempts.append(attempt)
                try:
                    attempt.revision = await carry_out(store, collection, attempt.operation)
                except LoremeshError as error:
                    attempt.refused = isinstance(error, WriteConflict)
                    # On a busy machine even one that has its turn may not be done in time.
                    if end.expired:
                        raise
                    continue
                attempt.ended = time.monotonic()
                return

    async def _read(self, collection: str, made: History) -> None:
        """Looks again and again, now and then as a process that has just started."""
        while True:
            async with self._store() as store:
                for _ in range(self._random.randint(1, 20)):
                    try:
                        made.looks.append(await look(store, collection))
                    except LoremeshError:
                        continue


async def _spawned(engine: str, url: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.histories.writer", engine, url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    if not await process.stdout.readline():
        raise RuntimeError(f"the writer to {engine} ended with status {await process.wait()}")
    return process


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
