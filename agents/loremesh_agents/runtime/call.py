"""One call on the server's side, as the interceptors see it."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from loremesh_agents.domain.errors import InvalidRequest
from loremesh_agents.domain.principal import Principal
from loremesh_agents.runtime.context import Metadata, RequestContext, replace_current

# Messages have no common type: requests and responses are whatever the service's serialisers take.
Message: TypeAlias = Any
ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Message, Message]"
Behavior: TypeAlias = Callable[[Message, ServicerContext], Message]

UNKNOWN_METHOD = "unknown"
"""Name of every method that the server does not have: callers must not be able to fill the memory with names."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of a service.

    Attributes:
        service: Full name of its service, as in `loremesh.v1.RetrieverService`.
        name: Its own name, as in `Retrieve`.
        request_streaming: Whether requests are a stream.
        response_streaming: Whether responses are a stream.
    """

    service: str
    name: str
    request_streaming: bool
    response_streaming: bool

    @property
    def full_name(self) -> str:
        """Service and name, as in `loremesh.v1.RetrieverService/Retrieve`."""
        return f"{self.service}/{self.name}" if self.service else self.name

    @property
    def streaming(self) -> bool:
        """Whether messages stream in either direction."""
        return self.request_streaming or self.response_streaming


class ServerCall:
    """A call in progress. It lives in one task, from the outermost interceptor to the servicer.

    Attributes:
        method: The method called.
        servicer_context: What gRPC gives to the servicer.
        metadata: The metadata that came with the call; the last value of each key.
        requests: The request messages, also of a method that takes a single one.
        request_context: The circumstances of the call, filled by one interceptor after the other.
        started: When it began, on `time.monotonic()`.
        active: When a message last went either way, on `time.monotonic()`.
        first_sent: When the first message was sent, on `time.monotonic()`; 0 until then.
        sent: How many messages were sent.
        received: How many messages were received.
        initial_metadata: Sent with the first message.
        trailing_metadata: Sent with an error, to which no initial metadata belong: those would forbid a retry.
        code: The final status; None as long as it is open.
        reason: The final error's reason, empty without one.
        response: The response of a method that gives a single one.
    """

    __slots__ = (
        "active",
        "code",
        "first_sent",
        "initial_metadata",
        "metadata",
        "method",
        "reason",
        "received",
        "request_context",
        "requests",
        "response",
        "sent",
        "servicer_context",
        "started",
        "trailing_metadata",
    )

    def __init__(self, method: Method, servicer_context: ServicerContext) -> None:
        self.method = method
        self.servicer_context = servicer_context
        self.metadata: dict[str, str | bytes] = dict(servicer_context.invocation_metadata() or ())
        self.requests = RequestStream(self, servicer_context.read)
        self.request_context = RequestContext(query_id="", method=method.full_name)
        self.started = self.active = time.monotonic()
        self.first_sent = 0.0
        self.sent = 0
        self.received = 0
        self.initial_metadata: Metadata = ()
        self.trailing_metadata: Metadata = ()
        self.code: grpc.StatusCode | None = None
        self.reason = ""
        self.response: Message = None

    def set_context(self, context: RequestContext) -> None:
        """Gives the call other circumstances, which `context.current()` shows from now on."""
        self.request_context = context
        replace_current(context)

    def authenticate(self, principal: Principal, peer: str) -> None:
        """Notes on whose behalf the call is made, and who vouches for it."""
        self.set_context(replace(self.request_context, principal=principal, peer=peer))

    @property
    def final_code(self) -> grpc.StatusCode:
        """The status code, for those who look at it when the call has ended."""
        return self.code if self.code is not None else grpc.StatusCode.UNKNOWN


class RequestStream:
    """The request messages of a call.

    Each is decoded and checked when it is read. Read it in one task: a read that is cancelled ends the stream, because
    the message that it waited for is lost.
    """

    __slots__ = ("_call", "_check", "_ended", "_read", "_reading")

    def __init__(self, call: ServerCall, read: Callable[[], Awaitable[Message]]) -> None:
        self._call = call
        self._read = read
        self._check: Callable[[Message], None] | None = None
        self._ended = False
        self._reading = False

    def check_with(self, check: Callable[[Message], None]) -> None:
        """Has each message checked before it is handed out. What the check raises goes to the reader."""
        self._check = check

    def __aiter__(self) -> "RequestStream":
        return self

    async def __anext__(self) -> Message:
        if self._ended:
            raise StopAsyncIteration
        if self._reading:
            raise RuntimeError("another read of this request stream is pending or was cancelled")
        self._reading = True
        try:
            message = await self._read()
        except DecodeError:
            raise InvalidRequest.of("", "the bytes are no message of the method's request type", "encoding") from None
        self._reading = False
        if message is grpc.aio.EOF:
            self._ended = True
            raise StopAsyncIteration
        call = self._call
        call.received += 1
        call.active = time.monotonic()
        if self._check is not None:
            self._check(message)
        return message

    async def single(self) -> Message:
        """The request of a method that takes one.

        Raises:
            InvalidRequest: There is none, or it breaks rules.
        """
        async for message in self:
            return message
        raise InvalidRequest.of("", "the request message is missing", "required")
