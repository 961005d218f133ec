"""Server-sent events, by the specification of the event stream in HTML's standard."""

_MOST_EVENT_BYTES = 1024 * 1024


class EventTooLong(Exception):
    """A line or an event is longer than anybody needs."""


class EventStream:
    """The data of events out of bytes, wherever they are cut.

    Lines end with CR, LF or both; several `data` lines of an event are joined by LF; comments and other fields are left out, as is an event that the stream
    ends in the middle of.

    Args:
        most_bytes: Longest event.
    """

    def __init__(self, most_bytes: int = _MOST_EVENT_BYTES) -> None:
        self._most = most_bytes
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._first = True

    def feed(self, chunk: bytes) -> list[str]:
        """Data of the events that end in these bytes.

        Raises:
            EventTooLong: An event is longer than allowed.
        """
        if self._after_cr and chunk:
            # The line ended with the last chunk already: its event must not wait for this one.
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        events: list[str] = []
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
            self._rest += chunk
            # Bytes split at CR, LF and both, and at nothing else.
            lines = self._rest.splitlines(keepends=True)
            self._rest = bytearray()
            if lines and not lines[-1].endswith((b"\r", b"\n")):
                self._rest = lines.pop()
            for line in lines:
                self._take(bytes(line).rstrip(b"\r\n"), events)
        if len(self._rest) + self._size > self._most:
            raise EventTooLong(f"an event has more than {self._most} bytes")
        return events

    def _take(self, line: bytes, events: list[str]) -> None:
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        if not line:
            if self._data:
                events.append(b"\n".join(self._data).decode("utf-8", errors="replace"))
            self._data, self._size = [], 0
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value)
            if self._size > self._most:
                raise EventTooLong(f"an event has more than {self._most} bytes")
