"""A double of Neptune's front door: TLS, and the signature of the request that opens a websocket checked before anything else."""

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime


class SigningProxy:
    """Passes on the connections of those who sign.

    Args:
        target: Port of the server behind.
        keys: Secret access keys, by their ids.
        region: Whose signatures are taken.
    """

    def __init__(self, target: int, keys: dict[str, str], region: str) -> None:
        self._target = target
        self._keys = keys
        self._region = region
        self._pipes: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.requests: list[dict[str, str]] = []
        """Headers of the requests for a websocket that were let in."""

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext) -> AsyncIterator["SigningProxy"]:
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
            refusal = self._refusal(first, headers)
            if refusal:
                body = refusal.encode()
                writer.write(
                    b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
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

    def _refusal(self, first: str, headers: dict[str, str]) -> str:
        algorithm, _, rest = headers.get("authorization", "").partition(" ")
        if algorithm != "AWS4-HMAC-SHA256":
            return "no signature"
        fields = dict(part.strip().split("=", 1) for part in rest.split(","))
        key_id, day, region, service, last = fields["Credential"].split("/")
        sent = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        if abs((datetime.now(UTC) - sent).total_seconds()) > 300 or not headers["x-amz-date"].startswith(day):
            return "an old signature"
        if (region, service, last) != (self._region, "neptune-db", "aws4_request") or key_id not in self._keys:
            return "a signature for somebody else"
        names = fields["SignedHeaders"].split(";")
        if "host" not in names or ("x-amz-security-token" in headers) != ("x-amz-security-token" in names):
            return "headers without a signature"
        method, path, _ = first.split(" ")
        canonical = "\n".join(
            [
                method,
                path,
                "",
                *(f"{name}:{headers[name]}" for name in names),
                "",
                ";".join(names),
                hashlib.sha256().hexdigest(),
            ]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        key = b"AWS4" + self._keys[key_id].encode()
        for part in (day, region, service, last):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        text = "\n".join([algorithm, headers["x-amz-date"], f"{day}/{region}/{service}/{last}", digest])
        wanted = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        return "" if hmac.compare_digest(wanted, fields["Signature"]) else "a wrong signature"


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
