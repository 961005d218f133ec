"""`openai+http(s)://host:port/v1`: any server with OpenAI's chat completions, and more of it where the server is vLLM.

OpenAI's interface takes messages and gives text. vLLM's takes and tells token ids as well: so the prompt is counted before it is sent, and a generation can be gone
on with.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from loremesh_agents.adapters.model.chat_template import message_fields
from loremesh_agents.adapters.model.detokenizer import Piece, StopTexts
from loremesh_agents.adapters.model.openai_api import Json, OpenAiApi
from loremesh_agents.adapters.model.requests import (
    check_request,
    check_resumed_ids,
    penalised,
    resumptions,
    token_limit,
)
from loremesh_agents.domain.answer import FinishReason, TokenDelta, TokenLogprob, TokenLogprobs, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, BudgetExhausted, ConfigurationError, ModelNotFound
from loremesh_agents.domain.structured_output import parsed_schema
from loremesh_agents.ports.language_model import Capability, GenerationEnd, GenerationRequest, Model, ToolCallPiece

_FRESH = 2.0
"""Seconds for which what the server says of itself is believed; a call that fails ends them."""
_LARGEST_SEED = 2**63 - 1
_COUNTED_AT_ONCE = 16
_BYTES_A_TOKEN = 3
_MOST_STOPS = 4
"""Stop texts that OpenAI takes; we look for all of them anyway."""
_PROBE = "Tokens of naïve 日本語 🙂\n\t<|x|> 0123456789"
_CAPABILITIES = frozenset(
    {Capability.GENERATION, Capability.TOOLS, Capability.JSON_SCHEMA, Capability.LOGPROBS, Capability.SAMPLING}
)
_FINISHES = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.NO_ANSWER,
}


class _Counter(Protocol):
    """What is needed of a tokenizer here."""

    hash: str

    def count(self, texts: Sequence[str]) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class _Served:
    """Models of the server, and whether it takes token ids."""

    described: str
    models: tuple[Model, ...]
    takes_ids: bool


class OpenAiModel:
    """See `ports.language_model.LanguageModel`.

    Args:
        base: Address of the server with `/v1`.
        name: The default model; empty for the server's first.
        api_key: Sent as bearer token; empty for none.
        tokenizer: Folder of the model's tokenizer, to count tokens by; None to ask the server, or to estimate where it does not count.
        context_tokens: Context of the models of a server that does not say.
        idle_timeout: Seconds for which the server may be silent.

    Raises:
        ConfigurationError: The tokenizer cannot be read.
    """

    def __init__(
        self,
        base: str,
        *,
        name: str = "",
        api_key: str = "",
        tokenizer: Path | None = None,
        context_tokens: int,
        idle_timeout: float,
    ) -> None:
        self._api = OpenAiApi(base, api_key=api_key, idle_timeout=idle_timeout)
        self._name = name
        self._context_tokens = context_tokens
        self._tokenizer: _Counter | None = _open_tokenizer(tokenizer) if tokenizer is not None else None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self._asking = asyncio.Lock()
        self._served: _Served | None = None
        self._believed_until = 0.0

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """See the port."""
        return (await self._serving(deadline)).models

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """See the port. An estimate where neither server nor settings have the tokenizer: a token for each 3 bytes."""
        served = await self._serving(deadline)
        found = _find(model, served.models)
        tokenizer = self._tokenizer
        if tokenizer is not None:
            try:
                async with asyncio.timeout(deadline.remaining()):
                    return await asyncio.get_running_loop().run_in_executor(self._threads, tokenizer.count, list(texts))
            except TimeoutError:
                raise BudgetExhausted("generator", "tokenization") from None
        if not served.takes_ids:
            return tuple(-(-len(text.encode()) // _BYTES_A_TOKEN) for text in texts)
        at_once = asyncio.Semaphore(_COUNTED_AT_ONCE)

        async def count(text: str) -> int:
            async with at_once:
                body: Json = {"prompt": text, "add_special_tokens": False}
                return len(await self._tokenize(found.name, body, deadline))

        try:
            async with asyncio.TaskGroup() as group:
                counts = [group.create_task(count(text)) for text in texts]
        except ExceptionGroup as errors:
            # One failure stops the others, and is the only one that counts.
            raise errors.exceptions[0] from None
        return tuple(task.result() for task in counts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """See the port."""
        served = await self._serving(deadline)
        model = _find(request.options.model, served.models)
        check_request(request, model, largest_seed=_LARGEST_SEED)
        try:
            by_ids = served.takes_ids and not request.tools
            written = (self._complete if by_ids else self._chat)(request, model, deadline)
            async with aclosing(written) as events:
                async for event in events:
                    yield event
        except (BackendUnavailable, ModelNotFound) as error:
            self._believed_until = 0.0
            if isinstance(error, ModelNotFound):
                # The server has changed its models since it listed them.
                raise ModelNotFound(model.name, [other.name for other in served.models if other is not model]) from None
            raise

    async def close(self) -> None:
        """See the port."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._api.close()

    async def _complete(
        self, request: GenerationRequest, model: Model, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """By token ids."""
        emitted = check_resumed_ids(request, 2**31)
        conversation: Json = {
            "messages": [message_fields(message) for message in request.messages],
            "add_generation_prompt": True,
        }
        prompt = await self._tokenize(model.name, conversation, deadline)
        limit = token_limit(request, model, len(prompt))
        writing = _Writing(request, len(emitted), limit)
        if limit <= len(emitted):
            yield GenerationEnd(FinishReason.LENGTH, Usage(len(prompt), len(emitted)), resumptions(request))
            return
        body = {
            **_sampling(request, model, limit - len(emitted)),
            "prompt": [*prompt, *emitted],
            "stop": list(request.options.stop),
            "return_token_ids": True,
            # What the model's publisher recommends is not what our contract says.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        if request.options.top_logprobs:
            body["logprobs"] = request.options.top_logprobs
        async with aclosing(self._api.events("/completions", body, model=model.name, deadline=deadline)) as events:
            async for event in events:
                choice = writing.choice(event)
                if choice is None:
                    continue
                ids = _ids(choice.get("token_ids"))
                text = choice.get("text")
                logprobs = _completion_logprobs(choice.get("logprobs"), ids)
                if choice.get("finish_reason") == "stop" and ids and not isinstance(choice.get("stop_reason"), str):
                    # The token that ends an answer is not a part of it.
                    ids, logprobs = ids[:-1], logprobs[: len(ids) - 1]
                piece = Piece(text if isinstance(text, str) else "", ids, len(ids), logprobs)
                for delta in writing.take(piece):
                    yield delta
                if writing.ended:
                    break
        for delta in writing.finish():
            yield delta
        yield writing.end(len(prompt))

    async def _chat(
        self, request: GenerationRequest, model: Model, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """By messages and text."""
        limit = request.options.max_tokens or min(
            request.default_max_tokens or model.context_tokens, model.context_tokens
        )
        if request.options.max_tokens > model.context_tokens:
            token_limit(request, model, 0)
        writing = _Writing(request, 0, limit)
        body = {
            **_sampling(request, model, request.options.max_tokens or request.default_max_tokens),
            "messages": [message_fields(message) for message in request.messages],
        }
        if request.options.stop:
            body["stop"] = list(request.options.stop)[:_MOST_STOPS]
        if request.options.top_logprobs:
            body.update(logprobs=True, top_logprobs=request.options.top_logprobs)
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": tool.name,
                        "description": tool.description,
                        "parameters": dict(tool.parameters) or {"type": "object", "properties": {}},
                    },
                }
                for tool in request.tools
            ]
        async with aclosing(self._api.events("/chat/completions", body, model=model.name, deadline=deadline)) as events:
            async for event in events:
                choice = writing.choice(event)
                if choice is None:
                    continue
                delta = _mapping(choice.get("delta"))
                for call in _tool_calls(delta.get("tool_calls")):
                    yield call
                text = delta.get("content")
                logprobs = _chat_logprobs(choice.get("logprobs"))
                if (isinstance(text, str) and text) or logprobs:
                    piece = Piece(text if isinstance(text, str) else "", (), len(logprobs) or 1, logprobs)
                    for ready in writing.take(piece):
                        yield ready
                if writing.ended:
                    break
        for ready in writing.finish():
            yield ready
        yield writing.end(0)

    async def _tokenize(self, model: str, body: Json, deadline: Deadline) -> tuple[int, ...]:
        answer = await self._api.call("POST", f"{self._api.root}/tokenize", {"model": model, **body}, deadline=deadline)
        if answer is None or not isinstance(answer.get("tokens"), list):
            raise BackendUnavailable(self._api.backend)
        return _ids(answer["tokens"])

    async def _serving(self, deadline: Deadline) -> _Served:
        """The models of the server, the default first."""
        served = self._served
        if served is not None and time.monotonic() < self._believed_until:
            return served
        if deadline.expired:
            raise BudgetExhausted("generator", "generation")
        try:
            async with asyncio.timeout(deadline.remaining()), self._asking:
                if self._served is None or time.monotonic() >= self._believed_until:
                    # What the server tells in its list is enough to see that it is another one now.
                    self._served = await self._ask(self._served if self._believed_until else None, deadline)
                    self._believed_until = time.monotonic() + _FRESH
                return self._served
        except TimeoutError:
            raise BudgetExhausted("generator", "finding the model") from None

    async def _ask(self, before: _Served | None, deadline: Deadline) -> _Served:
        listed = await self._api.call("GET", "/models", deadline=deadline)
        entries = [_mapping(entry) for entry in _list((listed or {}).get("data"))]
        entries = [entry for entry in entries if isinstance(entry.get("id"), str) and entry["id"]]
        if self._name:
            # A server need not list what it serves.
            entries = [entry for entry in entries if entry["id"] == self._name] or [{"id": self._name}]
        if not entries:
            raise BackendUnavailable(self._api.backend)
        described = json.dumps([[entry.get(key) for key in ("id", "root", "max_model_len")] for entry in entries])
        if before is not None and before.described == described:
            return before
        first = entries[0]
        probe: tuple[int, ...] = ()
        if "max_model_len" in first:
            # vLLM says so, and OpenAI does not.
            try:
                body: Json = {"messages": [{"role": "user", "content": _PROBE}], "add_generation_prompt": True}
                probe = await self._tokenize(str(first["id"]), body, deadline)
            except BackendUnavailable:
                probe = ()
        return _Served(described, tuple(self._model(entry, probe) for entry in entries), takes_ids=bool(probe))

    def _model(self, entry: Mapping[str, Any], probe: Sequence[int]) -> Model:
        context = entry.get("max_model_len")
        capabilities = _CAPABILITIES | {Capability.RESUME} if probe else _CAPABILITIES
        identity = [entry["id"], entry.get("root"), list(probe)]
        return Model(
            str(entry["id"]),
            context if isinstance(context, int) and context > 0 else self._context_tokens,
            self._tokenizer.hash if self._tokenizer is not None else "",
            hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32],
            capabilities,
        )


