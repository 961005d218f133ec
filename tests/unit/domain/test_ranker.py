"""Trees that order candidates: how they are evaluated, and what is refused."""

import json

import numpy as np
import pytest

from loremesh_agents.domain.ranker import SIGNALS, Ranker, RankerRefused, Trees, dump, load

COSINE, TEXT = SIGNALS.index("cosine"), SIGNALS.index("text")


def ranker() -> Ranker:
    """Two trees: one asks for the cosine and then for the text, the other is a leaf."""
    trees = Trees(
        signal=np.array([[COSINE, 0, TEXT, 0, 0], [0, 0, 0, 0, 0]], dtype=np.int32),
        threshold=np.array([[0.5, 0.0, 0.25, 0.0, 0.0], [0.0] * 5]),
        left=np.array([[1, 1, 3, 3, 4], [0, 0, 0, 0, 0]], dtype=np.int32),
        right=np.array([[2, 1, 4, 3, 4], [0, 0, 0, 0, 0]], dtype=np.int32),
        value=np.array([[0.0, -2.0, 0.0, 1.0, 3.0], [0.5, 0.0, 0.0, 0.0, 0.0]]),
        depth=2,
    )
    return Ranker(trees, ("a", "b"))


def signals(*rows: tuple[float, float]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    found = np.zeros((len(rows), len(SIGNALS)))
    found[:, COSINE] = [cosine for cosine, _ in rows]
    found[:, TEXT] = [text for _, text in rows]
    return found


def test_each_tree_adds_the_value_of_the_leaf_that_the_signals_lead_to() -> None:
    expected = np.array([-2.0, 1.0, 3.0]) + 0.5
    found = ranker().relevance(signals((0.5, 1.0), (0.6, 0.25), (0.6, 0.3)))
    assert found == pytest.approx(1 / (1 + np.exp(-expected)))


def test_no_candidates_have_no_relevance() -> None:
    assert ranker().relevance(signals()).shape == (0,)


def test_what_was_written_reads_as_the_same_ranker() -> None:
    again = load(dump(ranker()))
    rows = signals((0.5, 1.0), (0.6, 0.25), (0.6, 0.3))
    assert again.trained_on == ("a", "b")
    assert again.relevance(rows) == pytest.approx(ranker().relevance(rows))
    assert dump(again) == dump(ranker())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "null", "damaged"),
        (lambda text: text.replace("3.0", "4.0"), "checksum"),
        (lambda text: json.dumps({**json.loads(text), "format": 99}), "format 99"),
        (lambda text: json.dumps({**json.loads(text), "signals": ["other"]}), "other signals"),
    ],
)
def test_a_damaged_or_foreign_ranker_is_refused(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(RankerRefused, match=reason):
        load(change(dump(ranker())))
