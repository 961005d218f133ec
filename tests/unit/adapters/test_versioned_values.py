"""What stored values add up to for a reader."""

import numpy as np
import pytest

from loremesh_agents.adapters.graph.versioned.cells import View
from loremesh_agents.adapters.graph.versioned.passages import KeptPassage, passage_features
from loremesh_agents.adapters.graph.versioned.terms import Features, term_hash
from loremesh_agents.adapters.graph.versioned.totals import EntityTotals, links_seen

# Version 2 was aborted; version 5 has summed up 1 to 3, what it sums up is still there.
CELLS = ("1:1,0,0,0", "2:100,0,0,0", "3:2,1,0,0", "4:4,0,1,1", "5:~0-3:3,1,0,0", "6:8,0,0,0")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (0, EntityTotals()),
        (1, EntityTotals(1)),
        (3, EntityTotals(3, 1)),
        (4, EntityTotals(7, 1, 1, 1)),
        (5, EntityTotals(7, 1, 1, 1)),
        (6, EntityTotals(15, 1, 1, 1)),
    ],
)
def test_each_reader_sees_the_sum_of_what_was_committed_for_it(version: int, expected: EntityTotals) -> None:
    view = View(version, frozenset({2}))
    assert EntityTotals.seen(CELLS, view) == expected
    assert EntityTotals.seen(tuple(reversed(CELLS)), view) == expected
    if version < 5:
        assert EntityTotals.seen([value for value in CELLS if "~" not in value], view) == expected


def test_links_are_summed_without_what_was_aborted_or_comes_later() -> None:
    assert links_seen(("1:2", "2:50", "3:-1", "9:7"), View(3, frozenset({2}))) == 1


def kept(words: dict[str, int]) -> KeptPassage:
    counts = {term_hash(word): count for word, count in words.items()}
    hashes = np.array(sorted(counts), dtype=np.uint64)
    numbers = np.array([counts[found] for found in hashes.tolist()], dtype=np.uint16)
    return KeptPassage("u1", Features("d", 0, sum(words.values()), hashes, numbers), 0, b"")


def test_term_frequencies_stand_at_their_passage_and_term() -> None:
    found = {7: kept({"ada": 2, "met": 1, "only a word": 0}), 3: kept({}), 5: kept({"bob": 60_000, "ada": 1})}
    features = passage_features(found, {"u1": "c"}, ["met", "ada", "nobody", "bob", "ada", "only a word"])
    assert features.refs == (3, 5, 7)
    assert features.term_frequencies.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 60_000, 1, 0],
        [1, 2, 0, 0, 2, 0],
    ]


@pytest.mark.parametrize("terms", [[], ["ada"]])
def test_nothing_has_no_term_frequencies(terms: list[str]) -> None:
    assert passage_features({}, {"u1": "c"}, terms).term_frequencies.shape == (0, len(terms))
    assert passage_features({1: kept({})}, {"u1": "c"}, terms).term_frequencies.shape == (1, len(terms))
