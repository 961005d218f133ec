"""The names in a first sentence that defines something."""

import pytest

from loremesh_agents.domain.definitions import defined


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ada Lovelace (10 December 1815 - 27 November 1852) was an English mathematician.", ["Ada Lovelace"]),
        ("The Tower is a castle. London was old.", ["The Tower"]),
        (
            "John Ernest, Duke of Saxe-Eisenach( Gotha, 9 July 1566) was a duke",
            ["John Ernest, Duke of Saxe-Eisenach", "John Ernest"],
        ),
        ("Julia, also known as Julia Major, was the elder.", ["Julia", "Julia Major"]),
        ("Dr. Who and the Daleks is a 1965 film", ["Dr. Who and the Daleks", "Who and the Daleks"]),
        ("J. R. R. Tolkien was a writer", ["J. R. R. Tolkien"]),
        ("Captain Humberto Viola was an officer", ["Captain Humberto Viola", "Humberto Viola"]),
        ("Beeban Tania Kidron is a director", ["Beeban Tania Kidron", "Beeban Kidron"]),
        ('"My Dear Angel" is a film', ['"My Dear Angel"']),
        ("A decorator is a function that returns another function.", ["A decorator"]),
    ],
)
def test_the_subject_of_the_first_sentence_is_what_it_defines(text: str, names: list[str]) -> None:
    assert list(dict.fromkeys(defined(text)))[: len(names)] == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "This was bad.",
        "In 1900 there were three of them.",
        "He said that it was late.",
        "The film was released in 1960.",
        "Nothing here has a verb of that kind",
        "A heading\n\nis no sentence",
        "a " * 500 + "is long",
    ],
)
def test_other_beginnings_define_nothing(text: str) -> None:
    assert list(defined(text)) == []


def test_an_endless_beginning_takes_no_time() -> None:
    assert list(defined("A. " * 100_000)) == []
    assert list(defined("(" * 100_000 + " is")) == []
