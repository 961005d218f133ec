"""Calls to other agents: channels, and the one way in which their methods are called."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, InternalError, PeerUnavailable, StreamIdle
from loremesh_agents.runtime.context import Metadata, current_or_none, outgoing_metadata
from loremesh_agents.runtime.errors import Decoder, from_rpc_error
from loremesh_agents.runtime.idle import IdleTimer
from loremesh_agents.runtime.ids import new_id
from loremesh_agents.runtime.tls import ClientTls
from loremesh_agents.runtime.tracing import NO_TRACING, ClientSpan, Tracing

__all__ = ["ChannelOptions", "ClientTls", "Peer", "PeerStream", "RetryOptions", "open_channel", "service_config"]

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Result = TypeVar("_Result")
_Config: TypeAlias = dict[str, Any]
_StreamCall: TypeAlias = grpc.aio.UnaryStreamCall[Any, _Response] | grpc.aio.StreamStreamCall[Any, _Response]

_STATUS_DELAY = 1.0
"""Seconds within which the status of a call comes whose write has failed."""

_FIRST_RECONNECT = 0.1
_LAST_RECONNECT = 1.0
"""Seconds between attempts to connect, at first and at most. gRPC's own two minutes would leave a peer aside long after it is back."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryOptions:
    """How calls that may be repeated are repeated when a peer is unavailable. Times are in seconds.

    Attributes:
        attempts: Calls at most, the first one included; 2 to 5.
        initial_backoff: Mean pause before the second attempt.
        max_backoff: Longest mean pause.
        multiplier: How much longer each pause is than the one before.
    """

    attempts: int = 3
    initial_backoff: float = 0.05
    max_backoff: float = 1.0
    multiplier: float = 2.0


@dataclass(frozen=True, slots=True)
class ChannelOptions:
    """How a channel connects. Times are in seconds.

    Attributes:
        tls: Certificates; None for plain text.
        retry: None where the mesh retries: there is one retry layer.
        balance: Whether all calls go over one connection, or over one to each address of the target in turn.
        max_receive_bytes: Largest message accepted.
        max_send_bytes: Largest message sent.
        keepalive_time: Silence after which the client asks whether the server is there.
        keepalive_timeout: How long it waits for the answer.
    """

    tls: ClientTls | None = None
    retry: RetryOptions | None = None
    balance: Literal["pick_first", "round_robin"] = "pick_first"
    max_receive_bytes: int = 4 * 1024 * 1024
    max_send_bytes: int = 4 * 1024 * 1024
    keepalive_time: float = 30.0
    keepalive_timeout: float = 10.0


