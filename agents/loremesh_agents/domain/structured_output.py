"""JSON schemas that an answer must follow."""

import json
from collections.abc import Mapping
from typing import cast

from loremesh_agents.domain.errors import InvalidRequest


def parsed_schema(text: str, field: str) -> Mapping[str, object]:
    """The schema.

    Args:
        text: The schema as JSON.
        field: Path of the request's field, for the error.

    Raises:
        InvalidRequest: It is no JSON, or no object.
    """
    try:
        schema: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.of(field, f"must be a JSON schema; it is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest.of(field, f"must be a JSON schema, which is an object, not {text[:32]!r}")
    return cast("Mapping[str, object]", schema)
