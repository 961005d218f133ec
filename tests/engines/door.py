"""A front door for a server that has none: TLS, and a check of the first request of each connection before anything else."""

import asyncio
import ssl
from abc import ABC, abstractmethod
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self


class Door(ABC):
    """Passes on the connections of those whom it lets in.

    Args:
        target: Port of the server behind.
        status: Of the answer to those whom it does not.
    """

    def __init__(self, target: int, status: str) -> None:
        self._target = target
        self._status = status
        self._pipes: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.requests: list[dict[str, str]] = []
        """Headers of the first requests of the connections that were let in."""

    @abstractmethod
    def refusal(self, first: str, headers: dict[str, str]) -> str:
        """Why a request is refused, by its first line and its headers; empty where it is not."""

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext) -> AsyncIterator[Self]:
        """While it serves."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.drop()
            await server.wait_closed()

    def drop(self) -> None:
        """Breaks all connections."""
        for pipe in self._pipes:
            pipe.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode().strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            refusal = self.refusal(first, headers)
            if refusal:
                body = refusal.encode()
                lines = [f"HTTP/1.1 {self._status}", "Connection: close", f"Content-Length: {len(body)}", "", ""]
                writer.write("\r\n".join(lines).encode() + body)
                await writer.drain()
                return
            self.requests.append(headers)
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._target)
            self._pipes |= {writer, behind_writer}
            behind_writer.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass_on(reader, behind_writer))
                group.create_task(_pass_on(behind_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


class PasswordDoor(Door):
    """Lets in who logs in as HTTP does it.

    Args:
        target: Port of the server behind.
        user: Who may.
        password: With which password.
    """

    def __init__(self, target: int, user: str, password: str) -> None:
        super().__init__(target, "401 Unauthorized")
        self._wanted = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"

    def refusal(self, first: str, headers: dict[str, str]) -> str:
        return "" if headers.get("authorization") == self._wanted else "Unauthorized"


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
