"""Where texts name things.

A passage mentions an entity if the entity's key is that of one of the passage's capitalised spans, or if it is a title in the collection that occurs
in the passage. The second depends on that one title alone: whether another title exists changes nothing, so a title can come and go without
touching the mentions of others, and a title that a caller may not see takes nothing from those that it may.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loremesh_agents.domain.document import TextSpans
from loremesh_agents.domain.lexicon import FUNCTION_WORDS, split, word_forms, words

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


def _adjacent(between: str) -> bool:
    """Whether what stands between two words lets them be one name."""
    return between == " " or (between.strip(" \t\n\u00a0") == "" and between.count("\n") < 2)


def _spans(words: Sequence[str], between: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Capitalised spans as ranges of words: capitalised words, joined by small words between them."""
    index, count = 0, len(words)
    while index < count:
        if not word_forms(words[index]).capitalised:
            index += 1
            continue
        end = index + 1
        while end < count and end - index < _LONGEST_SPAN and _adjacent(between[end - 1]):
            if word_forms(words[end]).capitalised:
                end += 1
                continue
            after = end
            while after < count and words[after] in _JOINERS and after - end < 2:
                after += 1
            if after == end or after >= count or not word_forms(words[after]).capitalised:
                break
            if not all(_adjacent(between[place]) for place in range(end, after)):
                break
            end = after + 1
        yield index, end
        index = end


def _trim(keys: Sequence[tuple[str, ...]], start: int, end: int) -> int:
    """Where a span begins without the capitalised function word that opens a sentence."""
    while start < end and " ".join(keys[start]) in FUNCTION_WORDS:
        start += 1
    return start


def text_spans(text: str) -> TextSpans:
    """The words of a passage's text and the names that its capital letters show."""
    return spans_of(*split(text))


def spans_of(words: Sequence[str], between: Sequence[str]) -> TextSpans:
    """As `text_spans`, of a text that has been split (`lexicon.split`)."""
    forms = list(map(word_forms, words))
    keys = [form.keys for form in forms]
    alone = {place for place, form in enumerate(forms) if form.identifier}
    capitalised: set[str] = set()
    for start, end in _spans(words, between):
        trimmed = _trim(keys, start, end)
        if trimmed == end:
            continue
        capitalised.add(_joined(keys[trimmed:end]))
        if end - trimmed == 1:
            alone.add(trimmed)
        if trimmed > start:
            # "The Beatles" is a name with its article as well.
            capitalised.add(_joined(keys[start:end]))
    return TextSpans(
        tuple([part for parts in keys for part in parts]),
        frozenset([keys[place][0] for place in alone if len(keys[place]) == 1]),
        frozenset(capitalised - {""}),
    )


def _joined(keys: Iterable[tuple[str, ...]]) -> str:
    return " ".join([part for parts in keys for part in parts])


def is_matchable(key: str) -> bool:
    """Whether a title of this key is looked for in texts."""
    parts = key.split()
    return 0 < len(parts) <= LONGEST_TITLE and not FUNCTION_WORDS.issuperset(parts)


def title_candidates(spans: TextSpans) -> Iterator[str]:
    """The keys of all titles that a passage could mention, some more than once."""
    yield from spans.names
    words = spans.words
    for start in range(len(words) - 1):
        for end in range(start + 2, min(start + LONGEST_TITLE, len(words)) + 1):
            yield " ".join(words[start:end])


def occurs(key: str, spans: TextSpans) -> bool:
    """Whether a title of this key is mentioned in a passage."""
    if not is_matchable(key):
        return False
    parts = tuple(key.split())
    size = len(parts)
    if size == 1:
        return key in spans.names
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
    written = [word.text for word in found]
    between = [question[left.end : right.start] for left, right in pairwise(found)]
    keys = [word_forms(word).keys for word in written]
    capitalised: set[tuple[int, int]] = set()
    for start, end in _spans(written, between):
        trimmed = _trim(keys, start, end)
        if trimmed < end:
            capitalised.add((trimmed, end))
    spans: list[QuestionSpan] = []
    for size in range(min(_LONGEST_SPAN, len(found)), 0, -1):
        for start in range(len(found) - size + 1):
            end = start + size
            whole = (start, end) in capitalised
            if size > LONGEST_TITLE and not whole:
                continue
            parts = [part for forms in keys[start:end] for part in forms]
            if FUNCTION_WORDS.issuperset(parts):
                continue
            forms = word_forms(written[start])
            nameable = size > 1 or whole or forms.identifier or forms.capitalised
            first, last = found[start].start, found[end - 1].end
            spans.append(QuestionSpan(" ".join(parts), question[first:last], first, last, whole, size, nameable))
    return spans
