"""A way to a server that breaks when a test wants it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK = 4096


class CutProxy:
    """Passes bytes on between whoever connects and a server.

    Attributes:
        target: Where it listens, as `host:port`.
        passed: Bytes of the server that it has passed on.
        cuts: How often it has cut all its connections.
    """

    def __init__(self, upstream: str) -> None:
        self._host, _, port = upstream.partition(":")
        self._port = int(port)
        self._connections: set[asyncio.StreamWriter] = set()
        self._left: int | None = None
        self._mark = b""
        self._marks_left = 0
        self._seen = b""
        self.tasks: set[asyncio.Task[None]] = set()
        self.target = ""
        self.passed = 0
        self.cuts = 0

    def cut_after(self, size: int | None) -> None:
        """Cuts after so many further bytes of the server, be it within a frame; None: it does not."""
        self._left = size

    def cut_at(self, mark: bytes, times: int) -> None:
        """Cuts after what the server has written so many times."""
        self._mark, self._marks_left, self._seen = mark, times, b""

    def cut(self) -> None:
        """Resets every connection, as where the machine behind it is gone."""
        self._left, self._mark = None, b""
        self.cuts += 1
        for connection in list(self._connections):
            connection.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._port)
        ends = {writer, upstream_writer}
        self._connections |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass_on(reader, upstream_writer, counted=False))
                group.create_task(self._pass_on(upstream_reader, writer, counted=True))
        finally:
            self._connections -= ends
            for end in ends:
                end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, counted: bool) -> None:
        try:
            while data := await reader.read(_CHUNK):
                passed = self._passed(data) if counted else data
                writer.write(passed)
                await writer.drain()
                if len(passed) < len(data) or (counted and self._left == 0):
                    self.cut()
            writer.write_eof()
        except OSError:
            writer.transport.abort()

    def _passed(self, data: bytes) -> bytes:
        """As much of what the server wrote as comes before the cut."""
        if self._mark:
            known = len(self._seen)
            self._seen += data
            parts = self._seen.split(self._mark, self._marks_left)
            if len(parts) > self._marks_left:
                self._left = max(0, len(self._seen) - len(parts[-1]) - known)
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        self.passed += len(data)
        return data


@asynccontextmanager
async def proxy(upstream: str) -> AsyncIterator[CutProxy]:
    """A proxy in front of `host:port`, within the block."""
    opened = CutProxy(upstream)
    server = await asyncio.start_server(opened.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    opened.target = f"{host}:{port}"
    try:
        yield opened
    finally:
        opened.cut()
        server.close()
        await asyncio.gather(*opened.tasks)