class _Writing:
    """An answer as it grows: pieces to deltas, up to a stop text or the limit."""

    def __init__(self, request: GenerationRequest, emitted: int, limit: int) -> None:
        self._request = request
        self._stops = StopTexts(request.options.stop)
        self._left = limit - emitted
        self._count = emitted
        self._reason: FinishReason | None = None
        self._usage: Mapping[str, Any] = {}
        self._tells_ids = False
        self._textless: Piece | None = None
        self.ended = False

    def choice(self, event: Json) -> Json | None:
        """The first choice of an event; None where it has none."""
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        choices = _list(event.get("choices"))
        if not choices:
            return None
        choice = _mapping(choices[0])
        reason = choice.get("finish_reason")
        if reason is not None:
            if reason not in _FINISHES:
                raise BackendUnavailable("openai")
            self._reason = _FINISHES[reason]
        return choice

    def take(self, piece: Piece) -> list[TokenDelta]:
        """What can be given out after this piece."""
        if not piece.text and not piece.token_count:
            return []
        if piece.token_count > self._left:
            # A server that does not know when to stop.
            self.ended, self._reason = True, FinishReason.LENGTH
            return []
        self._left -= piece.token_count
        self._tells_ids = self._tells_ids or bool(piece.token_ids)
        if self._textless is not None:
            piece = _join(self._textless, piece)
            self._textless = None
        if piece.token_ids and not piece.text:
            # A part of a code point: who goes on with this answer must find text and ids of one length.
            self._textless = piece
            return []
        deltas = [self._delta(ready) for ready in self._stops.add(piece)]
        if self._stops.stopped:
            self.ended, self._reason = True, FinishReason.STOP
        return deltas

    def finish(self) -> list[TokenDelta]:
        """What was held back.

        Raises:
            BackendUnavailable: The stream ended before the answer did.
        """
        if self._reason is None:
            raise BackendUnavailable("openai")
        if self._stops.stopped:
            return []
        held = self._stops.flush() if self._textless is None else [*self._stops.flush(), self._textless]
        return [self._delta(piece) for piece in held]

    def end(self, prompt_tokens: int) -> GenerationEnd:
        """The last event."""
        assert self._reason is not None
        prompt = prompt_tokens or self._told("prompt_tokens")
        # Without ids a message counts as a token, which it need not be.
        written = self._count if self._tells_ids else self._told("completion_tokens") or self._count
        return GenerationEnd(self._reason, Usage(prompt, written), resumptions(self._request))

    def _told(self, name: str) -> int:
        value = self._usage.get(name)
        return value if isinstance(value, int) and value > 0 else 0

    def _delta(self, piece: Piece) -> TokenDelta:
        count = max(piece.token_count, 1)
        delta = TokenDelta(piece.text, self._count, count, piece.token_ids, piece.logprobs)
        self._count += count
        return delta


