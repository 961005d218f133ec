"""Runs every call of a server through the interceptors.

All of a call runs in one coroutine: the interceptors are nested around a loop that takes messages from the servicer and
writes them. An async generator for each interceptor, as is usual, would cost every message a step through each of them;
worse, a call that is cancelled while gRPC writes would leave those generators suspended, and their `finally` blocks to
the garbage collector. Here a cancel arrives inside, wherever the call is, and everything is in order when its task
ends.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeAlias, cast

import grpc

from loremesh_agents.domain.errors import NotImplementedYet
from loremesh_agents.runtime.call import UNKNOWN_METHOD, Behavior, Message, Method, ServerCall, ServicerContext
from loremesh_agents.runtime.interceptors.base import Interceptor, Proceed

INFRASTRUCTURE = ("/grpc.health.v1.", "/grpc.reflection.")
"""Services that no interceptor touches: probes are no calls, and must be answered when calls are refused."""

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Found: TypeAlias = "_Handler | None"


class Chain(grpc.aio.ServerInterceptor):
    """The one gRPC interceptor of a server; it runs ours, the first one outermost."""

    def __init__(self, interceptors: Sequence[Interceptor]) -> None:
        self._interceptors = tuple(interceptors)
        self._handlers: dict[str, _Handler] = {}
        self._unknown = self._handler(
            Method("", UNKNOWN_METHOD, request_streaming=True, response_streaming=True), _not_implemented, None, None
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Found]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Found:
        """Finds the handler of a call: the servicer's method within the interceptors."""
        path = handler_call_details.method
        known = self._handlers.get(path)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if path.startswith(INFRASTRUCTURE):
            return handler
        if handler is None:
            return self._unknown
        service, _, name = path.removeprefix("/").rpartition("/")
        method = Method(service, name, handler.request_streaming, handler.response_streaming)
        behavior = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        wrapped = self._handler(
            method, cast("Behavior", behavior), handler.request_deserializer, handler.response_serializer
        )
        self._handlers[path] = wrapped
        return wrapped

    def _handler(
        self,
        method: Method,
        behavior: Behavior,
        deserializer: Callable[[bytes], Message] | None,
        serializer: Callable[[Message], bytes] | None,
    ) -> _Handler:
        proceed = compose(self._interceptors, partial(_dispatch, behavior=behavior))

        async def handle(_: object, context: ServicerContext) -> Message:
            call = ServerCall(method, context)
            await proceed(call)
            return call.response

        # To gRPC each method takes a stream of requests, so that a single request too is read within the interceptors:
        # within the deadline and the in-flight limit, and bytes that cannot be decoded are an error like others.
        factory = (
            grpc.stream_stream_rpc_method_handler if method.response_streaming else grpc.stream_unary_rpc_method_handler
        )
        return factory(handle, request_deserializer=deserializer, response_serializer=serializer)


def compose(interceptors: Sequence[Interceptor], last: Proceed) -> Proceed:
    """The interceptors nested in each other, the first one outermost, around the last step."""
    for interceptor in reversed(interceptors):
        last = partial(interceptor.intercept, proceed=last)
    return last


async def _dispatch(call: ServerCall, behavior: Behavior) -> None:
    """Runs the servicer's method and sends what it gives."""
    method = call.method
    request = call.requests if method.request_streaming else await call.requests.single()
    result = behavior(request, call.servicer_context)
    if method.response_streaming:
        await _send_all(call, cast("AsyncGenerator[Message]", result))
    else:
        call.response = await result
        await _begin(call)
        call.sent = 1
        call.first_sent = time.monotonic()


async def _send_all(call: ServerCall, responses: AsyncGenerator[Message]) -> None:
    write = call.servicer_context.write
    clock = time.monotonic
    async with aclosing(responses):
        async for response in responses:
            if not call.sent:
                await _begin(call)
                call.first_sent = clock()
            try:
                await write(response)
            except grpc.aio.InternalError:
                raise _gone(call) from None
            call.sent += 1
            call.active = clock()
    if not call.sent:
        await _begin(call)


async def _begin(call: ServerCall) -> None:
    """Sends the initial metadata: only now, because they tell the caller that this attempt is not to be retried."""
    if call.initial_metadata:
        try:
            await call.servicer_context.send_initial_metadata(call.initial_metadata)
        except grpc.aio.InternalError:
            raise _gone(call) from None


def _gone(call: ServerCall) -> asyncio.CancelledError:
    """What a failed write means: the caller is gone. gRPC would cancel the task a moment later."""
    call.code = grpc.StatusCode.CANCELLED
    return asyncio.CancelledError()


def _not_implemented(_: Message, __: ServicerContext) -> Message:
    raise NotImplementedYet("this method")
