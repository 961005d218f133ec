"""Which pieces of text say the same."""

from loremesh_agents.domain.lexicon import search_terms

_SHINGLE = 4


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """All runs of four search terms of a text; of a shorter text the one run that it is."""
    terms = search_terms(text)
    if len(terms) <= _SHINGLE:
        return frozenset({tuple(terms)} if terms else ())
    return frozenset(tuple(terms[start : start + _SHINGLE]) for start in range(len(terms) - _SHINGLE + 1))


def containment(part: frozenset[tuple[str, ...]], whole: frozenset[tuple[str, ...]]) -> float:
    """The share of `part` that is in `whole`, 0 to 1 (Broder, "On the resemblance and containment of documents", 1997)."""
    return len(part & whole) / len(part) if part else 0.0
