"""What the coordinator is asked and what it streams, without a wire format."""

from dataclasses import dataclass
from typing import TypeAlias

from loremesh_agents.domain.answer import Citation, Completion, Degradation, Source, TokenDelta
from loremesh_agents.domain.conversation import Message, ToolCall
from loremesh_agents.domain.evidence import Evidence
from loremesh_agents.domain.plan import Plan, Route
from loremesh_agents.domain.retrieval import RetrievalRequest
from loremesh_agents.ports.language_model import DEFAULT_SAMPLING, SamplingOptions


@dataclass(frozen=True, slots=True)
class Question:
    """A question to answer.

    Attributes:
        retrieval: The question, the collections and what is wanted of the retrieval.
        history: Earlier messages, the oldest first.
        route: Where the evidence is to come from; None for the coordinator's choice.
        options: What is wanted of the generation.
        prompt_token_budget: Most tokens of the prompt; 0 for the default.
        tool_rounds: Times that the model may call tools.
    """

    retrieval: RetrievalRequest
    history: tuple[Message, ...] = ()
    route: Route | None = None
    options: SamplingOptions = DEFAULT_SAMPLING
    prompt_token_budget: int = 0
    tool_rounds: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Nothing to say yet."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The citation table of the answer, as far as it goes."""

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool gave back.

    Attributes:
        tool_call_id: The call that it answers.
        name: Name of the tool.
        text: As the model reads it; why the call failed, where it did.
        evidence_ids: What the call found, by rank.
        failed: Whether it was refused or failed.
    """

    tool_call_id: str
    name: str
    text: str
    evidence_ids: tuple[str, ...] = ()
    failed: bool = False


Event: TypeAlias = (
    Plan | Evidence | Sources | TokenDelta | Citation | ToolCall | ToolResult | Degradation | Heartbeat | Completion
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A question within a chat; `budget` in seconds, None for the default."""

    turn_id: str
    question: Question
    budget: float | None


@dataclass(frozen=True, slots=True)
class CancelTurn:
    """Cancels a turn that runs or waits."""

    turn_id: str


@dataclass(frozen=True, slots=True)
class TurnEvent:
    """An event of a turn."""

    turn_id: str
    event: Event
