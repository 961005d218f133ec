"""Holds requests against the rules that the contract puts on their fields."""

from collections.abc import Iterable
from typing import Any

import protovalidate
from google.protobuf.message import Message

from loremesh_agents.domain.errors import FieldViolation, InvalidRequest
from loremesh_agents.runtime.call import ServerCall
from loremesh_agents.runtime.errors import MAX_VIOLATIONS, cut
from loremesh_agents.runtime.interceptors.base import Proceed


class ValidationInterceptor:
    """Checks each request message when the servicer reads it, also those of streams."""

    def __init__(self, request_types: Iterable[type[Message]] = ()) -> None:
        """Sets up the check.

        Args:
            request_types: Types whose rules are compiled now, instead of at their first request.
        """
        self._validator = protovalidate.Validator()
        for request_type in request_types:
            self._validator.collect_violations(request_type())

    async def intercept(self, call: ServerCall, proceed: Proceed) -> None:
        """Serves the call.

        Raises:
            InvalidRequest: To the reader of the requests; that is from `proceed`, unless the servicer does something
                about it.
        """
        call.requests.check_with(self.check)
        await proceed(call)

    def check(self, message: Message) -> None:
        """Checks a message, in microseconds rather than milliseconds, so that it may be done in the event loop.

        Raises:
            InvalidRequest: It breaks rules; at most 16 are named.
        """
        violations = self._validator.collect_violations(message)
        if violations:
            raise InvalidRequest([_field_violation(violation) for violation in violations[:MAX_VIOLATIONS]])


def _field_violation(violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    description = proto.message or f"breaks the rule {proto.rule_id}"
    value = violation.field_value
    if isinstance(value, str | bytes | int | float) and not isinstance(value, bool):
        # Cut before the repr: the value may be as large as the message.
        text = repr(value[:64]) if isinstance(value, str | bytes) else repr(value)
        description = f"{description}, got {cut(text)}"
    return FieldViolation(_path(proto.field), description, proto.rule_id)


def _path(field: Any) -> str:
    """A field path as developers write it: `documents[3].labels["team"]`."""
    parts: list[str] = []
    for element in field.elements if field is not None else ():
        parts.append(f".{element.field_name}" if parts else element.field_name)
        if element.subscript is not None:
            key = element.subscript.value
            parts.append(f'["{key}"]' if isinstance(key, str) else f"[{key}]")
    return "".join(parts)
