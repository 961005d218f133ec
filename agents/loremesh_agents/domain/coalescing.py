"""Joins tokens that are ready together, so that they travel together."""

from collections.abc import Sequence
from typing import TypeVar, cast

from loremesh_agents.domain.answer import TokenDelta

_Item = TypeVar("_Item")

MOST_TOGETHER = 32
"""Tokens of one message at the most: enough that a message costs a token little, few enough that a page fills smoothly."""


def coalesced(items: Sequence[_Item], most: int) -> Sequence[_Item]:
    """The items, with deltas that follow one another joined up to `most` tokens."""
    if len(items) == 1:
        return items
    joined: list[_Item] = []
    run: list[TokenDelta] = []
    count = 0
    for item in items:
        if isinstance(item, TokenDelta):
            if run and count + item.token_count > most:
                joined.append(cast("_Item", _join(run, count)))
                run, count = [], 0
            run.append(item)
            count += item.token_count
        else:
            if run:
                joined.append(cast("_Item", _join(run, count)))
                run, count = [], 0
            joined.append(item)
    if run:
        joined.append(cast("_Item", _join(run, count)))
    return joined


def _join(run: list[TokenDelta], count: int) -> TokenDelta:
    if len(run) == 1:
        return run[0]
    return TokenDelta(
        text="".join([delta.text for delta in run]),
        sequence=run[0].sequence,
        token_count=count,
        token_ids=tuple([token for delta in run for token in delta.token_ids]),
        logprobs=tuple([entry for delta in run for entry in delta.logprobs]),
    )