def open_channel(
    target: str, options: ChannelOptions = ChannelOptions(), services: Iterable[ServiceDescriptor] = ()
) -> grpc.aio.Channel:
    """A channel to an agent; it connects when it is first used, and again when the connection breaks.

    Args:
        target: `host:port`, `dns:///name:port` or `unix:/path`.
        options: How to connect.
        services: What the agent serves; only their methods without side effects are retried, if `options.retry` is set.

    Raises:
        ConfigurationError: A certificate cannot be read.
    """
    arguments: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", options.max_receive_bytes),
        ("grpc.max_send_message_length", options.max_send_bytes),
        ("grpc.keepalive_time_ms", round(options.keepalive_time * 1000)),
        ("grpc.keepalive_timeout_ms", round(options.keepalive_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", round(_FIRST_RECONNECT * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(_LAST_RECONNECT * 1000)),
        # A proxy for the World Wide Web that the environment names is no way to a peer.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", int(options.retry is not None)),
        # Only what is configured here counts, not what a DNS record says.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.service_config", json.dumps(service_config(services, options.retry, options.balance))),
    ]
    if options.tls is None:
        return grpc.aio.insecure_channel(target, options=arguments)
    if options.tls.server_name:
        arguments.append(("grpc.ssl_target_name_override", options.tls.server_name))
    return grpc.aio.secure_channel(target, options.tls.credentials(), options=arguments)


def service_config(
    services: Iterable[ServiceDescriptor], retry: RetryOptions | None, balance: str = "pick_first"
) -> _Config:
    """The gRPC service config of an agent's services.

    Which method may be retried follows from its `idempotency_level` alone: NO_SIDE_EFFECTS and nothing less. gRPC
    retries a stream only as long as no message has come.

    Args:
        services: What the agent serves.
        retry: How to retry; None for not at all.
        balance: Name of the load balancing policy.
    """
    config: _Config = {"loadBalancingConfig": [{balance: {}}]}
    names = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if _has_no_side_effects(method)
    ]
    if retry is not None and names:
        config["methodConfig"] = [
            {
                "name": names,
                "retryPolicy": {
                    "maxAttempts": retry.attempts,
                    "initialBackoff": f"{retry.initial_backoff:g}s",
                    "maxBackoff": f"{retry.max_backoff:g}s",
                    "backoffMultiplier": retry.multiplier,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return config


def _has_no_side_effects(method: MethodDescriptor) -> bool:
    options: MethodOptions = method.GetOptions()
    return options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS


class Peer:
    """Calls methods of another agent on behalf of the call that runs.

    Query id and principal go along, the deadline is passed on with a little kept back, errors come as domain errors,
    and who stops waiting also stops the peer.

    Attributes:
        name: Name of the agent that is called.
    """

    def __init__(
        self,
        name: str,
        *,
        reserve: float = 0.01,
        cap: float | None = None,
        idle_timeout: float | None = 60.0,
        decode: Decoder = from_rpc_error,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        """Sets up the calls.

        Args:
            name: Name of the agent that is called, for errors and spans.
            reserve: Seconds of each deadline kept back for the answer's way back to our caller.
            cap: Most seconds that a call may take, None for what its deadline allows.
            idle_timeout: Seconds that a stream may give nothing while somebody waits for it, None for any time.
            decode: Turns errors of gRPC into domain errors; `errors.from_rpc_error_for_user` for programs of end users.
            tracing: Makes the calls' spans.
        """
        self.name = name
        self._reserve = reserve
        self._cap = cap
        self._idle_timeout = idle_timeout
        self._decode = decode
        self._tracing = tracing

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response],
        request: _Request,
        deadline: Deadline,
        metadata: Metadata = (),
    ) -> _Response:
        """Calls a method that takes one message and gives one.

        Args:
            method: Of the peer's stub.
            request: The message.
            deadline: When the answer becomes useless.
            metadata: What to send besides the context.

        Raises:
            LoremeshError: What the peer answered, BudgetExhausted when there is no time for the call.
        """
        path = _path(method)
        timeout = self._timeout(deadline, path)
        span = self._tracing.client_span(self.name, path)
        code = grpc.StatusCode.CANCELLED
        try:
            response = await method(request, timeout=timeout, metadata=self._metadata(span, metadata))
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as error:
            code = error.code()
            raise self._decode(error, self.name) from error
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            # The channel was closed.
            raise PeerUnavailable(self.name) from None
        finally:
            span.finish(code)
        if response is None:
            raise _undecodable(self.name)
        return response

    def stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[_Request, _Response],
        request: _Request,
        deadline: Deadline | None,
        metadata: Metadata = (),
    ) -> "PeerStream[_Response]":
        """Calls a method that takes one message and gives a stream; the call begins now.

        Args:
            method: Of the peer's stub.
            request: The message.
            deadline: When the answer becomes useless; None for streams that run as long as messages flow.
            metadata: What to send besides the context.

        Raises:
            BudgetExhausted: There is no time for the call. Other errors come out of the stream.
        """
        path = _path(method)
        timeout = self._timeout(deadline, path)
        span = self._tracing.client_span(self.name, path)
        call = method(request, timeout=timeout, metadata=self._metadata(span, metadata))
        return PeerStream(self.name, call, span=span, decode=self._decode, idle_timeout=self._idle_timeout)

    def duplex(
        self,
        method: grpc.aio.StreamStreamMultiCallable[_Request, _Response],
        requests: AsyncIterable[_Request],
        deadline: Deadline | None,
        metadata: Metadata = (),
    ) -> "PeerStream[_Response]":
        """Calls a method that takes a stream and gives one; the call begins now.

        Args:
            method: Of the peer's stub.
            requests: The messages, taken as fast as the peer accepts them, in a task of their own. What they raise
                comes out of the stream.
            deadline: When the answer becomes useless; None for streams that run as long as messages flow.
            metadata: What to send besides the context.

        Raises:
            BudgetExhausted: There is no time for the call. Other errors come out of the stream.
        """
        path = _path(method)
        timeout = self._timeout(deadline, path)
        span = self._tracing.client_span(self.name, path)
        call = method(timeout=timeout, metadata=self._metadata(span, metadata))
        sending = _Sending(call, requests, self.name)
        return PeerStream(
            self.name, call, span=span, decode=self._decode, idle_timeout=self._idle_timeout, sending=sending
        )

    def _timeout(self, deadline: Deadline | None, path: str) -> float | None:
        if deadline is None:
            return self._cap
        seconds = deadline.shrink(reserve=self._reserve, cap=self._cap).remaining()
        if seconds <= 0:
            raise BudgetExhausted(self.name, path.rpartition("/")[2])
        return seconds

    def _metadata(self, span: ClientSpan, metadata: Metadata) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*outgoing_metadata(current_or_none()), *span.metadata, *metadata)


