"""The tools that a model may call while it answers: what they are called with, and what is wrong with a call.

Only what a generator streams as pieces of a call is one. The text of an answer is never looked through for calls, nor is a prompt or a document.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from loremesh_agents.domain.conversation import Tool, ToolCall
from loremesh_agents.domain.lexicon import search_terms
from loremesh_agents.ports.language_model import ToolCallPiece

MOST_ARGUMENT_CHARACTERS = 4096
_MOST_ID_CHARACTERS = 128
_MOST_NAME_CHARACTERS = 64
_MOST_REASONS = 4


class ToolCallRefused(Exception):
    """A call that is not run; the message is for the model that made it."""


class RetrieveArguments(BaseModel):
    """What `retrieve` is called with."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    question: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """What to search for: one whole question that names its subject."""
    k: Annotated[int, Field(ge=1, le=20)] | None = None
    """Pieces of evidence, at most 20; null for as many as the first search gave."""


RETRIEVE = Tool(
    "retrieve",
    "Searches the documents and gives numbered sources. Call it when the sources that you have do not answer the question.",
    RetrieveArguments.model_json_schema(),
)
"""Searches the documents."""

TOOLS = (RETRIEVE,)
"""All tools."""


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as the model wrote it.

    Attributes:
        call: With an id that no other call of the answer has; of arguments that are too long, the beginning.
        too_long: Whether the arguments are.
    """

    call: ToolCall
    too_long: bool

    def arguments(self) -> RetrieveArguments:
        """The arguments, checked.

        Raises:
            ToolCallRefused: The call cannot be run; the message says what is wrong with it.
        """
        if not self.call.name:
            raise ToolCallRefused("This call names no tool, or is not written as a call must be.")
        if self.call.name not in {tool.name for tool in TOOLS}:
            raise ToolCallRefused(
                f"There is no tool {self.call.name!r}; there is {', '.join(tool.name for tool in TOOLS)}."
            )
        if self.too_long:
            raise ToolCallRefused(f"The arguments have more than {MOST_ARGUMENT_CHARACTERS} characters.")
        try:
            arguments = RetrieveArguments.model_validate_json(self.call.arguments_json or "{}")
        except ValidationError as error:
            raise ToolCallRefused(_reasons(error)) from None
        if not search_terms(arguments.question):
            raise ToolCallRefused("The argument question must hold at least one word or number.")
        return arguments

    def for_the_model(self) -> ToolCall:
        """The call as the model is shown it again: engines refuse arguments that are no JSON object."""
        try:
            value: object = json.loads(self.call.arguments_json)
        except (ValueError, RecursionError):
            value = None
        whole = isinstance(value, dict) and not self.too_long
        return ToolCall(self.call.tool_call_id, self.call.name, self.call.arguments_json if whole else "{}")


class CallsInTheMaking:
    """Joins the pieces of the calls of one round, each by its index.

    Args:
        most: Calls that are taken; of further ones only the first is kept, so that it can be refused.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._calls: dict[int, _Pieces] = {}

    def add(self, piece: ToolCallPiece) -> None:
        """Takes a piece."""
        pieces = self._calls.get(piece.index)
        if pieces is None:
            if len(self._calls) > self._most:
                return
            pieces = self._calls[piece.index] = _Pieces()
        pieces.add(piece)

    def calls(self, taken_ids: set[str]) -> tuple[Sequence[WrittenCall], WrittenCall | None]:
        """The calls in the order of their indexes, and the first that is one too many.

        Args:
            taken_ids: Ids of earlier calls; those of these calls are added.
        """
        written = [self._calls[index].whole(taken_ids) for index in sorted(self._calls)]
        return written[: self._most], written[self._most] if len(written) > self._most else None


class _Pieces:
    def __init__(self) -> None:
        self._id = ""
        self._name = ""
        self._arguments: list[str] = []
        self._size = 0

    def add(self, piece: ToolCallPiece) -> None:
        self._id = self._id or piece.tool_call_id
        self._name = self._name or piece.name
        if self._size <= MOST_ARGUMENT_CHARACTERS:
            self._arguments.append(piece.arguments_json)
            self._size += len(piece.arguments_json)

    def whole(self, taken_ids: set[str]) -> WrittenCall:
        call_id = self._id
        number = len(taken_ids)
        while not call_id or len(call_id) > _MOST_ID_CHARACTERS or call_id in taken_ids:
            number += 1
            call_id = f"call_{number}"
        taken_ids.add(call_id)
        arguments = "".join(self._arguments)
        return WrittenCall(
            ToolCall(call_id, self._name[:_MOST_NAME_CHARACTERS], arguments[:MOST_ARGUMENT_CHARACTERS]),
            too_long=len(arguments) > MOST_ARGUMENT_CHARACTERS,
        )


def _reasons(error: ValidationError) -> str:
    """What is wrong with arguments, without their values."""
    reasons = [
        f"The argument {'.'.join(map(str, entry['loc']))[:_MOST_NAME_CHARACTERS]}: {entry['msg']}."
        if entry["loc"]
        else f"{entry['msg']}."
        for entry in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return " ".join(reasons[:_MOST_REASONS])
