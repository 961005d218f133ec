"""Server-sent events of one `data` line each, which is all that our services send."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import orjson

MEDIA_TYPE = "text/event-stream"
_PREFIX = b"data: "
_END = b"\n\n"


def encode(kind: str, content: Mapping[str, Any]) -> bytes:
    """An event; dataclasses in it become objects."""
    return _PREFIX + orjson.dumps({"type": kind, **content})


def decode(event: bytes) -> dict[str, Any]:
    """What an event holds, with its `type`."""
    content: dict[str, Any] = orjson.loads(event[len(_PREFIX) :])
    return content


def join(*events: bytes) -> bytes:
    """Events as they travel."""
    return _END.join([*events, b""])


async def lines(response: httpx.Response) -> AsyncIterator[list[bytes]]:
    """The events one by one, as httpx gives the lines of a response: the way that its documentation and the libraries for such events show."""
    async for line in response.aiter_lines():
        if line:
            yield [line.encode()]


async def chunks(response: httpx.Response) -> AsyncIterator[list[bytes]]:
    """The whole events of each chunk that the network brings, together: a fraction of the work of lines one by one."""
    rest = b""
    async for chunk in response.aiter_raw():
        *whole, rest = (rest + chunk).split(_END)
        if whole:
            yield whole