class PeerStream(AsyncIterator[_Response]):
    """The messages of a peer's stream.

    Iterate it in one task, and to its end or within `async with` or `contextlib.aclosing`: leaving the block ends the
    call, as does cancelling the task that waits for a message. A stream that is merely dropped ends its call when it is
    collected.
    """

    def __init__(
        self,
        peer: str,
        call: _StreamCall[_Response],
        *,
        span: ClientSpan,
        decode: Decoder,
        idle_timeout: float | None,
        sending: "_Sending | None" = None,
    ) -> None:
        """For `Peer.stream` and `Peer.duplex`."""
        self._peer = peer
        self._call = call
        self._messages = cast("AsyncGenerator[_Response]", aiter(call))
        self._span = span
        self._decode = decode
        self._sending = sending
        self._waiting = _Waiting()
        self._idle: IdleTimer | None = None
        if idle_timeout is not None:
            # Not a method of this stream: the timer would keep a stream alive that everybody else has dropped.
            self._idle = IdleTimer(idle_timeout, self._waiting.last_activity, call.cancel)
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> _Response:
        """The next message.

        Raises:
            LoremeshError: What the peer answered; StreamIdle when it gave nothing for too long; what the requests
                raised.
        """
        if self._ended:
            raise StopAsyncIteration
        self._waiting.since = time.monotonic()
        try:
            message = await anext(self._messages)
        except StopAsyncIteration:
            await self._end(grpc.StatusCode.OK)
            raise
        except grpc.aio.AioRpcError as seen:
            error = seen if self._sending is None else await self._sending.status_behind(seen)
            if error is None:
                await self._end(grpc.StatusCode.OK)
                raise StopAsyncIteration from None
            await self._end(error.code())
            raise self._decode(error, self._peer) from error
        except asyncio.CancelledError:
            await self._end(grpc.StatusCode.CANCELLED)
            if _cancelled_from_outside():
                raise
            raise self._why_cancelled() from None
        self._waiting.since = 0.0
        if message is None:
            await self._end(grpc.StatusCode.INTERNAL)
            raise _undecodable(self._peer)
        return message

    def _why_cancelled(self) -> BaseException:
        if self._idle is not None and self._idle.expired:
            return StreamIdle(self._peer, self._idle.seconds)
        if self._sending is not None and self._sending.error is not None:
            return self._sending.error
        # The channel was closed.
        return PeerUnavailable(self._peer)

    async def aclose(self) -> None:
        """Ends the call, if it has not ended, and the requests."""
        if not self._ended:
            await self._end(grpc.StatusCode.CANCELLED)

    async def _end(self, code: grpc.StatusCode) -> None:
        self._end_now(code)
        await self._messages.aclose()
        if self._sending is not None:
            await asyncio.wait([self._sending.task])

    def _end_now(self, code: grpc.StatusCode) -> None:
        self._ended = True
        self._call.cancel()
        self._span.finish(code)
        if self._idle is not None:
            self._idle.stop()
        if self._sending is not None:
            self._sending.task.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if not getattr(self, "_ended", True):
            # The event loop may be gone by now.
            with suppress(RuntimeError):
                self._end_now(grpc.StatusCode.CANCELLED)


