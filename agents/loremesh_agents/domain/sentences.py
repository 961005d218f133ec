"""Splits text into sentences."""

import re
from dataclasses import dataclass

_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]+[」』”’]*|\n[ \t]*\n")
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
        if match[0].startswith(".") and len(match[0].rstrip("\"'”’)]")) == 1:
            before = text[max(start, match.start() - 12) : match.start()]
            following = text[match.end() :].lstrip()[:1]
            if _ABBREVIATION.search(before) and following:
                continue
            if following and following.islower():
                continue
        _append(found, text, start, match.end())
        start = match.end()
    _append(found, text, start, len(text))
    return found


def _append(found: list[Sentence], text: str, start: int, end: int) -> None:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        found.append(Sentence(text[start:end], start, end))
