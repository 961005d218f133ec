"""What the benchmark of failover counts as wrong, and what as a gap."""

import pytest
from loremesh.v1 import answer_pb2

from bench.failover import Answer


def answer(*deltas: tuple[int, list[int], str], resumed_at: tuple[int, ...] = ()) -> Answer:
    made = Answer()
    for sequence, token_ids, text in deltas:
        made.take(answer_pb2.TokenDelta(text=text, sequence=sequence, token_ids=token_ids, token_count=len(token_ids)))
    resumptions = [answer_pb2.Resumption(at_token=place, exact=True) for place in resumed_at]
    made.end(answer_pb2.Completion(finish_reason=answer_pb2.FINISH_REASON_LENGTH, resumptions=resumptions))
    return made


WHOLE = answer((0, [5, 6], "ab"), (2, [7], "c"), (3, [8], "d"))


@pytest.mark.parametrize(
    "other",
    [
        answer((0, [5, 6], "ab"), (3, [8], "d")),
        answer((0, [5, 6], "ab"), (1, [6, 7, 8], "bcd")),
        answer((0, [5, 6], "ab"), (2, [7, 7, 8], "ccd")),
        answer((0, [5, 6], "ab"), (2, [7], "c"), (3, [9], "e")),
        answer((0, [5, 6], "ab"), (2, [7], "c")),
    ],
    ids=["lost", "repeated under its number", "repeated", "another", "cut off"],
)
def test_a_token_that_is_lost_repeated_or_another_is_seen(other: Answer) -> None:
    assert not other.equals(WHOLE)


def test_how_tokens_come_together_makes_no_difference() -> None:
    assert answer((0, [5], "a"), (1, [6, 7, 8], "bcd"), resumed_at=(1,)).equals(WHOLE)


def test_a_gap_is_told_for_each_engine_that_went_on() -> None:
    assert WHOLE.gaps_ms == []
    gaps = answer((0, [5, 6], "ab"), (2, [7], "c"), (3, [8], "d"), resumed_at=(2, 3)).gaps_ms
    assert len(gaps) == 2
    assert min(gaps) >= 0
    # Before the first token there is nothing to measure from.
    assert answer((0, [5], "a"), resumed_at=(0, 1)).gaps_ms == []
