"""What a question asks for, and how a sentence that answers it looks.

Three things are known of English questions: the kind of answer that the question word asks for (`asked_for`), words that say the same as a word of the question
(`akin`: a daughter's father is found where it says "daughter of"), and the forms in which encyclopedic and technical prose states common facts about
a subject (`Fit`: a birth stands in brackets after the name). All of it is vocabulary, none of it knows a data set.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from loremesh_agents.domain.lexicon import FUNCTION_WORDS, split, word_forms


class Asked(Enum):
    """What a question word asks for."""

    PERSON = "person"
    TIME = "time"
    PLACE = "place"
    ORIGIN = "origin"
    CAUSE = "cause"
    NUMBER = "number"
    ANYTHING = "anything"


_YEAR = r"\b(?:[1-9][0-9]{2}|1[0-9]{3}|20[0-9]{2})\b"
_MONTH = r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
_BRACKET = r"\([^()]{0,160}"

_DAY = re.compile(rf"\b{_MONTH}\b")
_CUES = {
    Asked.TIME: re.compile(rf"\b(?:1[0-9]{{3}}|20[0-9]{{2}})\b|\b{_MONTH}\b|\b\d+(?:st|nd|rd|th) century\b"),
    Asked.PERSON: re.compile(r"\b[A-Z][a-zà-ÿ]+(?:\s+[A-Z][\w.'-]*){0,4}\s+[A-Z][a-zà-ÿ]+\b"),
    Asked.PLACE: re.compile(r"\b(?:in|at|from|near|of|to)\s+(?:the\s+)?[A-Z][a-z]+"),
    Asked.ORIGIN: re.compile(
        r"\b(?:is|was|are|were)\s+(?:an?|the)\s+(?:(?!of\b)[\w-]+\s+){0,3}?[A-Z][a-z]+|\b(?:from|in)\s+[A-Z][a-z]+"
    ),
    Asked.CAUSE: re.compile(
        r"\b(?:because|due to|caused by|as a result|result of|owing to|in order to)\b", re.IGNORECASE
    ),
    Asked.NUMBER: re.compile(
        r"\b\d[\d,.]*\b|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|twelve|hundred|thousand|million|billion|once|twice)\b"
    ),
}

_QUESTION_WORDS = (
    (
        re.compile(
            r"\b(?:when|what (?:year|date|day|month|century)|which (?:year|date|day|month|century)|how old|date of)\b"
        ),
        Asked.TIME,
    ),
    (
        re.compile(r"\b(?:how many|how much|how (?:long|far|tall|high|large|big|fast)|what (?:number|percentage))\b"),
        Asked.NUMBER,
    ),
    (re.compile(r"\bnationality\b|\b(?:what|which) country\b.{0,80}\bfrom\b|\bcitizen"), Asked.ORIGIN),
    (
        re.compile(r"\b(?:where|(?:what|which) (?:\w+ )?(?:country|city|place|state|town|county|region)|place of)\b"),
        Asked.PLACE,
    ),
    (re.compile(r"\b(?:why|cause of|reason for)\b"), Asked.CAUSE),
    (re.compile(r"\b(?:who|whom|whose)\b"), Asked.PERSON),
)
_OPENS = re.compile(
    r"\W*(?:(?:in|at|on|from|to|by|for|since|until|of|with)\s+)?(?:what (?:is|was|are|were) (?:the )?)?"
)


def asked_for(question: str) -> Asked:
    """What the question word asks for.

    The one that opens the question counts, for a later one opens a clause inside it; where none does, the last.
    """
    folded = question.lower()
    opening = _OPENS.match(folded)
    start = opening.end() if opening else 0
    best = (-1, Asked.ANYTHING)
    for pattern, kind in _QUESTION_WORDS:
        for match in pattern.finditer(folded):
            if match.start() == start:
                return kind
            best = max(best, (match.start(), kind), key=lambda pair: pair[0])
    return best[1]


_SAME = (
    "born birth birthday native older younger oldest youngest",
    "die died dies death dead killed murdered executed assassinated suicide drowned deceased",
    "buried burial interred cemetery grave",
    "spouse husband wife married marries marriage widow widower consort partner",
    "father mother parent parents son daughter child children",
    "grandfather grandmother grandson granddaughter grandchild son daughter father mother",
    "stepfather stepmother stepson married wife husband mother father son daughter",
    "uncle aunt nephew niece brother sister son daughter",
    "sibling brother sister siblings",
    "inlaw married wife husband son daughter",
    "director directed directs directing filmmaker directorial",
    "performer performed sing sang sung singer recorded single song album artist musician",
    "composer composed composes music score musical scored",
    "author wrote written writes writer novel book",
    "founder founded founding established cofounded created creator",
    "producer produced production",
    "released came premiered published",
    "studied study educated attended attend graduated graduate university college school degree alma",
    "work worked employer employed taught professor",
    "award awarded won prize honour honor received",
    "located location situated based lies headquarters headquartered",
    "leads leader led headed head president chairman chief",
)
"""Words on one line can stand for one another in the statement that answers."""


@lru_cache(maxsize=1 << 14)
def stem(term: str) -> str:
    """A search term without its commonest endings."""
    for ending in ("ing", "ed", "es", "s", "ion", "or", "er", "e"):
        if term.endswith(ending) and len(term) - len(ending) >= 4:
            return term[: -len(ending)]
    return term


def _kinship() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for line in _SAME:
        stems = frozenset(stem(word) for word in line.split())
        for one in stems:
            found[one] = found.get(one, frozenset()) | stems
    return found


_AKIN = _kinship()


def akin(stemmed: str) -> frozenset[str]:
    """Stems that can stand for a stem of the question, itself included."""
    return _AKIN.get(stemmed, frozenset()) | {stemmed}


def stems(text: str) -> list[str]:
    """Stems of the words that carry meaning, in order; initials are left out, for one text has them and the other has not."""
    return [
        stem(term)
        for word in split(text)[0]
        for term in word_forms(word).terms
        if term not in FUNCTION_WORDS and (len(term) > 1 or not term.isascii() or term.isdigit())
    ]


_ASKING = (
    "what which who whom whose when where why how many much name tell give please called first last earlier later both same "
    "date year day month place cause reason nationality number"
)
ASKING = frozenset(map(stem, _ASKING.split()))
"""Stems of the words by which a question asks or compares: no statement is looked for by them."""


@dataclass(frozen=True, slots=True)
class _Fact:
    """A kind of fact: when it is asked for, and how it is stated."""

    asked: frozenset[Asked]
    question: re.Pattern[str]
    statement: re.Pattern[str]


def _fact(asked: Iterable[Asked], question: str, statement: str) -> _Fact:
    return _Fact(frozenset(asked), re.compile(question, re.IGNORECASE), re.compile(statement))


_BORN = r"\bborn\b|\bbirth|\bolder\b|\byounger\b|\boldest\b|\byoungest\b"
_DIED = r"\bdie[ds]?\b|\bdeath\b|\bdead\b"
_BY_TIME = re.compile(
    r"\b(?:first|last|earlier|later|older|oldest|younger|youngest|(?:more|most) recent(?:ly)?)\b", re.IGNORECASE
)
_ANY_KIND = frozenset({Asked.PERSON, Asked.ANYTHING})
_FACTS = (
    _fact([Asked.TIME], _BORN, rf"\b[Bb]orn\b[^;]{{0,60}}?{_YEAR}|{_BRACKET}{_YEAR}"),
    _fact(
        [Asked.TIME],
        _DIED,
        rf"\b(?:died|death|killed|murdered|executed)\b[^;]{{0,80}}?{_YEAR}|{_BRACKET}{_YEAR}[^()]{{1,80}}{_YEAR}",
    ),
    _fact(
        [Asked.PLACE],
        _BORN,
        rf"\b(?:[Bb]orn|birth|birthplace)\b(?:[^;]{{0,80}}?\b(?:in|at|near|of)\s|[^;()]{{0,40}},\s)[A-Z]|\b[Nn]ative of\b|{_BRACKET}{_YEAR},? (?:in )?[A-Z]",
    ),
    _fact(
        [Asked.PLACE],
        _DIED,
        rf"\b(?:died|death|killed|murdered|executed|buried)\b[^;]{{0,100}}?\b(?:in|at|near)\s(?:his |her |the )?[A-Z][a-z]|{_BRACKET}{_YEAR}[^()]{{1,80}}{_YEAR},? (?:in )?[A-Z]",
    ),
    _fact([Asked.PLACE], r"\bburied|\bburial", r"\b(?:[Bb]uried|interred|cemetery|Cemetery)\b"),
    _fact(
        [Asked.CAUSE],
        _DIED,
        r"\b(?:died|death|dying)\b[^;]{0,60}?\b(?:of|from|by|after|when|following)\s(?!\d)|\b(?:heart attack|cancer|accident|suicide|stroke|tuberculosis|pneumonia|disease|"
        r"illness|crash|overdose|drowned|shot|hanged|beheaded|murdered|killed|executed|assassinated|leukemia|fever|plague|failure)\b",
    ),
    _fact(
        _ANY_KIND,
        r"\bfather\b|\bmother\b|\bparents?\b|\bgrand(?:father|mother|parents?)\b|\bstep(?:father|mother)\b|-in-law\b",
        r"\b(?:son|daughter|child|children)\s(?:of|to)\b|\bborn\b[^;]{0,40}\bto\b|\b(?:his|her|whose|their) (?:father|mother|parents)\b|'s (?:son|daughter)\b|\b(?:father|mother),|"
        r"\b(?:father|mother) of\b",
    ),
    _fact(
        _ANY_KIND,
        r"\b(?:spouse|husband|wife|married?|widow|in-law)\b",
        r"\b(?:[Mm]arried|wife|husband|spouse|widow|consort|marriage|wed)\b",
    ),
    _fact(
        _ANY_KIND,
        r"\b(?:child|children|son|daughter)\b",
        r"\b(?:father|mother|parent)\b|\b(?:sons?|daughters?|child|children)\b",
    ),
    _fact(_ANY_KIND, r"\b(?:siblings?|brother|sister|uncle|aunt)\b", r"\b(?:brothers?|sisters?|siblings?|twin)\b"),
    _fact([Asked.ORIGIN], r"", r"\b(?:is|was|are|were)\s(?:an?|the)\s(?:(?!of\b)[\w-]+\s){0,2}?[A-Z][a-z]+"),
)

_IN_TWO_STEPS = re.compile(
    r"\bgrand(?:father|mother|parent|son|daughter|child)|\bstep(?:father|mother|son|daughter)|\b\w+-in-law\b",
    re.IGNORECASE,
)


def in_two_steps(question: str) -> bool:
    """Whether a relation is asked for that texts state as two: the father of a father, the husband of a mother."""
    return _IN_TWO_STEPS.search(question) is not None


class Fit:
    """How well sentences have what a question asks for.

    Args:
        question: The question.
        wanted: Stems of its words.
        compares: Whether its subject is set against another.
    """

    def __init__(self, question: str, wanted: frozenset[str], *, compares: bool = False) -> None:
        kind = asked_for(question)
        # Which of two is older or came first is told by their dates.
        self._kind = Asked.TIME if compares and kind in _ANY_KIND and _BY_TIME.search(question) else kind
        self._wanted = wanted
        self._facts = [fact.statement for fact in _FACTS if self._kind in fact.asked and fact.question.search(question)]

    def of(self, sentence: str) -> float:
        """0 for a sentence without it, 1 for one that states such a fact, between them for one that has but something of its kind."""
        if any(pattern.search(sentence) for pattern in self._facts):
            # Who asks when wants the day where one is known.
            return 1.0 if self._kind is not Asked.TIME or _DAY.search(sentence) else 0.8
        cue = _CUES.get(self._kind)
        if cue is None or not any(set(stems(match[0])) - self._wanted for match in cue.finditer(sentence)):
            return 0.0
        return 0.35 if self._facts else 0.7
