"""Tokens that are ready together."""

from loremesh_agents.domain.answer import Completion, FinishReason, TokenDelta
from loremesh_agents.domain.coalescing import coalesced


def test_deltas_are_joined_up_to_the_most() -> None:
    end = Completion(FinishReason.STOP)
    joined = coalesced([*(TokenDelta(f"{n} ", n, 1, (n,)) for n in range(40)), end], 32)
    assert [delta.token_count for delta in joined[:-1] if isinstance(delta, TokenDelta)] == [32, 8]
    assert joined[1] == TokenDelta("".join(f"{n} " for n in range(32, 40)), 32, 8, tuple(range(32, 40)))
    assert joined[-1] is end


def test_what_stands_between_deltas_keeps_its_place() -> None:
    first, second = TokenDelta("a", 0), TokenDelta("b", 1)
    assert list(coalesced([first, "event", second], 32)) == [first, "event", second]


def test_a_delta_that_is_larger_than_the_most_stays_whole() -> None:
    whole = TokenDelta("a b c", 0, 3)
    assert list(coalesced([whole, TokenDelta("d", 3)], 2)) == [whole, TokenDelta("d", 3)]
