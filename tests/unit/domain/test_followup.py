"""Questions that leave out their subject."""

import pytest

from loremesh_agents.domain.conversation import Message, PassageReference, Role
from loremesh_agents.domain.followup import EarlierTurn, is_follow_up, names, standalone, turns

CITED = PassageReference("docs", "acme#0")
EARLIER = (EarlierTurn("Who leads Acme Corporation?", "Jane Doe leads it. [1]", ("Acme Corporation",), (CITED,)),)


@pytest.mark.parametrize(
    "question", ["and since when?", "Why?", "Where was she born?", "What about its history?", "when was it founded"]
)
def test_follow_ups_are_seen(question: str) -> None:
    assert is_follow_up(question)


@pytest.mark.parametrize(
    "question", ["Who leads Globex?", "What does `map` return?", "What is the capital city of the country?"]
)
def test_questions_of_their_own_are_left_alone(question: str) -> None:
    assert not is_follow_up(question)
    assert standalone(question, EARLIER).question == question


def test_a_follow_up_names_its_subjects() -> None:
    found = standalone("and since when?", EARLIER)
    assert found.question == "Who leads Acme Corporation, and since when? (Jane Doe)"
    assert found.context.entities == ("Acme Corporation", "Jane Doe")
    assert found.context.passages == (CITED,)


def test_a_pronoun_gets_its_subjects() -> None:
    assert standalone("Where was she born?", EARLIER).question == "Where was she born? (Acme Corporation, Jane Doe)"


def test_nothing_before_changes_nothing() -> None:
    assert standalone("and since when?", ()).question == "and since when?"


def test_turns_come_from_messages() -> None:
    messages = [
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, "Who leads Acme?"),
        Message(Role.ASSISTANT, "Jane Doe."),
        Message(Role.USER, "and since when?"),
        Message(Role.ASSISTANT, "2019."),
    ]
    found = turns(messages)
    assert [turn.answer for turn in found] == ["Jane Doe.", "2019."]
    assert found[1].question.startswith("Who leads Acme, and since when?")


def test_names_are_spans_quotes_and_identifiers() -> None:
    assert names('What does the "with" statement of Guido van Rossum do with `__exit__` and my_name?') == (
        "with",
        "Guido",
        "Rossum",
        "__exit__",
        "my_name",
    )
