"""Words, mentions, sentences, passages."""

from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.domain.document import Document, Link, Section
from loremesh_agents.domain.lexicon import entity_key, search_terms
from loremesh_agents.domain.mentions import mentioned, occurs, question_spans, text_spans, title_candidates
from loremesh_agents.domain.passages import WHOLE_WORDS, cut
from loremesh_agents.domain.sentences import sentences


def test_keys_fold_case_accents_and_punctuation() -> None:
    assert entity_key("  Émile  Zola’s ") == "emile zola"
    assert entity_key("Jean-Paul Sartre") == "jean paul sartre"
    assert entity_key("object.__exit__") == "object.__exit__"
    assert entity_key("?!") == ""


def test_search_terms_take_compounds_apart() -> None:
    assert search_terms("Jean-Paul's object.__exit__()") == ["jean", "paul", "object", "__exit__", "exit"]
    assert search_terms("東京 Café") == ["東", "京", "cafe"]


def test_capitalised_spans_are_mentioned_without_titles() -> None:
    spans = text_spans("The director of The Lord of the Rings met Ada King in Rome.")
    assert {"lord of the rings", "ada king", "rome"} <= spans.capitalised
    assert "lord" not in spans.capitalised


def test_a_title_of_one_word_needs_to_be_written_like_a_name_alone() -> None:
    spans = text_spans("He saw Paris Hilton with a paris map, and __exit__ too.")
    assert not occurs("paris", spans)
    assert occurs("__exit__", spans)
    assert occurs("paris", text_spans("We love Paris."))


def test_titles_of_function_words_are_never_mentioned() -> None:
    assert not occurs("the", text_spans("The The the."))


@given(text=st.text(max_size=300), title=st.text(max_size=30))
def test_what_occurs_is_among_the_candidates(text: str, title: str) -> None:
    spans = text_spans(text)
    key = entity_key(title)
    if occurs(key, spans):
        assert key in set(title_candidates(spans))
        assert key in mentioned(spans, [key])


@given(question=st.text(max_size=200))
def test_spans_of_any_question_are_within_it(question: str) -> None:
    for span in question_spans(question):
        assert question[span.start : span.end] == span.text


def test_sentences_end_where_they_end() -> None:
    text = "Dr. J. Smith was born in the U.S. in 1.5 days. He calls object.__exit__(). Really? 東京です。次。"
    assert [sentence.text for sentence in sentences(text)] == [
        "Dr. J. Smith was born in the U.S. in 1.5 days.",
        "He calls object.__exit__().",
        "Really?",
        "東京です。",
        "次。",
    ]


@given(text=st.text(max_size=400))
def test_sentences_are_in_their_text_in_order(text: str) -> None:
    end = 0
    for sentence in sentences(text):
        assert sentence.start >= end
        assert text[sentence.start : sentence.end] == sentence.text
        end = sentence.end


def test_a_short_section_is_one_passage_and_headings_are_never_crossed() -> None:
    document = Document("d", "Guide", (Section("Intro text."), Section("Part text.", ("Part",))))
    first, second = cut(document)
    assert (first.text, second.text) == ("Intro text.", "Part text.")
    assert [title.key for title in second.titles if title.weight == 1] == ["part"]
    assert first.titles[0].key == "guide"


def test_links_go_with_their_anchors() -> None:
    text = "word " * (WHOLE_WORDS + 50) + "\n\nSee the manual here."
    document = Document("d", "T", (Section(text, (), (Link("m", "the manual"), Link("x", ""))),))
    passages = cut(document)
    assert [link.target for link in passages[0].links] == ["x"]
    assert [link.target for link in passages[-1].links] == ["m"]


@given(texts=st.lists(st.text(max_size=3000), max_size=4))
def test_byte_ranges_are_those_of_the_document(texts: list[str]) -> None:
    sections = tuple(Section(text.encode(errors="ignore").decode()) for text in texts)
    whole = "\n\n".join(section.text for section in sections).encode()
    for passage in cut(Document("d", "T", sections)):
        assert whole[passage.start_byte : passage.end_byte].decode() == passage.text
