"""Splits text into sentences."""

import re
from dataclasses import dataclass

_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’]*|\n[ \t]*\n")
_LONGEST_ABBREVIATION = 12
_LOOKED_AHEAD = 16
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|(?:[A-Za-z]\.)+[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|Sr|Jr|St|Mt|No|Nos|Vol|vs|etc|e\.g|i\.e|cf|al|Inc|Ltd|Co|Corp|Gen|Col|Capt|Lt|Sgt|Rev|"
    r"Hon|Gov|Sen|Rep|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec|approx|ca|c|b|d|fl|born|ed|eds|pp|p|Fig)$"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and where it is: indexes of its first character and after its last one."""

    text: str
    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """The sentences of a text in order, white space between them left out.

    A full stop after an initial or a known abbreviation ends none, nor does one inside a number, a name or an address.
    """
    found: list[Sentence] = []
    start = 0
    for match in _END.finditer(text):
        single = match[0].startswith(".") and len(match[0].rstrip("\"'”’)]")) == 1
        if single and goes_on(text[start : match.start()], text[match.end() : match.end() + _LOOKED_AHEAD].lstrip()):
            continue
        _append(found, text, start, match.end())
        start = match.end()
    _append(found, text, start, len(text))
    return found


def goes_on(before: str, following: str) -> bool:
    """Whether a full stop between two texts ends no sentence, but an initial or an abbreviation."""
    if not following:
        return False
    return following[0].islower() or _ABBREVIATION.search(before[-_LONGEST_ABBREVIATION:]) is not None


def _append(found: list[Sentence], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        found.append(Sentence(text[start:end], start, end))