def _join(first: Piece, second: Piece) -> Piece:
    return Piece(
        first.text + second.text,
        first.token_ids + second.token_ids,
        first.token_count + second.token_count,
        first.logprobs + second.logprobs,
    )


def _sampling(request: GenerationRequest, model: Model, limit: int) -> Json:
    options = request.options
    body: Json = {
        "model": model.name,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": options.temperature or 0.0,
    }
    if limit:
        body["max_tokens"] = limit
    if options.top_p is not None:
        body["top_p"] = options.top_p
    if options.seed is not None:
        body["seed"] = options.seed
    if penalised(options):
        body["frequency_penalty"] = options.frequency_penalty or 0.0
        body["presence_penalty"] = options.presence_penalty or 0.0
    if options.json_schema:
        schema = parsed_schema(options.json_schema, "options.json_schema")
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    return body


def _completion_logprobs(value: object, ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
    told = _mapping(value)
    texts, logprobs, tops = (_list(told.get(name)) for name in ("tokens", "token_logprobs", "top_logprobs"))
    return tuple(
        TokenLogprobs(
            TokenLogprob(str(text), token, float(logprob)),
            tuple(
                TokenLogprob(other, 0, float(value))
                for other, value in sorted(_mapping(top).items(), key=lambda entry: -entry[1])
            ),
        )
        for text, logprob, top, token in zip(texts, logprobs, tops, ids, strict=False)
        if isinstance(logprob, int | float)
    )


def _chat_logprobs(value: object) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(_chat_logprob(entry), tuple(_chat_logprob(top) for top in _list(entry.get("top_logprobs"))))
        for entry in map(_mapping, _list(_mapping(value).get("content")))
    )


