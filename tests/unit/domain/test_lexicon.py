"""Words, search terms and the keys of entities."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.domain.lexicon import FUNCTION_WORDS, entity_key, search_terms, words


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("London Bridge", ["london", "bridge"]),
        ("Élan vital, naïve", ["elan", "vital", "naive"]),
        ("Jean-Paul's book", ["jean", "paul", "book"]),
        ("ΑΘΗΝΑ Москва", ["αθηνα", "москва"]),
        ("日本 tea", ["日", "本", "tea"]),
        ("", []),
        ("?! ...", []),
    ],
)
def test_terms_are_folded_words(text: str, terms: list[str]) -> None:
    assert search_terms(text) == terms


def test_an_identifier_is_found_whole_and_by_its_parts() -> None:
    assert search_terms("__exit__") == ["__exit__", "exit"]
    assert set(search_terms("object.__exit__")) == {"object", "__exit__", "exit"}
    assert set(search_terms("max_page_count")) == {"max_page_count", "max", "page", "count"}


@pytest.mark.parametrize("text", ["José Ángel", "Angélique", "Ångström's law"])
def test_decomposed_accents_change_nothing(text: str) -> None:
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert search_terms(decomposed) == search_terms(text)
    assert entity_key(decomposed) == entity_key(text)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("  The Analytical   Engine ", "the analytical engine"),
        ("Gödel, Escher, Bach", "godel escher bach"),
        ("Charles Babbage's", "charles babbage"),
        ("O'Neil", "oneil"),
        ("Jean-Paul", "jean paul"),
        ("__exit__", "__exit__"),
        ("object.__exit__", "object.__exit__"),
        ("¿?", ""),
    ],
)
def test_a_key_is_the_folded_name(name: str, key: str) -> None:
    assert entity_key(name) == key


@given(st.text())
def test_words_lie_in_the_text_in_order(text: str) -> None:
    end = 0
    for word in words(text):
        assert end <= word.start < word.end
        assert text[word.start : word.end] == word.text
        end = word.end


@given(st.text(alphabet=st.characters(max_codepoint=0x2FF)))
def test_terms_and_keys_hold_no_spaces_to_spare(text: str) -> None:
    assert all(term and " " not in term for term in search_terms(text))
    key = entity_key(text)
    assert key == " ".join(key.split())


def test_function_words_are_keys() -> None:
    assert all(entity_key(word) == word for word in FUNCTION_WORDS)
