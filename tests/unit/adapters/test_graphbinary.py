"""Answers of Gremlin servers are what was sent: against the driver's own writer."""

import struct
import uuid
from typing import Any

import pytest
from gremlin_python.process.traversal import T, Traverser
from gremlin_python.statics import long
from gremlin_python.structure.io.graphbinaryV1 import GraphBinaryWriter

from loremesh_agents.adapters.graph.gremlin.graphbinary import decoded

REQUEST = uuid.UUID("0b6f3c3e-6c1e-4a55-9a3f-1f5f0f3d2a11")
NO_ENTRIES = struct.pack(">i", 0)


def value(content: Any) -> bytes:
    return bytes(GraphBinaryWriter().write_object(content))


def answer(result: bytes, *, code: int = 200, message: str | None = None, attributes: bytes = NO_ENTRIES) -> bytes:
    text = b"\x01" if message is None else b"\x00" + struct.pack(">i", len(message.encode())) + message.encode()
    return b"\x81\x00" + REQUEST.bytes + struct.pack(">i", code) + text + attributes + NO_ENTRIES + result


@pytest.mark.parametrize(
    "content",
    [
        [],
        ["plain", "", "日本語 😀 \x00", "x" * 100_000],
        [1, -1, long(1 << 40), long(-(1 << 62)), 0.25, -1e300, True, False, None],
        [{"ref": [long(7)], "ends": [], "nested": {"a": {"b": ["c", None]}}}],
        [{T.id: "e1", T.label: "Entity", "counts": ["1:1,0,0,0"]}],
        [[["e1", 0.6, "Ada", long(3), []], ["e2", 1.0, "Bob", long(4), ["5:"]]]],
        [REQUEST],
    ],
)
def test_what_was_written_is_read(content: list[Any]) -> None:
    found = decoded(answer(value(content)))
    assert (found.request_id, found.code, found.message) == (str(REQUEST), 200, "")
    assert found.rows == content


def test_a_set_is_read_as_a_list() -> None:
    assert sorted(decoded(answer(value([{"b", "a"}]))).rows[0]) == ["a", "b"]


def test_a_result_that_came_several_times_is_there_so_often() -> None:
    written = value([Traverser("a", long(3)), Traverser([long(1)], long(1))])
    assert decoded(answer(written)).rows == ["a", "a", "a", [1]]


def test_a_failure_has_its_code_and_message() -> None:
    attributes = struct.pack(">i", 1) + value("exceptions") + value(["java.lang.IllegalStateException"])
    found = decoded(answer(b"\xfe\x01", code=500, message="no such thing: ü", attributes=attributes))
    assert (found.code, found.message, found.rows) == (500, "no such thing: ü", [])


def test_what_was_not_asked_for_is_named() -> None:
    with pytest.raises(ValueError, match="0x2c"):
        decoded(answer(b"\x09\x00" + struct.pack(">i", 1) + b"\x2c\x00"))
