"""The other agents, as the coordinator and the synthesizer call them."""

from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from loremesh_agents.domain.answer import Completion, Source, TokenDelta
from loremesh_agents.domain.conversation import Message
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.ports.language_model import GenerationRequest, ToolCallPiece


@dataclass(frozen=True, slots=True)
class SynthesisStart:
    """What a prompt is for; see `loremesh.v1.SynthesisStart`."""

    question: str
    history: tuple[Message, ...] = ()
    token_budget: int = 4096
    model: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a generator reads; `sources` is the citation table."""

    messages: tuple[Message, ...]
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class GenerationStart:
    """The model that writes."""

    model: str
    model_fingerprint: str


class Retriever(Protocol):
    """Finds evidence. Errors are those of the RPC's comment; `PeerUnavailable` where it cannot be reached."""

    def retrieve(self, request: RetrievalRequest, *, deadline: Deadline) -> AsyncGenerator[Evidence | Completion]:
        """Evidence by rank, then a completion. Closing the iterator cancels the call."""
        ...


class Synthesizer(Protocol):
    """Makes prompts."""

    def synthesize(
        self, start: SynthesisStart, evidence: AsyncIterable[Evidence], *, deadline: Deadline
    ) -> AsyncGenerator[Prompt | Completion]:
        """A prompt when the evidence has ended, then a completion. Closing the iterator cancels the call."""
        ...


class Generator(Protocol):
    """Writes answers."""

    def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
        """Who writes, then tokens, then a completion. Closing the iterator cancels the call."""
        ...


class TokenCounter(Protocol):
    """Counts tokens as a model sees them."""

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """Tokens of each text."""
        ...
