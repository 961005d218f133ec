"""Answers composed of the sources' sentences."""

import pytest

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.extractive import NO_ANSWER, NO_EVIDENCE, answer_text, compose

SOURCES = (
    Source(1, ("E1",), "Acme", "", "", "Acme makes anvils. Jane Doe has led Acme since 2019. Its motto is quality."),
    Source(2, ("E2",), "Jane Doe", "", "", "Jane Doe is a chemist. She was born in Lisbon in 1975."),
)


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


def test_what_is_hardly_touched_is_not_called_an_answer() -> None:
    text, answers = answer_text(
        "Which motto did the emperor of the northern islands carve over his palace gate?", SOURCES
    )
    assert not answers
    assert text.startswith(NO_ANSWER)


def sources(*texts: tuple[str, str]) -> list[Source]:
    return [Source(number, (f"E{number}",), title, "", "", text) for number, (title, text) in enumerate(texts, 1)]


FILM = (
    "Harbour Lights",
    "Harbour Lights is a 1931 drama film directed by Ida Brandt and starring Tom Hale. It was a success.",
)
DIRECTOR = (
    "Ida Brandt",
    "Ida Brandt (4 May 1890 – 2 June 1951) was a Danish film director. She was the daughter of Olga Brandt.",
)
ACTOR = ("Tom Hale", "Tom Hale (8 March 1902 – 1 July 1980) was an actor. He was the son of Mary Hale.")
OTHER = ("Night Mail (film)", "Night Mail is a 1938 film directed by Leo Stone. It was shot in Leeds.")
OTHER_DIRECTOR = (
    "Leo Stone",
    "Leo Stone (born 9 April 1899 in York) was a film director. He died of a stroke in Bath in 1960.",
)
ALL = sources(FILM, ACTOR, DIRECTOR, OTHER, OTHER_DIRECTOR)


@pytest.mark.parametrize(
    ("question", "quoted"),
    [
        ("When was the director of Harbour Lights born?", "(4 May 1890"),
        ("Who is the mother of the director of film Harbour Lights?", "daughter of Olga Brandt. [3]"),
        ("What nationality is the director of Harbour Lights?", "a Danish film director. [3]"),
        ("Where was the director of Night Mail born?", "in York)"),
        ("Where did the director of Night Mail die?", "in Bath in 1960. [5]"),
        ("Why did the director of Night Mail die?", "of a stroke"),
    ],
)
def test_an_answer_in_the_passage_that_another_leads_to_is_quoted_beside_it(question: str, quoted: str) -> None:
    text, answers = answer_text(question, ALL)
    assert answers
    assert quoted in text
    assert "directed by" in text
    assert "Mary Hale" not in text


def test_of_a_comparison_both_subjects_are_told_about_in_the_order_of_the_question() -> None:
    composition = compose("Which film has the director who was born earlier, Night Mail or Harbour Lights?", ALL)
    assert composition.answers
    assert [statement.source for statement in composition.statements] == [4, 5, 1, 3]


def test_a_relation_of_two_steps_is_followed_twice() -> None:
    found = sources(
        ("Ann Moor", "Ann Moor was a weaver. She was the daughter of Ben Moor."),
        ("Ben Moor", "Ben Moor was a smith. He was the son of Carl Moor."),
        ("Dora Moor", "Dora Moor was the daughter of Emil Moor."),
    )
    text, _ = answer_text("Who is the grandfather of Ann Moor?", found)
    assert "son of Carl Moor. [2]" in text
    assert "Emil" not in text


def test_the_same_sources_give_the_same_answer() -> None:
    question = "Who is the mother of the director of film Harbour Lights?"
    assert len({answer_text(question, ALL) for _ in range(3)}) == 1
