"""A generation that survives the generator that began it."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from loremesh_agents.domain.answer import Completion, Resumption, TokenDelta
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import InternalError, LoremeshError, PreconditionFailed, StreamIdle, Unavailable
from loremesh_agents.ports.language_model import Emitted, GenerationRequest, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart, Generator

_log = logging.getLogger(__name__)

_BROKEN = (Unavailable, StreamIdle, InternalError)
"""What says that a generator is gone or out of order, and nothing about the request."""


async def continued(
    generator: Generator, request: GenerationRequest, *, attempts: int, pause: float, deadline: Deadline
) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
    """As `Generator.generate`; where a generator breaks off, another one goes on from what has come.

    Args:
        generator: Several behind one address, of which each call may reach another.
        request: What to write.
        attempts: Calls at the most.
        pause: Seconds before the second call; twice as many before each further one.
        deadline: When the answer must be there.

    Raises:
        LoremeshError: What the last generator raised, or the first one where the generation is tied to it (`Emitted.tied_by`).
    """
    emitted = Emitted(request)
    start: GenerationStart | None = None
    earlier: list[Resumption] = []
    failure: LoremeshError | None = None
    for left in reversed(range(attempts)):
        resumed = emitted.resumption if failure is not None else None
        try:
            rest = emitted.rest(start.model_fingerprint) if start is not None else request
            async with aclosing(generator.generate(rest, deadline=deadline)) as events:
                async for event in events:
                    if isinstance(event, Completion):
                        yield replace(event, resumptions=(*earlier, *event.resumptions))
                        return
                    if isinstance(event, GenerationStart):
                        if start is None:
                            start = event
                            yield event
                        continue
                    emitted.add(event)
                    yield event
        except PreconditionFailed:
            # No other one can go on with it: what broke it is the reason to tell.
            if failure is None:
                raise
            raise failure from None
        except _BROKEN as error:
            if not left or emitted.tied_by or deadline.remaining() <= pause:
                raise
            failure = error
            _log.warning("a generator broke off (%s); another one goes on", error)
            if resumed is not None and resumed != emitted.resumption:
                # The next one tells where it went on itself, not where those before did.
                earlier.append(resumed)
        await asyncio.sleep(pause)
        pause *= 2
