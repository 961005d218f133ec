"""The prompt of a conversation, by the template that comes with a tokenizer."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Never

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loremesh_agents.domain.conversation import Message

_MOST_PROMPT_CHARACTERS = 8 * 1024 * 1024


class TemplateRefused(Exception):
    """The template is no template, or does not take the messages."""


class ChatTemplate:
    """A template in the form that model publishers have agreed on: Jinja over `messages`.

    It comes from whoever made the model, so it runs in a sandbox that cannot reach Python's objects and change nothing.

    Args:
        source: The template.
        tokens: Texts of the special tokens that it may name, as in `bos_token`.

    Raises:
        TemplateRefused: It is no template.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        # Prompts are text for a model: escaping for HTML would change them.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source, globals={"raise_exception": _refuse, "strftime_now": _now})
        except TemplateSyntaxError as error:
            raise TemplateRefused(f"line {error.lineno}: {error.message}") from None
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, object]]) -> str:
        """The prompt, which ends where the model's answer begins.

        Raises:
            TemplateRefused: The template does not take these messages.
        """
        try:
            text = self._template.render(messages=messages, add_generation_prompt=True, **self._tokens)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise TemplateRefused(str(error) or type(error).__name__) from None
        if len(text) > _MOST_PROMPT_CHARACTERS:
            raise TemplateRefused(f"the prompt has {len(text)} characters, more than {_MOST_PROMPT_CHARACTERS}")
        return text


def message_fields(message: Message, text: str | None = None) -> dict[str, object]:
    """A message as templates and OpenAI's interface name its parts.

    Args:
        message: The message.
        text: What it says, where that is not the message's own text.
    """
    fields: dict[str, object] = {"role": message.role.value, "content": message.text if text is None else text}
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _to_json(value: object, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> Never:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now(UTC).strftime(form)
