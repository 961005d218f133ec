"""Where texts name things."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.domain.mentions import (
    LONGEST_TITLE,
    is_matchable,
    mentioned,
    occurs,
    question_spans,
    text_spans,
    title_candidates,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ada Lovelace met Charles Babbage.", {"ada lovelace", "charles babbage"}),
        ("He wrote the Bank of England.", {"bank of england"}),
        ("we know Ludwig van Beethoven", {"ludwig", "beethoven"}),
        ("They met near London. Paris is far.", {"london", "paris"}),
        ("all in lower case", set[str]()),
        ("The", set[str]()),
    ],
)
def test_capitalised_spans_are_names(text: str, names: set[str]) -> None:
    assert text_spans(text).capitalised == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The Beatles played.", {"beatles", "the beatles"}),
        ("In Cold Blood is a book.", {"cold blood", "in cold blood"}),
    ],
)
def test_a_name_led_by_a_function_word_is_known_with_and_without_it(text: str, names: set[str]) -> None:
    assert text_spans(text).capitalised == names


def test_a_longer_title_occurs_in_lower_case_text() -> None:
    spans = text_spans("they used the quiet protocol here")
    assert occurs("quiet protocol", spans)
    assert not occurs("protocol quiet", spans)
    assert not occurs("quiet protocols", spans)


def test_a_title_of_one_word_needs_a_capital_or_an_identifier() -> None:
    assert not occurs("protocol", text_spans("the quiet protocol"))
    assert occurs("protocol", text_spans("the Protocol"))
    assert occurs("__exit__", text_spans("call __exit__ first"))
    assert not occurs("exit", text_spans("call __exit__ first"))


def test_function_words_alone_are_never_matched() -> None:
    assert not is_matchable("the")
    assert not is_matchable("the who")
    assert not is_matchable("")
    assert is_matchable("the beatles")
    assert not is_matchable(" ".join(["word"] * (LONGEST_TITLE + 1)))
    assert not occurs("the who", text_spans("The Who, the who"))


def test_titles_add_to_capitalised_names() -> None:
    spans = text_spans("Ada used the quiet protocol.")
    assert mentioned(spans, ["quiet protocol", "loud protocol"]) == {"ada", "quiet protocol"}


_sentence = st.lists(
    st.sampled_from(
        ["Ada", "London", "Bridge", "of", "the", "The", "quiet", "protocol", "__exit__", "x.y", "Jean-Paul"]
    ),
    max_size=12,
).map(" ".join)


@given(_sentence, _sentence)
def test_a_title_occurs_exactly_where_it_is_a_candidate(text: str, title: str) -> None:
    spans = text_spans(text)
    for key in {*title_candidates(spans), " ".join(text_spans(title).words)}:
        assert occurs(key, spans) == (is_matchable(key) and key in set(title_candidates(spans)))


@given(_sentence, st.lists(_sentence, max_size=4), _sentence)
def test_one_more_title_leaves_other_mentions_alone(text: str, titles: list[str], more: str) -> None:
    spans = text_spans(text)
    keys = [" ".join(text_spans(title).words) for title in titles]
    added = " ".join(text_spans(more).words)
    assert mentioned(spans, [*keys, added]) - {added} == mentioned(spans, keys) - {added}


def test_a_question_gives_its_names_and_its_runs_of_words() -> None:
    question = "Who founded the Bank of England with the quiet protocol?"
    spans = {span.key: span for span in question_spans(question)}
    assert spans["bank of england"].capitalised
    assert not spans["quiet protocol"].capitalised
    assert spans["quiet protocol"].nameable
    assert not spans["protocol"].nameable
    assert "the" not in spans
    assert all(question[span.start : span.end] == span.text for span in spans.values())


def test_longer_spans_of_a_question_come_first() -> None:
    sizes = [span.words for span in question_spans("Which river flows through the city of Paris in France")]
    assert sizes == sorted(sizes, reverse=True)
