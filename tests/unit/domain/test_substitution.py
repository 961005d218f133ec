"""Questions with another entity in them."""

from loremesh_agents.domain.linking import LinkedEntity
from loremesh_agents.domain.substitution import substituted

QUESTION = "Who is the mother of the director of Film X?"
FILM = LinkedEntity("film x", 1.0, (QUESTION.index("Film X"), QUESTION.index("?")))


def test_the_name_takes_the_place_of_what_the_question_names() -> None:
    found = substituted(QUESTION, [FILM], ["Jane Doe"], most=5)
    assert found == ("Who is the mother of the director of Jane Doe?",)


def test_there_are_no_more_than_asked_for_and_the_likeliest_name_comes_first() -> None:
    other = LinkedEntity("director", 0.4, (QUESTION.index("director"), QUESTION.index(" of Film")))
    found = substituted(QUESTION, [FILM, other], ["Jane Doe", "John Roe"], most=3)
    assert len(found) == 3
    assert all("Jane Doe" in question for question in found[:2])
    assert "John Roe" in found[2]


def test_a_question_that_names_nothing_itself_is_followed_by_the_name() -> None:
    earlier = LinkedEntity("film x", 0.5)
    assert substituted("And who directed it?", [earlier], ["Film X"], most=5) == ("And who directed it? Film X",)
