"""Questions that compare two subjects."""

import time

import pytest

from loremesh_agents.domain.comparison import compared

NAMES = ["Night Mail", "York", "Night Mail", "New York"]


def test_each_subject_is_asked_about_without_the_other() -> None:
    first, second = compared("Which is older, Night Mail or New York?", NAMES)
    assert (first.question, first.others) == ("Which is older, Night Mail or ?", {3})
    assert (second.question, second.others) == ("Which is older,  or New York?", {0, 2})


def test_a_qualifier_may_follow_a_subject() -> None:
    assert len(compared("Which is older, Night Mail (1936 film) or New York?", NAMES)) == 2


@pytest.mark.parametrize(
    "question",
    [
        "How old is Night Mail?",
        "Was Night Mail shot in New York?",
        "Which is older, Night Mails or New Yorkers?",
        "Which is older, he or she?",
        "",
        "Is İzmir older, Night Mail or New York?",
        f"Night Mail{' ' * 90}or New York",
    ],
)
def test_other_questions_compare_nothing(question: str) -> None:
    assert compared(question, NAMES) == ()


def test_names_without_letters_are_nobodys() -> None:
    assert compared("Which is older, Night Mail or New York?", ["", ""]) == ()


def test_hostile_questions_take_no_time() -> None:
    started = time.process_time()
    compared("Night Mail " + "- " * 100_000 + "or New York", NAMES)
    compared("Night Mail" * 20_000, NAMES)
    assert time.process_time() - started < 1
