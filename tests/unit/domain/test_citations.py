"""Markers of a streamed answer."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from loremesh_agents.domain.answer import Citation
from loremesh_agents.domain.citations import CitationScanner

SOURCES = {1: ("E1",), 2: ("E2", "E3"), 10: ("E9",)}
ANSWER = "Ärger is German. It means trouble [1]. So do both [2][1] and, “later”, this one. [10, 1] Nothing [7] here [x] and [ 1]."


def cited(*pieces: str) -> list[Citation]:
    scanner = CitationScanner(SOURCES)
    return [citation for piece in pieces for citation in scanner.feed(piece)]


def statement(answer: str, citation: Citation) -> str:
    return answer.encode()[citation.start_byte : citation.end_byte].decode()


def test_a_citation_covers_the_statement_before_its_marker() -> None:
    found = [(citation.evidence_id, citation.number, statement(ANSWER, citation)) for citation in cited(ANSWER)]
    assert found == [
        ("E1", 1, "It means trouble"),
        ("E2", 2, "So do both"),
        ("E3", 2, "So do both"),
        ("E1", 1, "So do both"),
        ("E9", 10, "and, “later”, this one."),
        ("E1", 1, "and, “later”, this one."),
    ]


@given(cuts=st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_the_pieces_do_not_matter(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(ANSWER)]
    pieces = [ANSWER[start:end] for start, end in pairwise(places)]
    assert cited(*pieces) == cited(ANSWER)


def test_a_long_answer_is_not_kept_whole() -> None:
    scanner = CitationScanner(SOURCES)
    for _ in range(10_000):
        assert scanner.feed("é word and more. ") == []
    (citation,) = scanner.feed("The end [1]")
    whole = "é word and more. " * 10_000 + "The end [1]"
    assert statement(whole, citation) == "The end"
    assert sum(map(len, scanner._pieces)) < 40_000


def test_a_marker_at_the_very_beginning_cites_nothing() -> None:
    assert cited("[1] Then text.") == []


def test_an_initial_ends_no_statement() -> None:
    text = "It was directed by Alfred E. Green. [1] Green was born in Perris, Calif. in 1889. [1]"
    found = CitationScanner({1: ("E1",)}).feed(text)
    cited = [text.encode()[citation.start_byte : citation.end_byte].decode() for citation in found]
    assert cited == ["It was directed by Alfred E. Green.", "Green was born in Perris, Calif. in 1889."]
