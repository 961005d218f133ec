"""Server-sent events, as the specification has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.adapters.model.sse import EventStream, EventTooLong


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b"data: a\r\n\r\ndata: b\r\rdata:c\n\r", ["a", "b", "c"]),
        (b"data: a\ndata:\ndata: b\n\n", ["a\n\nb"]),
        (b": comment\n\ndata: a\n\n", ["a"]),
        (b"event: x\nid: 7\nretry: 5\ndata: a\n\n", ["a"]),
        (b"data\n\n", [""]),
        (b"data:  two spaces\n\n", [" two spaces"]),
        (b"\xef\xbb\xbfdata: after the mark\n\n", ["after the mark"]),
        ("data: é🙂\u2028\u0085\n\n".encode(), ["é🙂\u2028\u0085"]),
        (b"data: cut off\n", []),
        (b"dataset: a\n\n", []),
        (b"", []),
    ],
)
def test_streams_are_read_as_they_are_written(stream: bytes, events: list[str]) -> None:
    assert EventStream().feed(stream) == events
    bytewise = EventStream()
    assert [event for byte in stream for event in bytewise.feed(bytes([byte]))] == events


@given(
    lines=st.lists(st.sampled_from([b"data: a", b"data: \xf0\x9f\x99\x82", b"", b": no", b"id: 1"]), max_size=12),
    ends=st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=12, max_size=12),
    data=st.data(),
)
def test_where_the_bytes_are_cut_changes_nothing(lines: list[bytes], ends: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    cut = EventStream()
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert [event for piece in pieces for event in cut.feed(piece)] == EventStream().feed(stream)


def test_an_event_comes_with_its_last_byte() -> None:
    stream = EventStream()
    assert stream.feed(b"data: a\r\n\r") == ["a"]
    assert stream.feed(b"\n") == []
    assert stream.feed(b"data: b\n\n") == ["b"]


@pytest.mark.parametrize("piece", [b"x" * 10, b"data: 12345\n"])
def test_an_endless_event_is_refused(piece: bytes) -> None:
    stream = EventStream(most_bytes=100)

    def feed() -> None:
        for _ in range(100):
            stream.feed(piece)

    with pytest.raises(EventTooLong):
        feed()
