"""Writes that wait for their turn: a writer that was killed has its own until others may give it up."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import click

from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import Conflict

_Result = TypeVar("_Result")

_SECONDS = 120.0
"""More than twice the time after which a writer that was killed is given up."""
_PAUSE = 0.5
_QUIET = 3.0
_NOTICE = "Waiting: where another process writes, or was killed while it wrote, its turn may last for most of a minute."


async def in_turn(write: Callable[[Deadline], Awaitable[_Result]]) -> _Result:
    """What a write that may be repeated gives: it is made again while others write. A person is told if it takes longer than a few seconds.

    Raises:
        Conflict: Others wrote for two minutes.
    """
    deadline = Deadline.after(_SECONDS)
    notice = asyncio.get_running_loop().call_later(_QUIET, partial(click.echo, _NOTICE, err=True))
    try:
        while True:
            try:
                return await write(deadline)
            except Conflict as error:
                pause = error.retry_after or _PAUSE
                if deadline.remaining() <= pause:
                    raise
                await asyncio.sleep(pause)
    finally:
        notice.cancel()
