"""The engine that writes answers."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

from loremesh_agents.domain.answer import FinishReason, Resumption, Source, TokenDelta, Usage
from loremesh_agents.domain.conversation import Message, Tool
from loremesh_agents.domain.deadline import Deadline


class Capability(Enum):
    """What a model can be asked to do."""

    GENERATION = "generation"
    TOOLS = "tools"
    JSON_SCHEMA = "json schema"
    LOGPROBS = "logprobs"
    RESUME = "resume"
    SAMPLING = "sampling"


@dataclass(frozen=True, slots=True)
class Model:
    """A model that an engine serves; see `loremesh.v1.Model`."""

    name: str
    context_tokens: int
    tokenizer_hash: str
    fingerprint: str
    capabilities: frozenset[Capability]


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """What is wanted of a generation; None and 0 mean the model's default. See `loremesh.v1.GenerationOptions`."""

    model: str = ""
    max_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: str = ""
    top_logprobs: int = 0
    frequency_penalty: float | None = None
    presence_penalty: float | None = None


DEFAULT_SAMPLING = SamplingOptions()
"""The default model with its defaults."""


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Where a generation broke off."""

    model_fingerprint: str
    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to write; see `loremesh.v1.GenerateRequest`.

    Attributes:
        default_max_tokens: Most tokens where the options do not say; less where the context has no room for as many.
            0: as many as there is room for.
    """

    messages: tuple[Message, ...]
    question: str
    sources: tuple[Source, ...] = ()
    options: SamplingOptions = DEFAULT_SAMPLING
    default_max_tokens: int = 0
    tools: tuple[Tool, ...] = ()
    resume: ResumePoint | None = None


@dataclass(frozen=True, slots=True)
class ToolCallPiece:
    """A piece of a tool call as it is being written; see `loremesh.v1.ToolCallDelta`."""

    index: int
    tool_call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class GenerationEnd:
    """The last event of a generation."""

    finish_reason: FinishReason
    usage: Usage
    resumptions: tuple[Resumption, ...] = ()


class Emitted:
    """What has come of a generation, to go on from there elsewhere when it breaks off.

    Args:
        request: The request as it was made.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self._request = request
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._tokens = 0
        self._called = False
        if request.resume is not None:
            self._text.append(request.resume.text)
            self._token_ids += request.resume.token_ids
            self._tokens = len(request.resume.token_ids)

    def add(self, event: TokenDelta | ToolCallPiece) -> None:
        """Takes what has come."""
        if isinstance(event, ToolCallPiece):
            self._called = True
            return
        self._text.append(event.text)
        self._token_ids += event.token_ids
        self._tokens = event.sequence + event.token_count

    @property
    def tied_by(self) -> str:
        """What keeps the generation from going on elsewhere; empty where nothing does.

        An engine that goes on takes what was emitted for a part of the prompt: penalties would not count it, a grammar would begin anew.
        """
        options = self._request.options
        ties = {
            "tool calls": self._called,
            "tools": bool(self._request.tools) and self._tokens > 0,
            "a JSON schema": bool(options.json_schema) and self._tokens > 0,
            "penalties": bool(options.frequency_penalty or options.presence_penalty) and self._tokens > 0,
        }
        return next((name for name, ties_it in ties.items() if ties_it), "")

    @property
    def resumption(self) -> Resumption | None:
        """Where it goes on; None where nothing has come, so that it only begins again."""
        return Resumption(self._tokens, exact=not self._request.options.temperature) if self._tokens else None

    def rest(self, model_fingerprint: str) -> GenerationRequest:
        """The request for what is still to come."""
        if not self._tokens:
            return self._request
        resume = ResumePoint(model_fingerprint, tuple(self._token_ids), "".join(self._text))
        return replace(self._request, resume=resume)


class LanguageModel(Protocol):
    """An engine with one or more models.

    Errors raised: `InvalidRequest`, `ModelNotFound`, `UnsupportedByModel`, `ModelChanged`, `BackendUnavailable`, `BudgetExhausted`.
    """

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """The models, the default first."""
        ...

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """Tokens of each text; the default model where none is named."""
        ...

    def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """Tokens as the engine gives them; the agent joins those that are ready together. Ends with a GenerationEnd.

        Closing the iterator stops the engine's work on the request.
        """
        ...

    async def close(self) -> None:
        """Frees the engine's connections."""
        ...
