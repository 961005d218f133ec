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
        self.target = ""
        self.passed = 0
        self.cuts = 0

    def cut_after(self, size: int | None) -> None:
        """Cuts after so many further bytes of the server, be it within a frame; None: it does not."""
        self._left = size

    def cut(self) -> None:
        """Resets every connection, as where the machine behind it is gone."""
        self._left = None
        self.cuts += 1
        for connection in list(self._connections):
            connection.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
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
                cut = counted and self._left is not None and self._left <= len(data)
                if counted:
                    data = data[: self._left] if cut else data
                    self.passed += len(data)
                    self._left = self._left - len(data) if self._left is not None else None
                writer.write(data)
                await writer.drain()
                if cut:
                    self.cut()
            writer.write_eof()
        except OSError:
            writer.transport.abort()


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
        await server.wait_closed()
