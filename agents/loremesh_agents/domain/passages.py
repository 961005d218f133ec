"""Cuts documents into passages, along their structure, and analyses them."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loremesh_agents.domain.document import Document, Link, PassageText, PassageWrite, Section
from loremesh_agents.domain.lexicon import search_terms, split, word_forms
from loremesh_agents.domain.mentions import spans_of
from loremesh_agents.domain.titles import titles

WHOLE_WORDS = 300
"""A section of at most so many words is one passage."""
TARGET_WORDS = 160
"""Words at which a passage of a longer section ends, at the next border of a paragraph or sentence."""
_LONGEST_CHARACTERS = 4000

_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?。！？])[\"'”’)\]]*\s+|\n+|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int


def cut(document: Document) -> tuple[PassageText, ...]:
    """The passages of a document; empty where it has no text.

    Passages never cross a heading. Their byte ranges are of the document's text: the texts of its sections, joined by an empty line.
    """
    found: list[PassageText] = []
    offset = 0
    for section in document.sections:
        for index, piece in enumerate(_pieces(section.text)):
            text = section.text[piece.start : piece.end]
            start = offset + len(section.text[: piece.start].encode())
            found.append(
                PassageText(
                    ordinal=len(found),
                    text=text,
                    headings=section.headings,
                    start_byte=start,
                    end_byte=start + len(text.encode()),
                    titles=titles(
                        document.title,
                        aliases=document.aliases,
                        headings=section.headings,
                        first=not found,
                        opens_section=index == 0,
                        text=text,
                    ),
                    links=_links(section, text, first=index == 0),
                )
            )
        offset += len(section.text.encode()) + 2
    return tuple(found)


def _links(section: Section, text: str, *, first: bool) -> tuple[Link, ...]:
    """The links of a section whose anchors are in a passage of it; those without one are the first passage's."""
    return tuple(
        link
        for link in section.links
        if (link.anchor in text if link.anchor and link.anchor in section.text else first)
    )


def _pieces(text: str) -> Iterator[_Piece]:
    stripped_end = len(text.rstrip())
    stripped_start = len(text) - len(text.lstrip())
    if stripped_start >= stripped_end:
        return
    if len(text.split()) <= WHOLE_WORDS and stripped_end - stripped_start <= _LONGEST_CHARACTERS:
        yield _Piece(stripped_start, stripped_end)
        return
    start: int | None = None
    count = 0
    end = 0
    for unit in _units(text, stripped_start, stripped_end):
        size = len(text[unit.start : unit.end].split())
        full = count + size > TARGET_WORDS + TARGET_WORDS // 4
        if start is not None and (full or unit.end - start > _LONGEST_CHARACTERS):
            yield _Piece(start, end)
            start, count = None, 0
        if start is None:
            start = unit.start
        end = unit.end
        count += size
        if count >= TARGET_WORDS:
            yield _Piece(start, end)
            start, count = None, 0
    if start is not None:
        yield _Piece(start, end)


def _units(text: str, start: int, end: int) -> Iterator[_Piece]:
    """Paragraphs; the sentences of those that are long; parts of sentences that are endless."""
    for paragraph in _split(text, start, end, _PARAGRAPH):
        if len(text[paragraph.start : paragraph.end].split()) <= TARGET_WORDS:
            units: Iterator[_Piece] = iter([paragraph])
        else:
            units = _split(text, paragraph.start, paragraph.end, _SENTENCE)
        for unit in units:
            for at in range(unit.start, unit.end, _LONGEST_CHARACTERS):
                yield _Piece(at, min(at + _LONGEST_CHARACTERS, unit.end))


def _split(text: str, start: int, end: int, border: re.Pattern[str]) -> Iterator[_Piece]:
    at = start
    for match in border.finditer(text, start, end):
        if match.start() > at:
            yield _Piece(at, match.start())
        at = match.end()
    if at < end:
        yield _Piece(at, end)


def full_text(title: str, headings: Sequence[str], text: str) -> str:
    """What is embedded of a passage: its titles, that of its document first, then its text."""
    return ". ".join(filter(None, [title, *headings, text]))


def analyse(document: Document, passage: PassageText) -> PassageWrite:
    """A passage ready to be stored, without its vector."""
    words, between = split(passage.text)
    terms = [term for name in (document.title, *passage.headings) for term in search_terms(name)]
    terms += [term for word in words for term in word_forms(word).terms]
    return PassageWrite(passage, Counter(terms), len(terms), spans_of(words, between))
