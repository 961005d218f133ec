"""Questions that set two subjects against each other: "Which film is older, A or B?"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_BETWEEN = re.compile(r"[\W_]*(?:\([^()]*\)[\W_]*)?\b(?:or|and|than)\b[^.?!]{0,24}")
_WIDEST = 60


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of two subjects that a question compares.

    Attributes:
        question: The question without the other subject.
        others: Indexes of the names of the other one.
    """

    question: str
    others: frozenset[int]


def compared(question: str, names: Sequence[str]) -> tuple[Alternative, ...]:
    """The two subjects that a question compares, in the order in which it names them; none where it does not compare two.

    Args:
        question: The question.
        names: What the sources are about; one name may stand there several times.
    """
    folded = question.lower()
    if len(folded) != len(question):
        # A few letters grow when folded: places in one text are none in the other.
        return ()
    places: dict[tuple[int, int], set[int]] = {}
    for index, name in enumerate(names):
        if (place := _place(folded, name.lower())) is not None:
            places.setdefault(place, set()).add(index)
    # "New York" is no subject beside "New York Times".
    subjects = sorted(place for place in places if not any(_within(place, other) for other in places))
    if len(subjects) != 2:
        return ()
    first, second = subjects
    between = folded[first[1] : second[0]]
    if len(between) > _WIDEST or not _BETWEEN.fullmatch(between):
        return ()
    return tuple(
        Alternative(question[: other[0]] + question[other[1] :], frozenset(places[other])) for other in (second, first)
    )


def _place(text: str, name: str) -> tuple[int, int] | None:
    """Where a name stands in a text as whole words."""
    start = text.find(name) if name else -1
    while start >= 0:
        end = start + len(name)
        if not text[start - 1 : start].isalnum() and not text[end : end + 1].isalnum():
            return start, end
        start = text.find(name, start + 1)
    return None


def _within(place: tuple[int, int], other: tuple[int, int]) -> bool:
    return place != other and other[0] <= place[0] and place[1] <= other[1]
