"""The pieces of a streamed answer."""

from dataclasses import dataclass, field
from enum import Enum

from loremesh_agents.domain.errors import LoremeshError
from loremesh_agents.domain.revision import CollectionRevision


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely it was.

    Attributes:
        text: Text of the token alone; U+FFFD where it is a part of a code point.
        token_id: Its id; 0 where the engine tells only the text.
        logprob: Natural logarithm of its probability.
    """

    text: str
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer and the most likely tokens in its place, the likeliest first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """The next piece of an answer.

    Attributes:
        text: Text of the tokens; never ends within a code point.
        sequence: Place of the first of them among the tokens of the answer, from 0.
        token_count: Tokens in this delta.
        token_ids: Their ids; empty where the model has no tokenizer.
        logprobs: One for each token, where they were asked for.
    """

    text: str
    sequence: int
    token_count: int = 1
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """A numbered source of a prompt.

    Attributes:
        number: n in `[n]`, from 1.
        evidence_ids: The evidence that it is made of.
        title: For people.
        uri: Address of the document; may be empty.
        markdown: The source as a Markdown link.
        text: The text that the prompt quotes.
    """

    number: int
    evidence_ids: tuple[str, ...]
    title: str
    uri: str
    markdown: str
    text: str


@dataclass(frozen=True, slots=True)
class Citation:
    """A statement of the answer that rests on a piece of evidence.

    Attributes:
        evidence_id: The evidence.
        number: Number of its source.
        start_byte: First byte (UTF-8) of the statement in the text of the answer.
        end_byte: Byte after its last one: where the marker begins.
    """

    evidence_id: str
    number: int
    start_byte: int
    end_byte: int


class DegradationReason(Enum):
    """Why a part of the work was left out."""

    BUDGET = "budget"
    UNAVAILABLE = "unavailable"
    NOT_CONFIGURED = "not configured"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Degradation:
    """A part of the work that was left out of an answer that came all the same."""

    agent: str
    stage: str
    reason: DegradationReason
    detail: str


class FinishReason(Enum):
    """How a stream ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool calls"
    CANCELLED = "cancelled"
    BUDGET = "budget"
    NO_ANSWER = "no answer"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Usage:
    """What was consumed."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    candidate_count: int = 0
    evidence_count: int = 0


@dataclass(frozen=True, slots=True)
class Resumption:
    """A generation that went on elsewhere after `at_token` tokens; `exact` where greedy decoding gives the same text."""

    at_token: int
    exact: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """The last event of a stream.

    Attributes:
        finish_reason: How it ended.
        usage: What was consumed.
        timings: Seconds by stage, in order.
        revisions: States of the collections that were read or written.
        degradations: What was left out.
        resumptions: Where the generation went on elsewhere.
        model: Name of the model that wrote the answer.
        model_fingerprint: Identifies the exact model.
        error: The error, where the finish reason is ERROR.
    """

    finish_reason: FinishReason
    usage: Usage = Usage()
    timings: dict[str, float] = field(default_factory=dict[str, float])
    revisions: tuple[CollectionRevision, ...] = ()
    degradations: tuple[Degradation, ...] = ()
    resumptions: tuple[Resumption, ...] = ()
    model: str = ""
    model_fingerprint: str = ""
    error: LoremeshError | None = None
