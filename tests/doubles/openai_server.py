"""Doubles of a plain OpenAI server and of vLLM's, which speak HTTP and server-sent events over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from tests.doubles import tiny_language as language

DONE = "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


@dataclass
class Behaviour:
    """What a double does besides answering, and what it saw.

    Attributes:
        vllm: Whether it has vLLM's extensions.
        script: Written in place of an answer, as it is, where there is one; an `asyncio.Event` in it is waited for.
        statuses: Status and body of the next answers, in place of what is asked.
        cut: Bytes of a write: events come in pieces of this size.
    """

    vllm: bool = False
    name: str = "tiny"
    script: list[Any] | None = None
    statuses: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    cut: int = 0
    before_token: Callable[[int], Any] | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class _Connection:
    def __init__(self, does: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._does = does
        self._reader = reader
        self._writer = writer

    async def serve(self) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await self._reader.readline():
                _, path, _ = line.decode().split()
                headers: dict[str, str] = {}
                while (header := await self._reader.readline()) not in (b"\r\n", b""):
                    name, _, value = header.decode().partition(":")
                    headers[name.lower()] = value.strip()
                content = await self._reader.readexactly(int(headers.get("content-length", 0)))
                body = json.loads(content) if content else {}
                self._does.headers.append(headers)
                self._does.requests.append((path, body))
                await self._answer(path, body)
        self._writer.close()

    async def _answer(self, path: str, body: dict[str, Any]) -> None:
        does = self._does
        if does.statuses:
            await self._json(*does.statuses.pop(0))
        elif path == "/v1/models":
            entry: dict[str, Any] = {"id": does.name, "object": "model", "owned_by": "nobody"}
            if does.vllm:
                entry.update(root=f"/models/{does.name}", max_model_len=language.CONTEXT)
            await self._json(200, {"object": "list", "data": [entry]})
        elif path == "/tokenize" and does.vllm:
            await self._json(200, {"tokens": _tokens(body)})
        elif path == "/detokenize" and does.vllm:
            await self._json(200, {"prompt": language.tokenizer().decode(body["tokens"])})
        elif path in ("/v1/completions", "/v1/chat/completions"):
            if body["model"] != does.name:
                await self._json(404, {"error": {"message": "no such model"}})
            else:
                await self._stream(self._script(path, body))
        else:
            await self._json(404, {"detail": "Not Found"})

    def _script(self, path: str, body: dict[str, Any]) -> list[Any]:
        if self._does.script is not None:
            return self._does.script
        by_ids = path == "/v1/completions"
        ids = body["prompt"] if by_ids else _tokens(body)
        following = language.continuation(ids, schema="response_format" in body)
        limit = body.get("max_tokens", 10_000)
        reason = "stop" if len(following) <= limit else "length"
        following = following[:limit]
        shown = following[:-1] if reason == "stop" else following
        events: list[Any] = []
        if not by_ids:
            events.append(event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))
        told = ""
        for place in range(len(following)):
            whole = language.tokenizer().decode(shown[: place + 1])
            text = "" if whole.endswith("\ufffd") else whole[len(told) :]
            told += text
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason if place + 1 == len(following) else None}
            if by_ids:
                choice.update(text=text, token_ids=[following[place]], stop_reason=None)
                if body.get("logprobs"):
                    choice["logprobs"] = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5}]}
            else:
                choice["delta"] = {"content": text}
                if body.get("logprobs") and place < len(shown):
                    entry = {"token": text, "logprob": -0.5}
                    choice["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
            events += [place, event({"choices": [choice]})]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(shown)}
        return [*events, event({"choices": [], "usage": usage}), DONE]

    async def _stream(self, script: list[Any]) -> None:
        does = self._does
        does.running += 1
        does.idle.clear()
        gone = asyncio.create_task(self._reader.read(1))
        try:
            self._head(200, "text/event-stream", "transfer-encoding: chunked")
            for step in script:
                if gone.done():
                    return
                if isinstance(step, asyncio.Event):
                    waiting = asyncio.create_task(step.wait())
                    await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                elif isinstance(step, int):
                    if does.before_token is not None:
                        await does.before_token(step)
                elif step is None:
                    # A connection that breaks in the middle of a body.
                    self._writer.transport.abort()
                    return
                else:
                    await self._write(step.encode() if isinstance(step, str) else step)
            self._writer.write(b"0\r\n\r\n")
            await self._writer.drain()
            self._writer.close()
        finally:
            gone.cancel()
            does.running -= 1
            if not does.running:
                does.idle.set()

    async def _write(self, data: bytes) -> None:
        size = self._does.cut or len(data) or 1
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            self._writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await self._writer.drain()

    async def _json(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self._head(status, "application/json", f"content-length: {len(content)}")
        self._writer.write(content)
        await self._writer.drain()

    def _head(self, status: int, kind: str, length: str) -> None:
        self._writer.write(f"HTTP/1.1 {status} OK\r\ncontent-type: {kind}\r\n{length}\r\n\r\n".encode())


def _tokens(body: dict[str, Any]) -> list[int]:
    tokenizer = language.tokenizer()
    if "messages" not in body:
        return tokenizer.encode(body["prompt"], add_special_tokens=False).ids
    text = "".join(f"<|{message['role']}|>{message['content']}</s>" for message in body["messages"])
    return tokenizer.encode(f"<s>{text}<|assistant|>", add_special_tokens=False).ids


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[str]:
    """Serves the double; gives the address with `/v1`."""
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.CancelledError):
                await _Connection(behaviour, reader, writer).serve()
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await server.wait_closed()
