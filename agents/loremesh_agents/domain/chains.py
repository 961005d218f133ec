"""Chains of sentences that lead from what a question names to what it asks for.

A chain begins with a sentence that holds words of the question. It goes on with sentences of sources that it leads to: one before names the source's title,
the nearer to a word of the question the better ("directed by Jane Doe"). What a sentence has of the kind asked for counts as much as the chain leads
to its source: dates of birth are everywhere, that of the film's director is in one place.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import NamedTuple

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.asking import ASKING, Fit, akin, in_two_steps, stems
from loremesh_agents.domain.sentences import sentences

_LONGEST_SENTENCE = 600
_BEAM = 3
_MOST_WORDS = 256
"""Words of the question that are looked for: of more the last ones, for who writes so much asks at the end."""
_NEAR = 6
"""Words from a title to a word of the question at which the title leads half as well."""

# What counts for a chain, in shares of the question's weight: decided on questions of 2WikiMultihopQA's training set.
_TITLE_COVERS = 0.6  # a word of the question that a sentence leaves to its source's title
_FIT = 0.6  # having what is asked for
_LED = 0.5  # going on to a source that the chain leads to
_OPENING = 0.6  # an opening sentence says what its subject is, so it is worth going on to even where it fits nothing
_FRESH = 4.0  # so is one with a quarter of the question's weight that the chain had not
_SAME_SOURCE = 0.9
_NAMES_BACK = 0.6  # leads to a source that names one of the chain
_UNLED = 0.5
_STATEMENT_COST = 0.13
_CHARACTER_COST = 0.0006
_STRAY_COST = 0.1  # a sentence that nothing leads to
_RANK_COST = 0.01
_LATER_COST = 0.02

_QUALIFIER = re.compile(r"\s*[(（][^()（）]*[)）]\s*$")


def bare(title: str) -> str:
    """A title without what tells it from others of its name: `Mercury (planet)` is spoken of as Mercury."""
    return _QUALIFIER.sub("", title)


@dataclass(frozen=True, slots=True)
class Reading:
    """A source split up once for all questions.

    Attributes:
        source: The source.
        title: Stems of its title.
        name: Stems of its title without a qualifier.
        sentences: The text of each sentence, on one line, with its stems.
    """

    source: Source
    title: tuple[str, ...]
    name: tuple[str, ...]
    sentences: tuple[tuple[str, tuple[str, ...]], ...]


def read(source: Source) -> Reading:
    """A source's sentences; those without a letter or too long to quote are left out."""
    texts = [" ".join(sentence.text.split()) for sentence in sentences(source.text)]
    return Reading(
        source,
        tuple(stems(source.title)),
        tuple(stems(bare(source.title))),
        tuple(
            (text, tuple(stems(text)))
            for text in texts
            if len(text) <= _LONGEST_SENTENCE and any(character.isalpha() for character in text)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A sentence as a question sees it.

    Attributes:
        text: On one line.
        source: Index of its source.
        place: Index in its source.
        own: Bits of the question's words that it holds.
        context: Bits of those that its source's title holds.
        fit: How well it has what is asked for, 0 to 1.
        leads_to: Sources whose titles it names, and how near to a word of the question, 0 to 1.
        cost: What quoting it costs.
    """

    text: str
    source: int
    place: int
    own: int
    context: int
    fit: float
    leads_to: Mapping[int, float]
    cost: float


class _Chain(NamedTuple):
    """Some links with sums over them; a ground is how much leads to a link, 0 to 1."""

    score: float
    links: tuple[Link, ...]
    grounds: tuple[float, ...]
    own: int
    context: int
    fitting: float
    led: float
    cost: float


class Evidence:
    """The sentences of sources as one question sees them.

    Args:
        question: The question.
        readings: The sources in the order of their rank.
        compares: Whether its subject is set against another one.
    """

    def __init__(self, question: str, readings: Sequence[Reading], *, compares: bool = False) -> None:
        asked = stems(question)
        wanted = [term for term in dict.fromkeys(asked) if term not in ASKING][-_MOST_WORDS:]
        self._bits = _bits(wanted)
        self._names = [reading.name for reading in readings]
        self._spoken_names = [_spoken(name) for name in self._names]
        spoken = _spoken(asked)
        self._named = {place for place, name in enumerate(self._names) if name and _spoken(name) in spoken}
        in_names = {term for place in self._named for term in self._names[place]}
        self._relations = frozenset(other for term in wanted if term not in in_names for other in akin(term))
        self._fit = Fit(question, frozenset(wanted), compares=compares)
        # Where two steps are asked for, the first sentence that fits is but the first step.
        self._first_fits = 0.5 if in_two_steps(question) else 1.0
        self._links = [link for index, reading in enumerate(readings) for link in self._linked(index, reading)]
        self._weights = _weights(len(wanted), self._links)
        self._shares: dict[int, float] = {0: 0.0}

    def nearest(self) -> tuple[Link | None, float]:
        """The sentence that holds the most of the question, and how much, 0 to 1; None where none holds any."""
        best, most = None, 0.0
        for link in self._links:
            share = self._covered(link.own, link.context)
            if share > most:
                best, most = link, share
        return best, most

    def best_chain(self, most: int) -> tuple[Link, ...]:
        """The best chain of so many sentences at the most, in the order of the sources; empty without sentences."""
        # Others add nothing to a chain but their cost.
        useful = [link for link in self._links if link.own or link.fit or link.place == 0]
        beam = nlargest(_BEAM, map(self._begun, useful), key=_score)
        best = beam[0] if beam else None
        for _ in range(most - 1):
            longer = (self._extended(chain, link) for chain in beam for link in useful if link not in chain.links)
            beam = nlargest(_BEAM, longer, key=_score)
            if best is None or not beam:
                break
            best = max(best, beam[0], key=_score)
        return tuple(sorted(best.links, key=lambda link: (link.source, link.place))) if best is not None else ()

    def _linked(self, index: int, reading: Reading) -> list[Link]:
        context = self._mask(reading.title)
        return [
            Link(
                text,
                index,
                place,
                self._mask(words),
                context,
                self._fit.of(text),
                self._leads_to(index, words),
                _RANK_COST * index + (_LATER_COST if place else 0.0) + _CHARACTER_COST * len(text),
            )
            for place, (text, words) in enumerate(reading.sentences)
        ]

    def _mask(self, words: Sequence[str]) -> int:
        mask = 0
        for word in words:
            mask |= self._bits.get(word, 0)
        return mask

    def _leads_to(self, index: int, words: Sequence[str]) -> dict[int, float]:
        text = _spoken(words)
        found: dict[int, float] = {}
        for other, name in enumerate(self._names):
            if not name or name == self._names[index]:
                continue
            at = text.find(self._spoken_names[other])
            if at < 0:
                continue
            start = text.count(" ", 0, at + 1) - 1
            end = start + len(name) - 1
            distance = min(
                (
                    max(start - place, place - end)
                    for place, word in enumerate(words)
                    if word in self._relations and not start <= place <= end
                ),
                default=2 * _NEAR,
            )
            found[other] = 1 / (1 + (distance - 1) / _NEAR)
        return found

    def _share(self, mask: int) -> float:
        found = self._shares.get(mask)
        if found is None:
            found = sum(weight for place, weight in enumerate(self._weights) if mask >> place & 1)
            self._shares[mask] = found
        return found

    def _covered(self, own: int, context: int) -> float:
        return self._share(own) + _TITLE_COVERS * self._share(context & ~own)

    def _begun(self, link: Link) -> _Chain:
        covered = self._covered(link.own, link.context)
        ground = 1.0 if link.source in self._named else covered
        fitting = self._first_fits * link.fit * ground
        score = covered + _FIT * fitting - link.cost
        return _Chain(score, (link,), (ground,), link.own, link.context, fitting, 0.0, link.cost)

    def _extended(self, chain: _Chain, link: Link) -> _Chain:
        ground, led = self._leading(chain, link)
        fresh = self._share((link.own | link.context) & ~(chain.own | chain.context))
        led *= max(link.fit, 0.0 if link.place else _OPENING, min(1.0, _FRESH * fresh))
        cost = chain.cost + link.cost + _STATEMENT_COST
        if not ground:
            ground = _UNLED * self._covered(link.own, link.context)
            cost += _STRAY_COST
        own, context = chain.own | link.own, chain.context | link.context
        fitting = max(chain.fitting, link.fit * ground)
        led += chain.led
        score = self._covered(own, context) + _FIT * fitting + _LED * led - cost
        return _Chain(score, (*chain.links, link), (*chain.grounds, ground), own, context, fitting, led, cost)

    @staticmethod
    def _leading(chain: _Chain, link: Link) -> tuple[float, float]:
        """How much a chain leads to a link's source, and how much of that is new."""
        ground = led = 0.0
        known = False
        for before, base in zip(chain.links, chain.grounds, strict=True):
            if before.source == link.source:
                ground = max(ground, base * _SAME_SOURCE)
                known = True
            elif nearness := before.leads_to.get(link.source):
                ground = max(ground, base * (0.5 + 0.5 * nearness))
                # A sentence leads one way: of a film to its director, not to the actors as well.
                if not any(other.source in before.leads_to for other in chain.links):
                    led = max(led, base * nearness)
            elif nearness := link.leads_to.get(before.source):
                ground = max(ground, base * _NAMES_BACK)
                led = max(led, 0.5 * base * nearness)
        return ground, 0.0 if known else led


def _score(chain: _Chain) -> float:
    return chain.score


def _spoken(words: Sequence[str]) -> str:
    return f" {' '.join(words)} "


def _bits(wanted: Sequence[str]) -> dict[str, int]:
    """Which words of the question a stem stands for, as bits."""
    found: dict[str, int] = {}
    for place, term in enumerate(wanted):
        for other in akin(term):
            found[other] = found.get(other, 0) | 1 << place
    return found


def _weights(count: int, links: Sequence[Link]) -> list[float]:
    """The weight of each word of the question, rare ones the heaviest; together 1."""
    held = [sum(link.own >> place & 1 for link in links) for place in range(count)]
    weights = [math.log(1 + (len(links) + 1) / (0.5 + number)) for number in held]
    total = sum(weights)
    return [weight / total for weight in weights]
