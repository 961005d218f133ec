"""Where texts name things.

A passage mentions an entity if the entity's key is that of one of the passage's capitalised spans, or if it is a title in the collection that occurs
in the passage. The second depends on that one title alone: whether another title exists changes nothing, so a title can come and go without
touching the mentions of others, and a title that a caller may not see takes nothing from those that it may.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from loremesh_agents.domain.document import TextSpans
from loremesh_agents.domain.lexicon import FUNCTION_WORDS, Word, entity_key, key_of_word, words

LONGEST_TITLE = 8
"""Words of a title that is looked for in texts; a longer one is found by its leading words' entities alone."""

_JOINERS = frozenset({"of", "the", "de", "von"})
_LONGEST_SPAN = 12


@dataclass(frozen=True, slots=True)
class QuestionSpan:
    """A place of a question that may name an entity.

    Attributes:
        key: Its key.
        text: As it is written.
        start: Index of its first character.
        end: Index after its last one.
        capitalised: Whether it is a capitalised span, whole.
        words: Its words.
        nameable: Whether it is more than a common lower-case word.
    """

    key: str
    text: str
    start: int
    end: int
    capitalised: bool
    words: int
    nameable: bool


def _is_capitalised(word: str) -> bool:
    return word[0].isupper() or (word[0].isdigit() and any(character.isupper() for character in word))


def _is_identifier(word: str) -> bool:
    return (
        "_" in word
        or any(character.isupper() for character in word[1:])
        or ("." in word.strip(".") and not word[0].isdigit())
    )


def _adjacent(text: str, left: Word, right: Word) -> bool:
    return text[left.end : right.start].strip(" \t\n\u00a0") == "" and text.count("\n", left.end, right.start) < 2


def _spans(text: str, found: list[Word]) -> Iterator[tuple[int, int]]:
    """Capitalised spans as ranges of words: capitalised words, joined by small words between them."""
    index = 0
    while index < len(found):
        if not _is_capitalised(found[index].text):
            index += 1
            continue
        end = index + 1
        while end < len(found) and end - index < _LONGEST_SPAN:
            if not _adjacent(text, found[end - 1], found[end]):
                break
            if _is_capitalised(found[end].text):
                end += 1
                continue
            after = end
            while after < len(found) and found[after].text in _JOINERS and after - end < 2:
                after += 1
            if after == end or after >= len(found) or not _is_capitalised(found[after].text):
                break
            if not all(_adjacent(text, found[i - 1], found[i]) for i in range(end, after + 1)):
                break
            end = after + 1
        yield index, end
        index = end


def _trim(found: list[Word], start: int, end: int) -> int:
    """Where a span begins without the capitalised function word that opens a sentence."""
    while start < end and key_of_word(found[start].text) in FUNCTION_WORDS:
        start += 1
    return start


def text_spans(text: str) -> TextSpans:
    """The words of a passage's text and the names that its capital letters show."""
    found = words(text)
    keys = [key_of_word(word.text) for word in found]
    alone = [_is_identifier(word.text) for word in found]
    names: set[str] = set()
    for start, end in _spans(text, found):
        trimmed = _trim(found, start, end)
        if trimmed == end:
            continue
        key = " ".join(" ".join(keys[trimmed:end]).split())
        if key:
            names.add(key)
        if end - trimmed == 1:
            alone[trimmed] = True
        if trimmed > start and end - start > 1:
            # "The Beatles" is a name with its article as well.
            names.add(" ".join(" ".join(keys[start:end]).split()))
    flat: list[str] = []
    nameable: list[bool] = []
    for key, single in zip(keys, alone, strict=True):
        parts = key.split()
        flat += parts
        nameable += [single and len(parts) == 1] * len(parts)
    return TextSpans(tuple(flat), tuple(nameable), frozenset(names))


def is_matchable(key: str) -> bool:
    """Whether a title of this key is looked for in texts."""
    parts = key.split()
    return 0 < len(parts) <= LONGEST_TITLE and not FUNCTION_WORDS.issuperset(parts)


def title_candidates(spans: TextSpans) -> Iterator[str]:
    """The keys of all titles that a passage could mention, some more than once."""
    found, nameable = spans.words, spans.nameable
    for start, first in enumerate(found):
        if nameable[start]:
            yield first
        key = first
        for end in range(start + 1, min(start + LONGEST_TITLE, len(found))):
            key = f"{key} {found[end]}"
            yield key


def occurs(key: str, spans: TextSpans) -> bool:
    """Whether a title of this key is mentioned in a passage."""
    if not is_matchable(key):
        return False
    parts = tuple(key.split())
    if len(parts) == 1:
        return any(single and word == key for word, single in zip(spans.words, spans.nameable, strict=True))
    size = len(parts)
    return any(
        spans.words[start : start + size] == parts
        for start, word in enumerate(spans.words[: len(spans.words) - size + 1])
        if word == parts[0]
    )


def mentioned(spans: TextSpans, titles: Iterable[str]) -> set[str]:
    """The keys that a passage mentions, of its capitalised spans and of these titles."""
    return set(spans.capitalised) | {title for title in titles if occurs(title, spans)}


def question_spans(question: str) -> list[QuestionSpan]:
    """The places of a question that may name an entity: capitalised spans, and all runs of up to eight words.

    Longer ones come before the shorter ones that they contain.
    """
    found = words(question)
    capitalised: set[tuple[int, int]] = set()
    for start, end in _spans(question, found):
        trimmed = _trim(found, start, end)
        if trimmed < end:
            capitalised.add((trimmed, end))
    spans: list[QuestionSpan] = []
    for size in range(min(_LONGEST_SPAN, len(found)), 0, -1):
        for start in range(len(found) - size + 1):
            end = start + size
            whole = (start, end) in capitalised
            if size > LONGEST_TITLE and not whole:
                continue
            text = question[found[start].start : found[end - 1].end]
            key = entity_key(text)
            if not key or FUNCTION_WORDS.issuperset(key.split()):
                continue
            nameable = size > 1 or whole or _is_identifier(text) or _is_capitalised(text)
            spans.append(QuestionSpan(key, text, found[start].start, found[end - 1].end, whole, size, nameable))
    return spans
