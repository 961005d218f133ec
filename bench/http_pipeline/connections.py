"""How the services call one another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson


def connection(base_url: str) -> httpx.AsyncClient:
    """A client that is used for one call at a time; it sends JSON and asks no proxy."""
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    return httpx.AsyncClient(base_url=base_url, headers=headers, timeout=60, trust_env=False, verify=False)


class Connections:
    """As many connections to a service as there are calls at once, kept alive.

    A client for each, since httpx looks at all connections of a client, the idle ones against one another, whenever one of its calls begins
    or ends: 64 streams that begin together would take three times as long with a client for all.
    """

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._idle: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """An idle connection, or a new one."""
        http = self._idle.pop() if self._idle else connection(self._base_url)
        try:
            yield http
        finally:
            self._idle.append(http)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON with which the service answers."""
        async with self.one() as http:
            response = await http.post(path, content=orjson.dumps(body))
        return orjson.loads(response.raise_for_status().content)

    @asynccontextmanager
    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx.Response]:
        """An answer that is read within the block."""
        async with self.one() as http, http.stream("POST", path, content=orjson.dumps(body)) as response:
            response.raise_for_status()
            yield response

    async def close(self) -> None:
        for http in self._idle:
            await http.aclose()