class _Waiting:
    """Since when somebody waits for the next message; 0 while nobody does."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since = 0.0

    def last_activity(self) -> float:
        return self.since or time.monotonic()


class _Sending:
    """Sends the requests of a call, and remembers the status that the peer has given it.

    Neither is left to gRPC. It logs what the requests raise at level debug and makes a cancel of it; and where a peer
    ends the call while a request is being written, it puts a status of its own over the peer's (grpc/grpc#36066).
    """

    def __init__(
        self, call: grpc.aio.StreamStreamCall[_Request, _Response], requests: AsyncIterable[_Request], peer: str
    ) -> None:
        self.error: Exception | None = None
        self._status: grpc.aio.AioRpcError | None = None
        self._status_known = asyncio.Event()
        call.add_done_callback(self._note_status)
        self.task = asyncio.create_task(self._run(call, requests), name=f"requests to {peer}")

    async def _run(
        self, call: grpc.aio.StreamStreamCall[_Request, _Response], requests: AsyncIterable[_Request]
    ) -> None:
        try:
            async for request in requests:
                if not await _succeeds(call.write(request)):
                    return
            await _succeeds(call.done_writing())
        except Exception as error:  # noqa: BLE001 - it is raised where the responses are read
            self.error = error
            call.cancel()
        finally:
            if isinstance(requests, AsyncGenerator):
                await cast("AsyncGenerator[_Request]", requests).aclose()

    def _note_status(self, call: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        """Takes the status from a call that has just got one, which is not the last one that it may get."""
        status = grpc.aio.AioRpcError(
            _at_once(call.code()),
            _at_once(call.initial_metadata()),
            _at_once(call.trailing_metadata()),
            _at_once(call.details()),
        )
        if self._status is None and not _is_made_up(status):
            self._status = status
            self._status_known.set()

    async def status_behind(self, seen: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | None:
        """What the peer has said, where gRPC shows a status of its own; None if that is OK."""
        if not _is_made_up(seen):
            return seen
        with suppress(TimeoutError):
            async with asyncio.timeout(_STATUS_DELAY):
                await self._status_known.wait()
        if self._status is None:
            return seen
        return None if self._status.code() is grpc.StatusCode.OK else self._status


async def _succeeds(sending: Awaitable[None]) -> bool:
    """Sends; False if the call has ended, whose status then comes out of the response stream."""
    try:
        await sending
    except (grpc.aio.AioRpcError, grpc.aio.InternalError, asyncio.InvalidStateError):
        return False
    return True


def _is_made_up(status: grpc.aio.AioRpcError) -> bool:
    """Whether a status is the one that gRPC puts in when a write has failed."""
    return status.code() is grpc.StatusCode.INTERNAL and status.details() == "Internal error from Core"


def _at_once(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("_Result", done.value)
    coroutine.close()
    raise RuntimeError("the call has no status yet")


def _cancelled_from_outside() -> bool:
    """Whether a CancelledError is meant for this task; gRPC raises the same one when the call itself was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _path(method: object) -> str:
    """Full name of a stub's method; gRPC keeps it to itself, and a span without it would say nothing."""
    name: bytes | str = getattr(method, "_method", b"")
    return (name.decode() if isinstance(name, bytes) else name).removeprefix("/")


def _undecodable(peer: str) -> InternalError:
    """The error for bytes that are no message: gRPC has logged why and hands out None."""
    incident_id = new_id()
    _log.error("a message of peer %s cannot be decoded", peer, extra={"incident_id": incident_id})
    return InternalError(incident_id)
