"""The scores, by hand where a hand can compute them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from loremesh_agents.domain.linking import LinkedEntity
from loremesh_agents.domain.matching import bm25, cosine
from loremesh_agents.domain.ranking import Ranking
from loremesh_agents.domain.retrieval import (
    EntityStatistics,
    EntryPoints,
    Expansion,
    MentionEdge,
    PassageFeatures,
    PassageRef,
    ReferenceEdge,
    TermStatistics,
    TitleEdge,
)

NOTHING = TermStatistics(0, 0.0, {})


def features(
    names: Mapping[int, str],
    *,
    counts: Sequence[Sequence[float]] | None = None,
    lengths: Sequence[float] | None = None,
    vectors: Mapping[int, Sequence[float]] | None = None,
) -> PassageFeatures:
    refs = tuple(PassageRef(ref) for ref in sorted(names))
    found = vectors or {}
    dimension = len(next(iter(found.values()))) if found else 0
    rows = [found.get(ref, [0.0] * dimension) for ref in refs]
    return PassageFeatures(
        refs,
        tuple(names[ref] for ref in refs),
        np.array(lengths if lengths is not None else [1.0] * len(refs), dtype=np.float32),
        _table(counts if counts is not None else [[]] * len(refs)),
        _table(rows),
        np.array([ref in found for ref in refs], dtype=np.bool_),
    )


def _table(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(rows[0]) if rows else 0)


def expansion(
    *,
    entities: Mapping[str, tuple[int, int]] | None = None,
    seed_mentions: Sequence[tuple[str, int]] = (),
    seed_titles: Sequence[tuple[str, int]] = (),
    titles: Sequence[tuple[str, int, float]] = (),
    mentions: Sequence[tuple[str, int]] = (),
    references: Sequence[tuple[int, int, int]] = (),
    reached: Mapping[int, str] | None = None,
    terms: int = 0,
) -> Expansion:
    names = reached or {}
    return Expansion(
        {key: EntityStatistics(key, key, *found) for key, found in (entities or {}).items()},
        tuple(MentionEdge(key, PassageRef(ref)) for key, ref in seed_mentions),
        tuple(TitleEdge(key, PassageRef(ref), 1.0) for key, ref in seed_titles),
        tuple(TitleEdge(key, PassageRef(ref), weight) for key, ref, weight in titles),
        {key: [PassageRef(ref) for other, ref in mentions if other == key] for key, _ in mentions},
        tuple(ReferenceEdge(PassageRef(a), PassageRef(b), degree) for a, b, degree in references),
        features(names, counts=[[0.0] * terms] * len(names)),
    )


def by_links(
    confidences: Mapping[str, float], edges: Sequence[tuple[str, int, float]], names: Mapping[int, str]
) -> Ranking:
    """A ranking in which only the links of the question have given scores."""
    linked = {key: LinkedEntity(key, confidence) for key, confidence in confidences.items()}
    ranking = Ranking((), NOTHING, None, linked)
    bearers = {key: sum(1 for other, _, _ in edges if other == key) for key, _, _ in edges}
    ranking.add_links(
        EntryPoints(
            NOTHING,
            {key: EntityStatistics(key, key, 1, count) for key, count in bearers.items()},
            tuple(TitleEdge(key, PassageRef(ref), weight) for key, ref, weight in edges),
            {},
        )
    )
    ranking.add(features(names))
    ranking.begin()
    return ranking


def scores(ranking: Ranking, count: int = 100) -> dict[int, float]:
    return {int(entry.ref): entry.score for entry in ranking.top(count)}


def test_bm25_is_that_of_the_formula() -> None:
    found = features({1: "c/a#0"}, counts=[[2.0, 0.0]], lengths=[8.0])
    statistics = TermStatistics(10, 4.0, {"engine": 3, "loom": 1})
    idf = math.log(1 + (10 - 3 + 0.5) / (3 + 0.5))
    expected = idf * 2 * 1.9 / (2 + 0.9 * (1 - 0.4 + 0.4 * 8 / 4))
    assert bm25(found, ("engine", "loom"), statistics) == pytest.approx([expected])


def test_bm25_of_an_empty_collection_is_nothing() -> None:
    assert bm25(features({1: "c/a#0"}, counts=[[1.0]]), ("engine",), NOTHING) == pytest.approx([0.0])


def test_the_cosine_of_a_passage_without_a_vector_is_nothing() -> None:
    found = cosine(features({1: "c/a#0", 2: "c/b#0"}, vectors={2: [0.6, 0.8]}), np.array([0.0, 1.0], dtype=np.float32))
    assert found == pytest.approx([0.0, 0.8])


def test_there_is_no_cosine_without_an_encoder() -> None:
    assert cosine(features({1: "c/a#0"}, vectors={1: [1.0]}), None) is None


def test_a_question_vector_of_another_dimension_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 dimensions, those of the passages 3"):
        cosine(features({1: "c/a#0"}, vectors={1: [1.0, 0.0, 0.0]}), np.array([0.0, 1.0], dtype=np.float32))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_are_not_finite_are_an_error(value: float) -> None:
    sound, broken = [0.0, 1.0], [value, 0.0]
    with pytest.raises(ValueError, match="the question's vector holds values that are not finite"):
        cosine(features({1: "c/a#0"}, vectors={1: sound}), np.array(broken, dtype=np.float32))
    with pytest.raises(ValueError, match=r"the vector of c/a#0 holds values that are not finite"):
        cosine(features({1: "c/a#0"}, vectors={1: broken}), np.array(sound, dtype=np.float32))


def test_a_score_is_made_of_cosine_text_and_links() -> None:
    statistics = TermStatistics(2, 1.0, {"engine": 1})
    linked = {"engine": LinkedEntity("engine", 0.8)}
    ranking = Ranking(("engine",), statistics, np.array([1.0, 0.0], dtype=np.float32), linked)
    edge = TitleEdge("engine", PassageRef(1), 0.6)
    ranking.add_links(EntryPoints(statistics, {"engine": EntityStatistics("engine", "Engine", 5, 16)}, (edge,), {}))
    vectors = {1: [0.6, 0.8], 2: [0.0, 1.0]}
    ranking.add(features({1: "c/a#0", 2: "c/b#0"}, counts=[[0.0], [1.0]], vectors=vectors))
    ranking.begin()
    assert scores(ranking) == pytest.approx({1: 0.6 / 1.3 + 0.9 * 0.8 * 0.6 / 2, 2: 0.3 / 1.3})
    first = ranking.top(1)[0]
    assert (first.cosine, first.text_score) == (pytest.approx(0.6), 0.0)
    assert first.graph_score == pytest.approx(0.9 * 0.8 * 0.6 / 2)


def test_ties_are_broken_by_the_names_of_passages() -> None:
    ranking = by_links({}, [], {1: "c/z#0", 2: "c/a#0", 3: "c/m#0"})
    assert [int(entry.ref) for entry in ranking.top(3)] == [2, 3, 1]


def test_the_order_in_which_candidates_come_does_not_matter() -> None:
    statistics = TermStatistics(3, 1.0, {"engine": 2})
    found = {1: ("c/a#0", 1.0), 2: ("c/b#0", 0.0), 3: ("c/c#0", 3.0)}
    results: list[list[tuple[int, float]]] = []
    for order in ([1, 2, 3], [3, 1, 2]):
        ranking = Ranking(("engine",), statistics, None, {})
        for ref in order:
            name, count = found[ref]
            ranking.add(features({ref: name}, counts=[[count]]))
        ranking.begin()
        results.append([(int(entry.ref), entry.score) for entry in ranking.top(3)])
    assert results[0] == results[1]


def test_what_a_seed_mentions_lends_score_to_the_passage_of_that_name() -> None:
    ranking = by_links({"acme": 1.0}, [("acme", 1, 1.0)], {1: "c/acme#0"})
    ranking.propagate(
        expansion(
            entities={"jane doe": (4, 2)},
            seed_mentions=[("jane doe", 1)],
            titles=[("jane doe", 2, 0.6)],
            reached={2: "c/jane#0"},
        )
    )
    assert scores(ranking)[2] == pytest.approx(2.2 * 0.4 * 0.9**2 * 0.6 / (2**0.6 * 4**0.3))
    trail = ranking.top(2)[1].trail
    assert trail is not None
    assert (trail.seed, trail.entity, trail.by_title) == (1, "jane doe", True)


def test_what_the_question_names_lends_score_to_those_that_mention_it() -> None:
    ranking = by_links({"acme": 0.5}, [], {1: "c/other#0"})
    ranking.propagate(expansion(entities={"acme": (6, 0)}, mentions=[("acme", 2)], reached={2: "c/b#0"}))
    assert scores(ranking)[2] == pytest.approx(2.2 * 0.24 * 0.6 * 0.5 / math.log2(7.5) ** 0.3)
    trail = ranking.top(1)[0].trail
    assert trail is not None
    assert (trail.seed, trail.entity, trail.by_title) == (None, "acme", False)


def test_the_name_of_a_seed_lends_score_to_those_that_mention_it() -> None:
    ranking = by_links({"acme": 1.0}, [("acme", 1, 1.0)], {1: "c/acme#0"})
    ranking.propagate(
        expansion(
            entities={"acme corporation": (2, 1)},
            seed_titles=[("acme corporation", 1)],
            mentions=[("acme corporation", 2)],
            reached={2: "c/b#0"},
        )
    )
    assert scores(ranking)[2] == pytest.approx(2.2 * 0.24 * 0.3 * 0.9 / math.log2(3.5) ** 0.3)


def test_a_link_lends_score_like_a_name() -> None:
    ranking = by_links({"acme": 1.0}, [("acme", 1, 1.0)], {1: "c/acme#0"})
    ranking.propagate(expansion(references=[(1, 2, 3)], reached={2: "c/b#0"}))
    assert scores(ranking)[2] == pytest.approx(2.2 * 0.4 * 0.9**2 / 3**0.3)
    trail = ranking.top(2)[1].trail
    assert trail is not None
    assert (trail.seed, trail.entity) == (1, "")


def test_only_the_strongest_of_several_paths_counts() -> None:
    ranking = by_links({"acme": 1.0, "bolt": 0.5}, [("acme", 1, 1.0), ("bolt", 2, 1.0)], {1: "c/acme#0", 2: "c/bolt#0"})
    ranking.propagate(
        expansion(
            entities={"jane doe": (1, 1)},
            seed_mentions=[("jane doe", 1), ("jane doe", 2)],
            titles=[("jane doe", 3, 1.0)],
            reached={3: "c/jane#0"},
        )
    )
    assert scores(ranking)[3] == pytest.approx(2.2 * 0.4 * 0.9**2)


def test_a_seed_gains_by_another_seed_that_mentions_its_name() -> None:
    names = {1: "c/acme#0", 2: "c/bolt#0"}
    ranking = by_links({"acme": 1.0, "bolt": 0.5}, [("acme", 1, 1.0), ("bolt", 2, 1.0)], names)
    before = scores(ranking)
    ranking.propagate(
        expansion(
            entities={"acme": (2, 1)},
            seed_mentions=[("acme", 1), ("acme", 2)],
            titles=[("acme", 1, 1.0)],
        )
    )
    assert scores(ranking)[1] > before[1]


def test_a_second_round_starts_from_the_scores_of_the_first() -> None:
    ranking = by_links({"acme": 1.0}, [("acme", 1, 1.0)], {1: "c/acme#0"})
    first = expansion(
        entities={"jane doe": (1, 1)},
        seed_mentions=[("jane doe", 1)],
        titles=[("jane doe", 2, 1.0)],
        reached={2: "c/jane#0"},
    )
    ranking.propagate(first)
    assert ranking.seeds() == (1, 2)
    ranking.propagate(
        expansion(
            entities={"jane doe": (1, 1), "lisbon": (1, 1)},
            seed_mentions=[("jane doe", 1), ("lisbon", 2)],
            titles=[("jane doe", 2, 1.0), ("lisbon", 3, 1.0)],
            reached={3: "c/lisbon#0"},
        )
    )
    of_jane = 2.2 * 0.4 * 0.9**2
    assert scores(ranking) == pytest.approx({1: 0.9, 2: of_jane, 3: 2.2 * 0.4 * of_jane**2})


def test_what_earlier_answers_cited_has_a_head_start() -> None:
    ranking = Ranking((), NOTHING, None, {})
    ranking.add_context([PassageRef(2)])
    ranking.add(features({1: "c/a#0", 2: "c/b#0"}))
    ranking.begin()
    assert [int(entry.ref) for entry in ranking.top(2)] == [2, 1]


def test_there_are_four_seeds_at_most() -> None:
    assert len(by_links({}, [], {ref: f"c/{ref}#0" for ref in range(1, 9)}).seeds()) == 4


def test_nothing_is_ranked_without_candidates() -> None:
    ranking = Ranking(("engine",), NOTHING, None, {})
    ranking.begin()
    assert ranking.seeds() == ()
    assert ranking.top(5) == ()
