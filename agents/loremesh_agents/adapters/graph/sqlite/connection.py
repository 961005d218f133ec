"""Connections, the threads that use them, and what their errors mean."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from loremesh_agents.adapters.graph.sqlite import schema
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    ConfigurationError,
    LoremeshError,
    StorageFull,
    WriteConflict,
)

_Result = TypeVar("_Result")

BACKEND = "sqlite"
_STEPS_BETWEEN_CHECKS = 5_000
_CACHE_KIB = 32 * 1024


@contextmanager
def translated_errors() -> Generator[None]:
    """Turns SQLite's errors into domain errors.

    Raises:
        BudgetExhausted: The query was stopped at its deadline.
        WriteConflict: Another process is writing.
        StorageFull: The disk or the file is full.
        BackendUnavailable: Anything else that SQLite reports.
    """
    try:
        yield
    except LoremeshError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        primary = code & 0xFF if isinstance(code, int) else None
        if primary == sqlite3.SQLITE_INTERRUPT:
            raise BudgetExhausted("graph store", "query") from error
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise WriteConflict(BACKEND) from error
        if primary == sqlite3.SQLITE_FULL:
            raise StorageFull(BACKEND) from error
        raise BackendUnavailable(BACKEND) from error


class Connections:
    """One connection that writes and a few that read.

    Args:
        path: The database file; made, with its folder, where it does not exist.
        readers: Connections for reading: the snapshots that are held at once, and some for reads besides.
    """

    def __init__(self, path: Path, readers: int) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._open(read_only=False)
            schema.prepare(self._writer, path)
        except (OSError, sqlite3.Error) as error:
            raise ConfigurationError(f"the graph store {path} cannot be opened: {error}") from error
        self._idle: asyncio.LifoQueue[sqlite3.Connection] = asyncio.LifoQueue()
        self._readers = [self._open(read_only=True) for _ in range(readers)]
        for connection in self._readers:
            self._idle.put_nowait(connection)
        self._writing = asyncio.Lock()
        # One thread for all reads: the driver gives the interpreter's lock away at each row, and threads that contend for it get less done together than one alone.
        self._threads = {
            "read": ThreadPoolExecutor(1, thread_name_prefix="sqlite-read"),
            "write": ThreadPoolExecutor(1, thread_name_prefix="sqlite-write"),
        }
        self._closed = False

    def _open(self, *, read_only: bool) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, cached_statements=256)
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: a commit is on the disk before it is acknowledged.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        connection.execute("PRAGMA temp_store = MEMORY")
        if read_only:
            connection.execute("PRAGMA query_only = 1")
        return connection

    async def write(self, work: Callable[[sqlite3.Connection], _Result], deadline: Deadline) -> _Result:
        """Runs work in a write transaction of its own; all of it is committed, or nothing.

        Raises:
            LoremeshError: As `translated_errors`, and what the work raises.
        """
        try:
            async with asyncio.timeout(deadline.remaining()):
                await self._writing.acquire()
        except TimeoutError:
            raise WriteConflict(BACKEND) from None
        try:
            return await self._run(self._writer, lambda: self._transaction(work, deadline), deadline)
        finally:
            self._writing.release()

    def _transaction(self, work: Callable[[sqlite3.Connection], _Result], deadline: Deadline) -> _Result:
        connection = self._writer
        connection.execute(f"PRAGMA busy_timeout = {max(1, round(deadline.remaining() * 1000))}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    @asynccontextmanager
    async def reader(self, deadline: Deadline) -> AsyncGenerator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile.

        Raises:
            BudgetExhausted: None became free in time.
        """
        try:
            async with asyncio.timeout(deadline.remaining()):
                connection = await self._idle.get()
        except TimeoutError:
            raise BudgetExhausted("graph store", "waiting for a connection") from None
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.rollback()
            self._idle.put_nowait(connection)

    async def read(
        self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], _Result], deadline: Deadline
    ) -> _Result:
        """Runs work on a connection of `reader`, stopped at the deadline or when the caller leaves."""
        return await self._run(connection, lambda: work(connection), deadline)

    async def _run(self, connection: sqlite3.Connection, work: Callable[[], _Result], deadline: Deadline) -> _Result:
        if self._closed:
            raise BackendUnavailable(BACKEND)
        if deadline.expired:
            raise BudgetExhausted("graph store", "query")

        def supervised() -> _Result:
            connection.set_progress_handler(lambda: time.monotonic() >= deadline.at, _STEPS_BETWEEN_CHECKS)
            with translated_errors():
                return work()

        threads = self._threads["write" if connection is self._writer else "read"]
        submitted = threads.submit(supervised)
        running = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if submitted.cancel():
                # It had not begun.
                raise
            connection.interrupt()
            # The connection is given to the next one only when its thread is done with it, however often we are cancelled.
            while not running.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            if not running.cancelled():
                running.exception()
            raise

    async def close(self) -> None:
        """Closes all connections once their threads are done."""
        if self._closed:
            return
        self._closed = True
        for threads in self._threads.values():
            await asyncio.get_running_loop().run_in_executor(None, threads.shutdown)
        for connection in [*self._readers, self._writer]:
            connection.close()
