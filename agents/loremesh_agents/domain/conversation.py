"""Messages between a person, a model and its tools."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """Who says a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model; the arguments are JSON."""

    tool_call_id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PassageReference:
    """Names a passage."""

    collection: str
    passage_id: str


@dataclass(frozen=True, slots=True)
class RetrievalContext:
    """What earlier turns were about: entities, the most recent first, and passages that answers cited."""

    entities: tuple[str, ...] = ()
    passages: tuple[PassageReference, ...] = ()


NO_CONTEXT = RetrievalContext()
"""Nothing came before."""
