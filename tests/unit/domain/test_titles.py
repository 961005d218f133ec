"""The names that a passage bears."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.domain.lexicon import entity_key
from loremesh_agents.domain.titles import ALIAS, EXACT, LATER, titles


def weights(title: str, *, first: bool = True, opens_section: bool = True, **names: list[str]) -> dict[str, float]:
    found = titles(title, first=first, opens_section=opens_section, **names)
    return {entry.key: entry.weight for entry in found}


def test_the_first_passage_bears_the_title_of_its_document() -> None:
    assert weights("Ada Lovelace") == {"ada lovelace": EXACT}


def test_a_title_is_an_alias_without_what_tells_it_from_others() -> None:
    assert weights("Mercury (planet)") == {"mercury planet": EXACT, "mercury": ALIAS}


def test_an_acronym_is_no_dotted_name() -> None:
    assert weights("A.P.E.X.") == {"a.p.e.x": EXACT}


def test_a_title_is_an_alias_without_its_article() -> None:
    assert weights("The Beatles") == {"the beatles": EXACT, "beatles": ALIAS}


def test_later_passages_bear_the_title_with_less_weight() -> None:
    assert weights("Mercury (planet)", first=False) == {"mercury planet": LATER, "mercury": LATER}


def test_only_the_first_passage_bears_the_aliases() -> None:
    assert weights("Ada Lovelace", aliases=["Countess of Lovelace"])["countess of lovelace"] == ALIAS
    assert "countess of lovelace" not in weights("Ada Lovelace", aliases=["Countess of Lovelace"], first=False)


def test_an_alias_that_is_the_title_takes_nothing_from_it() -> None:
    assert weights("Ada Lovelace", aliases=["ADA LOVELACE"]) == {"ada lovelace": EXACT}


def test_the_first_passage_of_a_section_bears_its_heading_alone() -> None:
    found = weights("Data model", first=False, headings=["Objects", "Special names"])
    assert found == {"data model": LATER, "special names": EXACT}


def test_a_later_passage_of_a_section_does_not_bear_its_heading() -> None:
    assert weights("Data model", first=False, opens_section=False, headings=["Special names"]) == {"data model": LATER}


@pytest.mark.parametrize(
    ("heading", "keys"),
    [
        ("object.__exit__(self, exc_type, exc_value, traceback)", {"object.__exit__": EXACT, "__exit__": ALIAS}),
        ("class collections.OrderedDict([items])", {"collections.ordereddict": EXACT, "ordereddict": ALIAS}),
        ("__slots__", {"__slots__": EXACT}),
        ("async def fetch(url)", {"fetch": EXACT}),
    ],
)
def test_a_signature_names_what_it_defines(heading: str, keys: dict[str, float]) -> None:
    found = weights("Reference", first=False, headings=[heading])
    assert {key: weight for key, weight in found.items() if key != "reference"} == keys


@pytest.mark.parametrize(
    ("heading", "key"),
    [
        ('The "with" statement', "with statement"),
        ("8.5. The `with` statement", "with statement"),
        ("3.1 Objects", "objects"),
    ],
)
def test_quotes_and_numbers_of_headings_are_no_part_of_the_name(heading: str, key: str) -> None:
    assert key in weights("Reference", first=False, headings=[heading])


@pytest.mark.parametrize("title", ["...", "—", "!?", "The", "of the"])
def test_a_title_without_a_word_to_know_it_by_gives_no_name(title: str) -> None:
    assert weights(title) == {}


@pytest.mark.parametrize("title", ["東京", "Москва (город)", "القاهرة", "Ελλάδα"])
def test_titles_of_any_script_are_names(title: str) -> None:
    assert entity_key(title) in weights(title)


@given(
    title=st.text(max_size=60),
    aliases=st.lists(st.text(max_size=30), max_size=3),
    headings=st.lists(st.text(max_size=40), max_size=3),
    first=st.booleans(),
    opens_section=st.booleans(),
)
def test_every_name_has_its_key_once_and_a_weight(
    title: str, aliases: list[str], headings: list[str], first: bool, opens_section: bool
) -> None:
    found = titles(title, aliases=aliases, headings=headings, first=first, opens_section=opens_section)
    assert len({entry.key for entry in found}) == len(found)
    for entry in found:
        assert entry.key == entity_key(entry.name) != ""
        assert 0 < entry.weight <= 1
