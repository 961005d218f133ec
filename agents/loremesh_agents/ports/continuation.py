"""A generation that survives the engine, or the generator, that began it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from loremesh_agents.domain.answer import Completion, Resumption, TokenDelta
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import InternalError, LoremeshError, PreconditionFailed, StreamIdle, Unavailable
from loremesh_agents.ports.language_model import Emitted, GenerationEnd, GenerationRequest, ToolCallPiece
from loremesh_agents.ports.peers import GenerationStart

_log = logging.getLogger(__name__)
_Event = TypeVar("_Event", bound=GenerationStart | TokenDelta | ToolCallPiece | GenerationEnd | Completion)

BROKEN = (Unavailable, StreamIdle, InternalError)
"""What says that a writer is gone or out of order, and nothing about the request."""


async def continued(
    request: GenerationRequest,
    generate: Callable[[GenerationRequest], AsyncGenerator[_Event]],
    *,
    fingerprint: str = "",
    attempts: int,
    pause: float,
    deadline: Deadline,
) -> AsyncGenerator[_Event]:
    """One generation, written by as many as it takes: where one breaks off, another goes on from what has come.

    Args:
        request: What to write.
        generate: Begins or goes on, each time with whoever is there.
        fingerprint: Of the model; taken from the first `GenerationStart` where it is not known before.
        attempts: Calls at the most.
        pause: Seconds before the second call; twice as many before each further one.
        deadline: When the answer must be there.

    Yields:
        What the writers give, without the starts of all but the first; the last event names where others went on.

    Raises:
        LoremeshError: What the last writer raised, or the first one where the generation is tied to it (`Emitted.tied_by`).
    """
    emitted = Emitted(request)
    started = False
    earlier: list[Resumption] = []
    failure: LoremeshError | None = None
    for left in reversed(range(attempts)):
        resumed = emitted.resumption if failure is not None else None
        try:
            async with aclosing(generate(emitted.rest(fingerprint) if failure is not None else request)) as events:
                async for event in events:
                    if isinstance(event, Completion | GenerationEnd):
                        yield replace(event, resumptions=(*earlier, *event.resumptions))
                        return
                    if isinstance(event, GenerationStart):
                        if started:
                            continue
                        started = True
                        fingerprint = event.model_fingerprint
                    else:
                        emitted.add(event)
                    yield event
        except PreconditionFailed:
            # Nobody else can go on with it: what broke it is the reason to tell.
            if failure is None:
                raise
            raise failure from None
        except BROKEN as error:
            if not left or emitted.tied_by or deadline.remaining() <= pause:
                raise
            failure = error
            _log.warning("a generation broke off (%s); another one goes on", error)
            if resumed is not None and resumed != emitted.resumption:
                # The next one tells where it went on itself, not where those before did.
                earlier.append(resumed)
        await asyncio.sleep(pause)
        pause *= 2
