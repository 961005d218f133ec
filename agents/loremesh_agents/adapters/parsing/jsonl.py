"""JSON lines in BEIR's layout: one document a line, `_id`, `title`, `text`, `metadata`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from loremesh_agents.adapters.parsing.content import Content, UnreadableError, decode
from loremesh_agents.domain.document import Section

_LONGEST_ID = 512
_LONGEST_TITLE = 2048


@dataclass(frozen=True, slots=True)
class Line:
    """A line: its number from 1, the document's id (empty where it cannot be read), and its content or why there is none."""

    number: int
    document_id: str
    content: Content | UnreadableError


def parse(data: bytes, charset: str) -> Iterator[Line]:
    """The documents of a file, one a line; empty lines are passed over.

    Raises:
        UnreadableError: The bytes are no text.
    """
    for number, line in enumerate(decode(data, charset).split("\n"), start=1):
        if not line.strip():
            continue
        document_id = ""
        try:
            record: Any = json.loads(line)
            if not isinstance(record, dict):
                raise UnreadableError(f"line {number} is no JSON object")
            fields = cast("dict[str, Any]", record)
            document_id = _text(fields, "_id", number)[:_LONGEST_ID]
            yield Line(number, document_id, _content(fields, number))
        except (json.JSONDecodeError, RecursionError) as error:
            yield Line(number, document_id, UnreadableError(f"line {number} is no JSON: {error}"))
        except UnreadableError as error:
            yield Line(number, document_id, error)


def _content(record: dict[str, Any], number: int) -> Content:
    metadata: Any = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UnreadableError(f"line {number}: metadata must be an object")
    text = _text(record, "text", number, required=False)
    title = _text(record, "title", number, required=False)
    pairs = {
        str(key)[:128]: (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[:1024]
        for key, value in list(cast("dict[str, Any]", metadata).items())[:64]
        if value is not None
    }
    return Content(title[:_LONGEST_TITLE], (Section(text),) if text.strip() else (), pairs)


def _text(record: dict[str, Any], name: str, number: int, *, required: bool = True) -> str:
    value = record.get(name, "")
    if isinstance(value, int) and name == "_id":
        value = str(value)
    if not isinstance(value, str):
        raise UnreadableError(f"line {number}: {name} must be a string")
    if required and not value:
        raise UnreadableError(f"line {number}: {name} is missing")
    return value
