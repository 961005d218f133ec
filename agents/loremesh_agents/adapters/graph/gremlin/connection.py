"""Websockets to a Gremlin server.

The driver's own client blocks a thread for each request, cannot be used inside a running event loop, never recovers a connection that broke, and
signs only the first one. So its traversals and its serializer are used and its client is not.
"""

import asyncio
import base64
import logging
import random
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from loremesh_agents.adapters.graph.gremlin import bytecode, errors, graphbinary
from loremesh_agents.adapters.graph.gremlin.endpoint import Endpoint
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, ConfigurationError

_log = logging.getLogger(__name__)

_HEARTBEAT_S = 20.0
_CONNECT_S = 10.0
_FIRST_BACKOFF_S = 0.05
_LAST_BACKOFF_S = 2.0
_CLOSE_S = 1.0
_TURNS_TO_CLOSE = 5
"""Of the loop, until closed transports have let go of their sockets."""
_DEFAULT_FRAME = 65_536
"""What JanusGraph's own configuration files allow."""
_UNINTERRUPTED_MS = 600_000

_timeout: Any = aiohttp.ClientWSTimeout  # its fields are made in a way that type checkers do not see


@dataclass(frozen=True, slots=True)
class Script:
    """A constant script, and the values of its variables.

    Attributes:
        text: Source code; never made of what came from outside.
        bindings: Variables.
        language: What the server reads it as.
    """

    text: str
    bindings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    language: str = "gremlin-groovy"


