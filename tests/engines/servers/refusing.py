"""A double of OpenSearch behind a door: it asks for a password, and says nothing else."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


@asynccontextmanager
async def refusing_server(user_and_password: str) -> AsyncIterator[str]:
    """Answers 401 where another password comes, as OpenSearch does, and 404 where it is the right one; gives its URL."""
    right = base64.b64encode(user_and_password.encode())

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        status = b"404 Not Found" if b"Basic " + right in head else b"401 Unauthorized"
        writer.write(
            b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
