"""Chains of sentences over the titles that they name."""

import time

import pytest

from loremesh_agents.domain.answer import Source
from loremesh_agents.domain.chains import Evidence, Link, bare, read


def evidence(question: str, *texts: tuple[str, str]) -> Evidence:
    return Evidence(question, [read(Source(n, (), title, "", "", text)) for n, (title, text) in enumerate(texts, 1)])


def told(chain: tuple[Link, ...]) -> list[str]:
    return [link.text for link in chain]


@pytest.mark.parametrize(
    ("title", "name"), [("Mercury (planet)", "Mercury"), ("Mercury", "Mercury"), ("f(x) tour", "f(x) tour"), ("", "")]
)
def test_a_title_is_spoken_of_without_its_qualifier(title: str, name: str) -> None:
    assert bare(title) == name


def test_of_two_titles_that_a_sentence_names_the_one_beside_the_relation_is_followed() -> None:
    found = evidence(
        "When was the founder of Acme born?",
        ("Acme", "Acme was founded by Jane W. Doe and is led today by the chemist Max Roe."),
        ("Max Roe", "Max Roe (born 2 May 1971) is a chemist."),
        ("Jane Doe", "Jane Doe (born 4 May 1944) is a chemist."),
    ).best_chain(3)
    assert [link.source for link in found] == [0, 2]


def test_what_nothing_leads_to_is_left_out() -> None:
    found = evidence(
        "When was Acme of Leeds founded?",
        ("Acme", "Acme of Leeds was founded in May 1950."),
        ("Max Roe", "Max Roe (born 2 May 1971) was a weaver."),
    ).best_chain(3)
    assert told(found) == ["Acme of Leeds was founded in May 1950."]


def test_an_answer_may_be_in_one_sentence() -> None:
    found = evidence("When was Acme founded?", ("Acme", "Acme makes anvils. Acme was founded in 1950. It is old."))
    assert told(found.best_chain(3)) == ["Acme was founded in 1950."]


def test_a_chain_is_no_longer_than_asked_for() -> None:
    texts = [(f"Place {n}", f"Place {n} is ruled from Place {n + 1}.") for n in range(5)]
    for most in (1, 2, 3):
        assert 1 <= len(evidence("Who rules Place 0 and Place 4?", *texts).best_chain(most)) <= most


def test_the_nearest_sentence_holds_the_most_of_the_question() -> None:
    link, share = evidence("Who makes anvils?", ("Acme", "It is old. It makes anvils.")).nearest()
    assert link is not None
    assert link.text == "It makes anvils."
    assert share == pytest.approx(1)


def test_without_sentences_there_is_no_chain() -> None:
    empty = evidence("Who makes anvils?", ("Acme", " 1 2 3 "), ("", ""))
    assert empty.best_chain(3) == ()
    assert empty.nearest() == (None, 0.0)
    assert evidence("?", ("Acme", "Acme makes anvils.")).nearest() == (None, 0.0)


def test_long_questions_and_many_sources_take_little_time() -> None:
    words = [f"Word{n}" for n in range(20_000)]
    texts = [
        (f"Title {n}", ". ".join(" ".join(words[-m - 10 : -m]) for m in range(n + 1, n + 31)) + ".") for n in range(60)
    ]
    started = time.process_time()
    assert evidence(" ".join(words), *texts).best_chain(3)
    assert time.process_time() - started < 2
