"""The ranker learns what is to be learnt, from candidates made for it."""

import lightgbm
import numpy as np
import pytest

from bench.train_ranker import Candidates, DataSet, figures_of, train
from loremesh_agents.domain.ranker import SIGNALS, dump, load

SCORE, COSINE, COVERAGE = (SIGNALS.index(name) for name in ("score", "cosine", "coverage"))


def candidates(seed: int, *, count: int = 20) -> Candidates:
    """Two relevant passages of many: coverage tells them, the score says nothing."""
    random = np.random.default_rng(seed)
    signals = random.random((count, len(SIGNALS)))
    signals[:, SCORE] = np.sort(random.random(count) * 0.1)[::-1]
    relevant = random.choice(count, 2, replace=False)
    signals[:, COVERAGE] *= 0.5
    signals[relevant, COVERAGE] += 0.5
    names = [f"d{place}" for place in range(count)]
    return Candidates(signals, names, {names[place] for place in relevant})


def data_set(name: str, seed: int) -> DataSet:
    return DataSet(name, {"encoder": [candidates(seed * 1000 + number) for number in range(60)]})


@pytest.fixture(scope="module")
def sets() -> list[DataSet]:
    return [data_set("red-train", 1), data_set("red-dev", 2), data_set("blue-train", 3)]


def test_a_ranker_finds_what_the_score_does_not_say(sets: list[DataSet]) -> None:
    ranker = train([sets[2]])
    unseen = sets[0].found["encoder"]
    by_score = np.mean([found.recall(None) for found in unseen])
    by_ranker = np.mean([found.recall(ranker) for found in unseen])
    assert by_score < 50
    assert by_ranker > 80


def test_the_same_data_give_the_same_ranker(sets: list[DataSet]) -> None:
    assert dump(train(sets)) == dump(train(sets))


def test_what_is_written_ranks_as_what_was_trained(sets: list[DataSet]) -> None:
    ranker = train(sets)
    signals = sets[0].found["encoder"][0].signals
    assert load(dump(ranker)).relevance(signals) == pytest.approx(ranker.relevance(signals))
    assert ranker.trained_on == ("blue-train", "red-dev", "red-train")


def test_trees_may_only_rise_with_what_speaks_for_a_passage(sets: list[DataSet]) -> None:
    ranker = train(sets)
    rows = np.repeat(sets[1].found["encoder"][0].signals[:1], 50, axis=0)
    rows[:, COSINE] = np.linspace(0, 1, 50)
    assert (np.diff(ranker.relevance(rows)) >= 0).all()


def test_the_figures_of_a_set_are_of_a_ranker_that_has_not_seen_its_family(
    sets: list[DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = lightgbm.Dataset

    def watched(rows: np.ndarray, *arguments: object, **options: object) -> lightgbm.Dataset:
        seen.append(len(rows))
        return real(rows, *arguments, **options)

    monkeypatch.setattr(lightgbm, "Dataset", watched)
    figures = figures_of(sets)
    assert seen == [60 * 20, 60 * 20, 2 * 60 * 20]
    assert set(figures) == {"red-train", "red-dev", "blue-train"}
    assert figures_of(sets[:1]) == {"red-train": {"encoder": {"score": figures["red-train"]["encoder"]["score"]}}}
