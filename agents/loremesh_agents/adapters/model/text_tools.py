"""Tool calls for models that write them as text, in the form of Rubra's models: `starttoolcall{"name": ..., "arguments": {...}}endtoolcall`.

Only what the engine writes is looked through for calls, and only where tools are offered. In everything that it reads the markers are taken apart, but for
the calls that it made itself: an engine that repeats its prompt calls nothing that a document says.
"""

import json
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

from loremesh_agents.domain.answer import FinishReason, TokenDelta
from loremesh_agents.domain.conversation import Message, Role, Tool, ToolCall
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import UnsupportedByModel
from loremesh_agents.ports.language_model import (
    Capability,
    GenerationEnd,
    GenerationRequest,
    LanguageModel,
    Model,
    ToolCallPiece,
)

START = "starttoolcall"
END = "endtoolcall"
MOST_CALL_CHARACTERS = 16_384
"""Of one call; a longer one is broken off there and passed on as broken."""
_MOST_SPACE = 16
"""White space between a marker and its JSON."""


@dataclass(frozen=True, slots=True)
class TextCall:
    """A call that was written as text.

    Attributes:
        name: Name of the tool; empty where the text is no call as it must be.
        arguments_json: Its arguments, or the whole text of what is no call.
    """

    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a text.

    Attributes:
        content: Text, or a call.
        end: Characters of the whole text up to where it ends.
    """

    content: str | TextCall
    end: int


class CallParser:
    """Parts text that comes in pieces into text and calls.

    A call begins where the marker is followed by a brace, and ends at the next end marker, wherever that stands. Held back is only what may still be the
    beginning of a call, and a call itself until it is whole. Where the pieces are cut makes no difference to texts and calls.
    """

    def __init__(self) -> None:
        self._held = ""
        self._end = 0
        self._within = False
        self._skipping = False

    def feed(self, text: str) -> list[Part]:
        """What is clear with this text."""
        self._held += text
        parts: list[Part] = []
        while self._within_call(parts) if self._within else self._outside(parts):
            pass
        return parts

    def finish(self) -> list[Part]:
        """What was held back; the text has ended."""
        held = self._take(len(self._held))
        if self._skipping or not held:
            return []
        return [Part(_broken(held) if self._within else held, self._end)]

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        self._end += size
        return taken

    def _outside(self, parts: list[Part]) -> bool:
        """Takes what is text; whether there may be more to take."""
        place = self._held.find(START)
        if place < 0:
            place = len(self._held) - _possible_start(self._held)
            self._say(parts, place)
            return False
        self._say(parts, place)
        after = self._held[len(START) :].lstrip()
        size = len(self._held) - len(after)
        if size > len(START) + _MOST_SPACE or (after and after[0] != "{"):
            # The word alone.
            self._say(parts, len(START))
            return True
        if after:
            self._take(size)
            self._within = True
        return bool(after)

    def _within_call(self, parts: list[Part]) -> bool:
        """Takes a call; whether there may be more to take."""
        end = self._held.find(END)
        if end < 0:
            if self._skipping:
                self._take(max(0, len(self._held) - len(END)))
            elif len(self._held) >= MOST_CALL_CHARACTERS + len(END):
                parts.append(Part(_broken(self._take(MOST_CALL_CHARACTERS)), self._end))
                self._skipping = True
            return False
        call = self._take(end)
        self._take(len(END))
        if not self._skipping:
            parts.append(Part(_call(call) if len(call) <= MOST_CALL_CHARACTERS else _broken(call), self._end))
        self._within = self._skipping = False
        return True

    def _say(self, parts: list[Part], size: int) -> None:
        if size:
            text = self._take(size)
            parts.append(Part(text, self._end))


class TextToolModel:
    """See `ports.language_model.LanguageModel`. Gives calls to a model that writes them as text.

    A call is one piece, when it is whole. What begins as one and is broken becomes a call without a name whose arguments are the text as it was written:
    whoever runs the tools refuses it, and the model hears so. White space after a call is dropped.

    Args:
        model: The engine.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """See the port."""
        models = await self._model.models(deadline=deadline)
        return tuple(replace(model, capabilities=model.capabilities | {Capability.TOOLS}) for model in models)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """See the port."""
        return await self._model.count_tokens(model, texts, deadline=deadline)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """See the port."""
        refused = {
            "resuming a generation with tools": request.resume is not None,
            "a JSON schema together with tools": bool(request.options.json_schema),
        }
        for feature, wanted in refused.items():
            if wanted and request.tools:
                first, *_ = await self._model.models(deadline=deadline)
                raise UnsupportedByModel(request.options.model or first.name, feature)
        plain = replace(request, messages=in_text(request.messages, request.tools), tools=())
        async with aclosing(self._model.generate(plain, deadline=deadline)) as events:
            if not request.tools:
                async for event in events:
                    yield event
                return
            writing = _Writing(sum(len(message.tool_calls) for message in request.messages))
            async for event in events:
                if isinstance(event, TokenDelta):
                    for written in writing.take(event):
                        yield written
                elif isinstance(event, GenerationEnd):
                    for written in writing.finish():
                        yield written
                    stopped = event.finish_reason is FinishReason.STOP
                    yield replace(event, finish_reason=FinishReason.TOOL_CALLS) if stopped and writing.called else event
                else:
                    yield event

    async def close(self) -> None:
        """See the port."""
        await self._model.close()