class Connections:
    """Websockets to one server: opened when they are needed, and again after they broke. They belong to one event loop.

    While the server cannot be reached, requests fail at once and attempts follow one another ever more slowly.

    Args:
        endpoint: The server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._sockets: list[_Socket | None] = [None] * endpoint.connections
        self._slots = asyncio.Semaphore(endpoint.in_flight)
        self._opening = [asyncio.Lock() for _ in range(endpoint.connections)]
        self._backoff_s = 0.0
        self._closed_until = 0.0
        self._closed = False
        self.requests = 0

    async def submit(self, request: Any, *, deadline: Deadline, interrupt: bool = True) -> list[Any]:
        """The results of a traversal or of a `Script`.

        Args:
            request: What to ask.
            deadline: When the answer is of no more use.
            interrupt: Whether the server shall interrupt its work then.

        Raises:
            BackendUnavailable: The server cannot be reached, or broke off.
            BudgetExhausted: The deadline passed; the server stops its work, too, where it may be interrupted.
            StorageFull: Its disk is full.
            WriteConflict: Another transaction was faster.
            ConfigurationError: The server and the settings do not fit, which the message explains.
        """
        if self._closed:
            raise BackendUnavailable(self._endpoint.name)
        if deadline.expired:
            raise errors.expired()
        self.requests += 1
        try:
            async with asyncio.timeout(deadline.remaining()), self._slots:
                socket = await self._socket()
                return await socket.submit(request, deadline if interrupt else None)
        except TimeoutError:
            raise errors.expired() from None

    async def close(self) -> None:
        """Closes the websockets; whoever still waits for an answer is told."""
        if self._closed:
            return
        self._closed = True
        for index, opening in enumerate(self._opening):
            async with opening:
                socket = self._sockets[index]
                if socket is not None:
                    await socket.close()
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    async def _socket(self) -> "_Socket":
        # The least busy one; one that is not open yet counts as busy, so that few requests need few.
        open_ones = [socket for socket in self._sockets if socket is not None and socket.usable]
        idle = min(open_ones, key=lambda socket: socket.load, default=None)
        if idle is not None and (idle.load == 0 or len(open_ones) == len(self._sockets)):
            return idle
        missing = [
            index
            for index, socket in enumerate(self._sockets)
            if (socket is None or not socket.usable) and not self._opening[index].locked()
        ]
        if not missing and idle is not None:
            return idle
        index = missing[0] if missing else 0
        async with self._opening[index]:
            if self._closed:
                raise BackendUnavailable(self._endpoint.name)
            socket = self._sockets[index]
            if socket is None or not socket.usable:
                if socket is not None:
                    await socket.close()
                socket = self._sockets[index] = await self._open()
            return socket

    async def _open(self) -> "_Socket":
        if time.monotonic() < self._closed_until:
            raise BackendUnavailable(self._endpoint.name, retry_after=self._closed_until - time.monotonic())
        try:
            socket = await _Socket.open(self._endpoint)
        except (BackendUnavailable, ConfigurationError) as error:
            if not self._backoff_s:
                _log.warning("%s does not answer: %s", self._endpoint.name, error.__cause__ or error)
            self._backoff_s = min(_LAST_BACKOFF_S, max(_FIRST_BACKOFF_S, self._backoff_s * 2))
            # Jitter: the replicas of an agent must not come back all at once.
            self._closed_until = time.monotonic() + self._backoff_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter is no secret
            raise
        if self._backoff_s:
            _log.info("%s answers again", self._endpoint.name)
        self._backoff_s = self._closed_until = 0.0
        return socket


class _Socket:
    """One websocket; answers find their requests by an id."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession, websocket: Any) -> None:
        self._endpoint = endpoint
        self._session = session
        self._websocket: aiohttp.ClientWebSocketResponse[bool] = websocket
        self._serializer = bytecode.serializer()
        self._pending: dict[str, tuple[asyncio.Future[list[Any]], list[Any]]] = {}
        self._largest_in_flight = 0
        self._reader = asyncio.create_task(self._read(), name=f"{endpoint.name}-reader")

    @classmethod
    async def open(cls, endpoint: Endpoint) -> "_Socket":
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S))
        try:
            with errors.connecting(endpoint.name, endpoint.url):
                websocket = await session.ws_connect(
                    endpoint.url,
                    headers=endpoint.headers(),
                    ssl=endpoint.tls or True,
                    heartbeat=_HEARTBEAT_S,
                    timeout=_timeout(ws_close=_CLOSE_S),
                    max_msg_size=endpoint.message_bytes,
                )
        except BaseException:
            await session.close()
            raise
        socket = cls(endpoint, session, websocket)
        if endpoint.username:
            try:
                # The handshake comes with the first request: alone, as others must not overtake it.
                await socket.submit(bytecode.source().inject(0), Deadline.after(_CONNECT_S))
            except BaseException:
                await socket.close()
                raise
        return socket

    @property
    def usable(self) -> bool:
        return not self._websocket.closed and not self._reader.done()

    @property
    def load(self) -> int:
        return len(self._pending)

    async def submit(self, request: Any, stop: Deadline | None) -> list[Any]:
        request_id = str(uuid.uuid4())
        message = self._serializer.serialize_message(request_id, _message(request, self._endpoint.source, stop))
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = (answer, [])
        self._largest_in_flight = max(self._largest_in_flight, len(message))
        try:
            try:
                await self._websocket.send_bytes(message)
            except (aiohttp.ClientError, OSError):
                # The reader knows why the connection was closed, and fails the answer.
                await asyncio.wait([self._reader])
            return await answer
        finally:
            self._pending.pop(request_id, None)
            if not self._pending:
                self._largest_in_flight = 0

    async def close(self) -> None:
        try:
            self._reader.cancel()
            await asyncio.wait([self._reader])
            with suppress(aiohttp.ClientError, OSError):
                await self._websocket.close()
        finally:
            await self._session.close()

    async def _read(self) -> None:
        failure: Exception = BackendUnavailable(self._endpoint.name)
        try:
            async for message in self._websocket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    await self._take(graphbinary.decoded(message.data))
                elif message.type is aiohttp.WSMsgType.ERROR:
                    if getattr(message.data, "code", None) == aiohttp.WSCloseCode.MESSAGE_TOO_BIG:
                        failure = errors.answer_too_large(self._endpoint.name, self._endpoint.message_bytes)
                    break
            else:
                # Servers drop a connection without a word when a message is too large for them.
                if self._largest_in_flight > _DEFAULT_FRAME:
                    _log.warning(
                        "%s closed a connection while a message of %d bytes was under way: its setting maxContentLength may be too small",
                        self._endpoint.name,
                        self._largest_in_flight,
                    )
        except (aiohttp.ClientError, OSError) as error:
            failure.__cause__ = error
        finally:
            for answer, _ in self._pending.values():
                if not answer.done():
                    answer.set_exception(failure)

    async def _take(self, message: graphbinary.Answer) -> None:
        if message.code == 407 and self._endpoint.username:
            sasl = f"\0{self._endpoint.username}\0{self._endpoint.password}".encode()
            reply = bytecode.request("traversal", "authentication", {"sasl": base64.b64encode(sasl).decode()})
            await self._websocket.send_bytes(self._serializer.serialize_message(message.request_id, reply))
            return
        pending = self._pending.get(message.request_id)
        if pending is None or pending[0].done():
            return  # whoever asked has left
        answer, rows = pending
        if message.code in {200, 206}:
            rows.extend(message.rows)
        if message.code in {200, 204}:
            answer.set_result(rows)
        elif message.code != 206:
            answer.set_exception(errors.refused(self._endpoint.name, message.code, message.message))


def _message(request: Any, source: str, stop: Deadline | None) -> Any:
    left_ms = _UNINTERRUPTED_MS if stop is None else max(1, int(stop.remaining() * 1000))  # 0 would mean for ever
    arguments: dict[str, Any] = {"aliases": {"g": source}, "evaluationTimeout": bytecode.long(left_ms)}
    if isinstance(request, Script):
        arguments |= {"gremlin": request.text, "bindings": dict(request.bindings), "language": request.language}
        return bytecode.request("", "eval", arguments)
    arguments["gremlin"] = request.bytecode
    return bytecode.request("traversal", "bytecode", arguments)
