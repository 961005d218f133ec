"""Answers composed of the sources' sentences."""

import pytest

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.extractive import NO_EVIDENCE, Asked, answer_text, asked_for

SOURCES = (
    Source(1, ("E1",), "Acme", "", "", "Acme makes anvils. Jane Doe has led Acme since 2019. Its motto is quality."),
    Source(2, ("E2",), "Jane Doe", "", "", "Jane Doe is a chemist. She was born in Lisbon in 1975."),
)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who leads it?", Asked.PERSON),
        ("Since when?", Asked.TIME),
        ("Where was the person who led it born?", Asked.PERSON),
        ("How many are there?", Asked.NUMBER),
        ("In what country is it?", Asked.PLACE),
        ("Is it so?", Asked.ANYTHING),
    ],
)
def test_what_is_asked_for(question: str, kind: Asked) -> None:
    assert asked_for(question) is kind


@pytest.mark.parametrize(
    ("question", "quoted"),
    [
        ("Who leads Acme?", "Jane Doe has led Acme since 2019. [1]"),
        ("What does Acme make?", "Acme makes anvils. [1]"),
        ("When was Jane Doe born?", "She was born in Lisbon in 1975. [2]"),
    ],
)
def test_the_sentence_that_answers_is_quoted_with_its_source(question: str, quoted: str) -> None:
    text, answers = answer_text(question, SOURCES)
    assert answers
    assert quoted in text


def test_what_is_not_answered_is_said() -> None:
    text, answers = answer_text("What is the boiling point of helium?", SOURCES)
    assert not answers
    assert text == NO_EVIDENCE
    assert answer_text("Who?", ()) == (NO_EVIDENCE, False)