class _Writing:
    """Deltas of an engine as deltas and calls. A token that is both belongs to the text."""

    def __init__(self, earlier_calls: int) -> None:
        self._parser = CallParser()
        self._earlier = earlier_calls
        self._calls = 0
        self._after_call = False
        self._sequence = 0
        self._read = 0
        self._waiting: deque[tuple[int, TokenDelta]] = deque()

    @property
    def called(self) -> bool:
        """Whether there was a call."""
        return self._calls > 0

    def take(self, delta: TokenDelta) -> list[TokenDelta | ToolCallPiece]:
        """What can be given out after this delta."""
        self._waiting.append((self._read, delta))
        self._read += len(delta.text)
        return self._written(self._parser.feed(delta.text))

    def finish(self) -> list[TokenDelta | ToolCallPiece]:
        """What was held back."""
        return self._written(self._parser.finish())

    def _written(self, parts: Sequence[Part]) -> list[TokenDelta | ToolCallPiece]:
        written: list[TokenDelta | ToolCallPiece] = []
        for part in parts:
            if isinstance(part.content, TextCall):
                self._tokens_before(part.end)
                call_id = f"call_{self._earlier + self._calls + 1}"
                written.append(ToolCallPiece(self._calls, call_id, part.content.name, part.content.arguments_json))
                self._calls += 1
                self._after_call = True
                continue
            tokens = self._tokens_before(part.end)
            text = part.content.lstrip() if self._after_call else part.content
            if text:
                self._after_call = False
                written.append(self._delta(text, tokens))
        return written

    def _tokens_before(self, end: int) -> list[TokenDelta]:
        """The deltas that begin before that place and were not taken yet."""
        taken: list[TokenDelta] = []
        while self._waiting and self._waiting[0][0] < end:
            taken.append(self._waiting.popleft()[1])
        return taken

    def _delta(self, text: str, tokens: Sequence[TokenDelta]) -> TokenDelta:
        delta = TokenDelta(
            text,
            self._sequence,
            sum(token.token_count for token in tokens),
            tuple(token_id for token in tokens for token_id in token.token_ids),
            tuple(entry for token in tokens for entry in token.logprobs),
        )
        self._sequence += delta.token_count
        return delta


def in_text(messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """A conversation with tools as one of texts: tools described in the system message, results told by the user.

    Args:
        messages: The conversation; no text of it keeps a marker.
        tools: What may be called now.
    """
    told: list[Message] = [Message(Role.SYSTEM, _described(tools))] if tools else []
    for message in messages:
        text = unmarked(message.text)
        role = message.role
        if role is Role.ASSISTANT:
            text += "".join(map(_as_text, message.tool_calls))
        elif role is Role.TOOL:
            role = Role.USER
            text = f"Result of the call {unmarked(message.tool_call_id)}:\n{text}"
        if told and told[-1].role is role is not Role.ASSISTANT:
            # Templates want user and assistant in turn, and one system message.
            told[-1] = replace(told[-1], text=f"{told[-1].text}\n\n{text}")
        else:
            told.append(Message(role, text))
    return tuple(told)


def unmarked(text: str) -> str:
    """A text in which no marker of a call is left."""
    return text.replace(START, f"{START[:5]} {START[5:]}").replace(END, f"{END[:3]} {END[3:]}")


def _described(tools: Sequence[Tool]) -> str:
    # Without a brace after the marker, so that these words themselves are no call.
    listed = "\n".join(
        json.dumps({"name": tool.name, "description": unmarked(tool.description), "parameters": tool.parameters})
        for tool in tools
    )
    return (
        f"You may call functions. To call one, write the word {START}, directly after it a JSON object with the two fields name and arguments, and directly "
        f"after that the word {END}. Write several calls one after the other, and nothing after them; you are then told what they gave. Call only what is "
        f"listed here, one function a line:\n{listed}"
    )


def _as_text(call: ToolCall) -> str:
    name = json.dumps(call.name)
    return f'{START}{{"name": {_escaped(name)}, "arguments": {_escaped(call.arguments_json)}}}{END}'


def _escaped(text: str) -> str:
    """JSON of the same meaning without markers, which can only stand within its strings."""
    return text.replace(START, f"\\u0073{START[1:]}").replace(END, f"\\u0065{END[1:]}")


def _possible_start(text: str) -> int:
    """Length of the longest end of a text that is the beginning of the marker."""
    return next((size for size in range(min(len(START) - 1, len(text)), 0, -1) if text.endswith(START[:size])), 0)


def _call(text: str) -> TextCall:
    try:
        value: object = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
        fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        name, arguments = fields.get("name"), fields.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict) or len(fields) != 2:
            return _broken(text)
        call = TextCall(name, json.dumps(arguments, ensure_ascii=False))
        # Half a surrogate pair is JSON, and no text.
        (call.name + call.arguments_json).encode()
    except (ValueError, RecursionError):
        return _broken(text)
    return call


def _broken(text: str) -> TextCall:
    return TextCall("", text[:MOST_CALL_CHARACTERS])


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
