"""Which entities a question names."""

from loremesh_agents.domain.linking import (
    EARLIER_TURN,
    IN_GAZETTEER,
    KNOWN,
    KNOWN_AND_COMMON,
    LOWER_CASE,
    candidate_spans,
    link,
)
from loremesh_agents.domain.retrieval import EntityStatistics


def known(**entities: tuple[int, int]) -> dict[str, EntityStatistics]:
    """Entities by key (underscores for spaces) with their mentions and titles."""
    keys = {name.replace("_", " "): counts for name, counts in entities.items()}
    return {key: EntityStatistics(key, key, *counts) for key, counts in keys.items()}


def linked(question: str, context: tuple[str, ...] = (), **entities: tuple[int, int]) -> dict[str, float]:
    found = link(candidate_spans(question), known(**entities), context)
    return {key: entity.confidence for key, entity in found.items()}


def test_a_title_in_the_question_is_certain() -> None:
    assert linked("Where was Ada Lovelace born?", ada_lovelace=(3, 1)) == {"ada lovelace": IN_GAZETTEER}


def test_a_name_that_texts_mention_is_less_certain() -> None:
    assert linked("Where was Ada Lovelace born?", ada_lovelace=(49, 0)) == {"ada lovelace": KNOWN}


def test_a_name_that_many_texts_mention_says_little() -> None:
    assert linked("Where was Ada Lovelace born?", ada_lovelace=(50, 0)) == {"ada lovelace": KNOWN_AND_COMMON}


def test_a_title_in_lower_case_is_less_certain() -> None:
    assert linked("who designed the analytical engine?", analytical_engine=(3, 1)) == {"analytical engine": LOWER_CASE}


def test_words_in_lower_case_that_no_passage_bears_are_not_linked() -> None:
    assert linked("who designed the analytical engine?", analytical_engine=(3, 0)) == {}


def test_accents_and_case_do_not_matter() -> None:
    assert linked("Who wrote about MÉLIÈS?", melies=(1, 1)) == {"melies": IN_GAZETTEER}


def test_the_longest_name_wins() -> None:
    found = linked("Who was Henry of Navarre?", henry_of_navarre=(2, 1), henry=(9, 1), navarre=(9, 1))
    assert found == {"henry of navarre": IN_GAZETTEER}


def test_a_part_of_a_name_is_linked_where_the_whole_is_unknown() -> None:
    assert linked("Who was Henry of Navarre?", navarre=(9, 1)) == {"navarre": IN_GAZETTEER}


def test_a_name_that_comes_twice_is_linked_once() -> None:
    assert linked("Is Paris in Texas larger than Paris in France?", paris=(9, 2)) == {"paris": IN_GAZETTEER}


def test_an_entity_of_an_earlier_turn_counts_half() -> None:
    found = link(candidate_spans("When was she born?"), known(ada_lovelace=(3, 1)), ("Ada Lovelace", "Nobody Known"))
    assert [(entity.key, entity.confidence, entity.place is None) for entity in found.values()] == [
        ("ada lovelace", EARLIER_TURN, True)
    ]


def test_an_entity_that_the_question_names_itself_is_not_of_an_earlier_turn() -> None:
    found = link(candidate_spans("When was Ada Lovelace born?"), known(ada_lovelace=(3, 1)), ("Ada Lovelace",))
    assert found["ada lovelace"].place is not None
    assert found["ada lovelace"].confidence == IN_GAZETTEER


def test_a_very_long_question_is_looked_up_in_part() -> None:
    spans = candidate_spans("Ada Lovelace met Charles Babbage. " * 3000)
    assert len(spans) <= 2048