def _chat_logprob(value: object) -> TokenLogprob:
    entry = _mapping(value)
    logprob = entry.get("logprob")
    return TokenLogprob(str(entry.get("token", "")), 0, float(logprob) if isinstance(logprob, int | float) else 0.0)


def _tool_calls(value: object) -> list[ToolCallPiece]:
    pieces: list[ToolCallPiece] = []
    for entry in map(_mapping, _list(value)):
        function = _mapping(entry.get("function"))
        index = entry.get("index")
        pieces.append(
            ToolCallPiece(
                index if isinstance(index, int) and index >= 0 else 0,
                str(entry.get("id") or ""),
                str(function.get("name") or ""),
                str(function.get("arguments") or ""),
            )
        )
    return pieces


def _ids(value: object) -> tuple[int, ...]:
    return tuple(token for token in _list(value) if isinstance(token, int))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]  # mypy knows it


def _mapping(value: object) -> Json:
    return cast("Json", value) if isinstance(value, dict) else {}


def _find(name: str, models: Sequence[Model]) -> Model:
    for model in models:
        if name in ("", model.name):
            return model
    raise ModelNotFound(name, [model.name for model in models])


def _open_tokenizer(folder: Path) -> _Counter:
    # The driver comes with an extra of its own, and few need it for this server.
    from loremesh_agents.adapters.model.chat_tokenizer import (  # noqa: PLC0415  # see above
        ChatTokenizer,
        TokenizerRefused,
        read_folder,
    )

    try:
        return ChatTokenizer(read_folder(folder))
    except TokenizerRefused as error:
        raise ConfigurationError(f"the tokenizer in {folder} cannot be used: {error}") from None
