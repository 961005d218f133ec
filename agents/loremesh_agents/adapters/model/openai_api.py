"""Calls to a server with OpenAI's HTTP interface: deadlines, silence, and the one place where its errors are translated."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, TypeAlias, cast

import httpx

from loremesh_agents.adapters.model.sse import EventStream, EventTooLong
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    LoremeshError,
    ModelNotFound,
    UnsupportedByModel,
)

_log = logging.getLogger(__name__)

Json: TypeAlias = dict[str, Any]

_BACKEND = "openai"
_DONE = "[DONE]"
_MOST_ANSWER_BYTES = 8 * 1024 * 1024
_MOST_DETAILS = 300
_MOST_CONNECTIONS = 1024
_LONGEST_PAUSE = 60.0


class OpenAiApi:
    """A server.

    Args:
        base: Its address with the path under which `/chat/completions` is, as in `http://host:8000/v1`.
        api_key: Sent as bearer token; empty for none.
        idle_timeout: Seconds for which the server may be silent.
    """

    backend = _BACKEND

    def __init__(self, base: str, *, api_key: str, idle_timeout: float) -> None:
        self._base = base.rstrip("/")
        self._idle_timeout = idle_timeout
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=None,  # noqa: S113 - deadline and silence are measured below, where it is known which of them passed
            limits=httpx.Limits(max_connections=_MOST_CONNECTIONS, max_keepalive_connections=64),
            # Settings alone say where the engine is and with which key: no proxy, no netrc.
            trust_env=False,
        )

    @property
    def root(self) -> str:
        """The address without `/v1`: where vLLM has what OpenAI does not."""
        return self._base.removesuffix("/v1")

    async def call(self, method: str, path: str, body: Json | None = None, *, deadline: Deadline) -> Json | None:
        """Calls what gives one JSON object; None where the server does not have it.

        Args:
            method: Of HTTP.
            path: Below the base, or a whole address.
            body: What to send.
            deadline: When the answer becomes useless.

        Raises:
            BackendUnavailable: The server does not answer, or what it answers is no JSON object.
            BudgetExhausted: The deadline passed.
        """
        async with _translated(self._timeout(deadline), deadline):
            request = self._client.build_request(method, self._address(path), json=body)
            response = await self._client.send(request, stream=True)
            try:
                content = await _bounded(response)
            finally:
                await response.aclose()
        if response.status_code in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED}:
            return None
        if response.status_code != HTTPStatus.OK:
            raise _refusal(response.status_code, _said(content), "", response.headers.get("retry-after", ""))
        return _object(content)

    async def events(self, path: str, body: Json, *, model: str, deadline: Deadline) -> AsyncGenerator[Json]:
        """Calls what gives a stream of events, which ends where the server says `[DONE]`. Closing it closes the connection, which makes the server stop.

        Raises:
            BackendUnavailable: The server does not answer, fell silent, broke off, reports an error, or sends what is no JSON object.
            BudgetExhausted: The deadline passed.
            ModelNotFound: The server does not serve the model.
            UnsupportedByModel: The server refuses the request.
        """
        async with _translated(self._timeout(deadline), deadline):
            request = self._client.build_request("POST", self._address(path), json=body)
            response = await self._client.send(request, stream=True)
        try:
            if response.status_code != HTTPStatus.OK:
                async with _translated(self._timeout(deadline), deadline):
                    content = await _bounded(response)
                raise _refusal(response.status_code, _said(content), model, response.headers.get("retry-after", ""))
            chunks = response.aiter_bytes()
            stream = EventStream()
            while True:
                async with _translated(self._timeout(deadline), deadline):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    # Without `[DONE]`: whether the answer is whole, its finish reason says.
                    return
                for data in stream.feed(chunk):
                    if data == _DONE:
                        return
                    event = _object(data)
                    if event.get("error") is not None:
                        # vLLM goes on with `[DONE]`, as if nothing had happened.
                        raise _refusal(_code(event), _message(event), model)
                    yield event
        except EventTooLong as error:
            _log.warning("the %s engine sends no events: %s", _BACKEND, error)
            raise BackendUnavailable(_BACKEND) from None
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def _address(self, path: str) -> str:
        return path if "://" in path else f"{self._base}{path}"

    def _timeout(self, deadline: Deadline) -> float:
        return deadline.shrink(cap=self._idle_timeout).remaining()


@asynccontextmanager
async def _translated(seconds: float, deadline: Deadline) -> AsyncGenerator[None]:
    """Bounds what it surrounds by a time, and translates what the driver raises."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        if deadline.expired:
            raise BudgetExhausted("generator", "generation") from None
        _log.warning("the %s engine is silent", _BACKEND)
        raise BackendUnavailable(_BACKEND) from None
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
        _log.warning("the %s engine cannot be reached: %s", _BACKEND, str(error) or type(error).__name__)
        raise BackendUnavailable(_BACKEND) from None


async def _bounded(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MOST_ANSWER_BYTES:
            raise httpx.HTTPError(f"an answer of more than {_MOST_ANSWER_BYTES} bytes")
    return bytes(content)


def _object(content: bytes | str) -> Json:
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _log.warning("the %s engine sends what is no JSON object: %r", _BACKEND, content[:64])
        raise BackendUnavailable(_BACKEND)
    return cast("Json", value)


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    if isinstance(error, dict):
        return str(cast("Json", error).get("message", ""))
    return str(error or body.get("detail") or body.get("message") or "")


def _code(event: Json) -> int:
    """The status that an error in the middle of a stream would have had before it."""
    error = event.get("error")
    code = cast("Json", error).get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else HTTPStatus.INTERNAL_SERVER_ERROR


def _said(content: bytes) -> str:
    """What an answer that is not 200 says."""
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    return _message(cast("Json", body)) if isinstance(body, dict) else ""


def _refusal(status: int, said: str, model: str, pause: str = "") -> LoremeshError:
    """The error of a status.

    Args:
        status: Of HTTP.
        said: What the server says about it.
        model: Whose request this is; empty where it is nobody's.
        pause: The header `retry-after`.
    """
    said = said[:_MOST_DETAILS]
    match status:
        case HTTPStatus.NOT_FOUND if model:
            return ModelNotFound(model, ())
        case HTTPStatus.BAD_REQUEST | HTTPStatus.REQUEST_ENTITY_TOO_LARGE | HTTPStatus.UNPROCESSABLE_ENTITY if model:
            return UnsupportedByModel(model, f"this request: {said}")
        case _:
            _log.warning("the %s engine failed with status %d: %s", _BACKEND, status, said)
            return BackendUnavailable(_BACKEND, _pause(pause))


def _pause(told: str) -> float:
    return min(float(told), _LONGEST_PAUSE) if told.isdecimal() else 1.0
