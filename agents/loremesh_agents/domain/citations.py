"""Finds the `[n]` markers of an answer while it streams."""

import re
from collections.abc import Mapping

from loremesh_agents.domain.answer import Citation
from loremesh_agents.domain.sentences import goes_on

_MARKER = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4}){0,15})\]")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*\s+|[。！？]\s*")
_LEAD = re.compile(r"[\s.,;:!?。，；：！？]*")
_KEPT_CHARACTERS = 8192
_LONGEST_MARKER = 128


class CitationScanner:
    """Turns the markers of a streamed answer into citations.

    A marker may come in pieces; the text is not held back for it. The statement that a marker supports begins after the sentence
    or the marker before it and ends where the marker begins; markers in a row support the same statement. Numbers without a source are
    ignored. Of a statement longer than about 8,000 characters only the end counts.

    Args:
        sources: Evidence ids of each source, by its number; may grow while the answer is read.
    """

    def __init__(self, sources: Mapping[int, tuple[str, ...]]) -> None:
        self._sources = sources
        self._pieces: list[str] = []
        self._size = 0
        self._dropped_bytes = 0
        self._scanned = 0
        self._boundary = 0
        self._statement: tuple[int, int] | None = None

    def feed(self, text: str) -> list[Citation]:
        """The citations whose markers are complete with this text, the next piece of the answer."""
        self._pieces.append(text)
        self._size += len(text)
        if "]" not in text:
            if self._size > 2 * _KEPT_CHARACTERS:
                self._compact()
            return []
        answer = "".join(self._pieces)
        self._pieces = [answer]
        found: list[Citation] = []
        for marker in _MARKER.finditer(answer, self._scanned):
            found += self._cite(answer, marker)
            self._scanned = self._boundary = marker.end()
        self._scanned = max(self._scanned, len(answer) - _LONGEST_MARKER)
        return found

    def begin_anew(self) -> None:
        """What comes next continues neither the statement nor the marker that came last."""
        answer = "".join(self._pieces)
        self._pieces = [answer]
        self._boundary = self._scanned = len(answer)
        self._statement = None

    def _cite(self, answer: str, marker: re.Match[str]) -> list[Citation]:
        start, end = self._range(answer, marker.start())
        if start < end:
            self._statement = (self._bytes_before(answer, start), self._bytes_before(answer, end))
        if self._statement is None:
            return []
        numbers = dict.fromkeys(int(number) for number in marker[1].split(","))
        return [
            Citation(evidence_id, number, *self._statement)
            for number in numbers
            for evidence_id in self._sources.get(number, ())
        ]

    def _range(self, answer: str, end: int) -> tuple[int, int]:
        lead = _LEAD.match(answer, self._boundary, end)
        start = lead.end() if lead else self._boundary
        text_end = start + len(answer[start:end].rstrip())
        for stop in _SENTENCE_END.finditer(answer, start, text_end):
            if not (stop[0].startswith(".") and goes_on(answer[start : stop.start()], answer[stop.end() : text_end])):
                start = stop.end()
        return start, text_end

    def _bytes_before(self, answer: str, index: int) -> int:
        return self._dropped_bytes + len(answer[:index].encode())

    def _compact(self) -> None:
        answer = "".join(self._pieces)
        dropped = len(answer) - _KEPT_CHARACTERS
        self._dropped_bytes += len(answer[:dropped].encode())
        self._pieces = [answer[dropped:]]
        self._size = _KEPT_CHARACTERS
        self._scanned = max(0, self._scanned - dropped)
        self._boundary = max(0, self._boundary - dropped)
