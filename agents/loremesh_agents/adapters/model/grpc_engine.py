"""Calls to engines that speak gRPC: deadlines, silence, and the one place where their errors are translated."""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from loremesh_agents.adapters.model.token_model import EngineEnd, EngineLogprobs, EngineTokens
from loremesh_agents.domain.answer import FinishReason
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, LoremeshError, UnsupportedByModel
from loremesh_agents.runtime.channel import ChannelOptions, open_channel
from loremesh_agents.runtime.idle import IdleTimer

_log = logging.getLogger(__name__)

_REFUSED = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE}
)
_MOST_DETAILS = 300
_FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_Response = TypeVar("_Response")


class GrpcEngine:
    """A connection to an engine.

    Args:
        backend: The engine's name in errors.
        target: `host:port`.
        idle_timeout: Seconds for which the engine may be silent; one whose workers hang keeps its health good.
        failure_level: At which level of the log failed calls are told.
    """

    def __init__(self, backend: str, target: str, *, idle_timeout: float, failure_level: int = logging.WARNING) -> None:
        self.backend = backend
        self._idle_timeout = idle_timeout
        self._failure_level = failure_level
        self.channel = open_channel(target, ChannelOptions())

    async def unary(self, method: Any, request: object, *, deadline: Deadline) -> Any:
        """Calls a method that gives one message; its types are those of the compiled contract, which has none for methods.

        Raises:
            BackendUnavailable: The engine does not answer, or what it answers is no message.
            BudgetExhausted: The deadline passed.
        """
        try:
            response = await method(request, timeout=deadline.shrink(cap=self._idle_timeout).remaining())
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, "", deadline) from None
        return self._whole(response)

    async def stream(self, method: Any, request: object, *, model: str, deadline: Deadline) -> AsyncGenerator[Any]:
        """Calls a method that gives a stream. Closing it cancels the call, which makes the engine drop the request.

        Args:
            method: Of the engine's stub.
            request: The message.
            model: Whose request this is, for what the engine refuses.
            deadline: When the answer becomes useless.

        Raises:
            BackendUnavailable: The engine does not answer, fell silent, or what it sends is no message.
            BudgetExhausted: The deadline passed.
            UnsupportedByModel: The engine refuses the request.
        """
        call = method(request, timeout=deadline.remaining())
        waiting = _Waiting()
        idle = IdleTimer(self._idle_timeout, waiting.last_activity, call.cancel)
        try:
            while True:
                waiting.since = time.monotonic()
                response = await call.read()
                waiting.since = 0.0
                if response is grpc.aio.EOF:
                    return
                yield self._whole(response)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error, model, deadline) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if idle.expired:
                _log.warning("the %s engine was silent for %g s", self.backend, self._idle_timeout)
            # Else the channel was closed.
            raise BackendUnavailable(self.backend) from None
        finally:
            idle.stop()
            call.cancel()

    async def tokens(
        self,
        method: Any,
        message: object,
        logprobs: Callable[[Any], Sequence[EngineLogprobs]],
        *,
        model: str,
        deadline: Deadline,
    ) -> AsyncGenerator[EngineTokens | EngineEnd]:
        """What a method writes that gives chunks with new ids, and a last message that repeats some or all of them.

        Args:
            method: Of the engine's stub.
            message: The request.
            logprobs: What a chunk says of its tokens' likelihood.
            model: Whose request this is.
            deadline: When the answer becomes useless.

        Raises:
            BackendUnavailable: As `stream`; or it ends without a reason, or with one that is not known.
            BudgetExhausted: The deadline passed.
            UnsupportedByModel: The engine refuses the request.
        """
        async with aclosing(self.stream(method, message, model=model, deadline=deadline)) as responses:
            async for response in responses:
                if response.HasField("chunk"):
                    yield EngineTokens(response.chunk.token_ids, logprobs(response.chunk))
                elif response.HasField("complete"):
                    reason = _FINISHES.get(response.complete.finish_reason)
                    if reason is None:
                        break
                    yield EngineEnd(reason)
                    return
        raise BackendUnavailable(self.backend)

    async def archive(self, method: Any, request: object, most_bytes: int, *, deadline: Deadline) -> bytes:
        """The tokenizer that an engine sends in chunks with its SHA-256 in the last one.

        Raises:
            BackendUnavailable: It does not come, is larger than allowed, or its checksum is wrong.
            BudgetExhausted: The deadline passed.
        """
        data = bytearray()
        checksum = ""
        async for chunk in self.stream(method, request, model="", deadline=deadline):
            data += chunk.data
            checksum = chunk.sha256 or checksum
            if len(data) > most_bytes:
                _log.error("the %s engine sends a tokenizer of more than %d bytes", self.backend, most_bytes)
                raise BackendUnavailable(self.backend)
        if hashlib.sha256(data).hexdigest() != checksum:
            _log.error("the tokenizer of the %s engine came damaged: its SHA-256 is not %s", self.backend, checksum)
            raise BackendUnavailable(self.backend)
        return bytes(data)

    async def close(self) -> None:
        """Closes the connection."""
        await self.channel.close()

    def _whole(self, response: _Response | None) -> _Response:
        if response is None:
            # gRPC has logged why the bytes are no message.
            raise BackendUnavailable(self.backend)
        return response

    def _translated(self, error: grpc.aio.AioRpcError, model: str, deadline: Deadline) -> LoremeshError:
        code, details = error.code(), (error.details() or "")[:_MOST_DETAILS]
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline.expired:
            return BudgetExhausted("generator", "generation")
        if code in _REFUSED and model:
            return UnsupportedByModel(model, f"this request: {details}")
        _log.log(self._failure_level, "the %s engine failed with %s: %s", self.backend, code.name, details)
        return BackendUnavailable(self.backend)


class _Waiting:
    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since = 0.0

    def last_activity(self) -> float:
        return self.since or time.monotonic()
