"""Several engines that serve the same model, as one."""

import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TypeVar

from loremesh_agents.domain.answer import TokenDelta
from loremesh_agents.domain.circuit import Circuit
from loremesh_agents.domain.conversation import Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BackendUnavailable, LoremeshError, ModelNotFound
from loremesh_agents.ports.continuation import BROKEN, continued
from loremesh_agents.ports.language_model import (
    GenerationEnd,
    GenerationRequest,
    LanguageModel,
    Model,
    ToolCallPiece,
)

_log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

_BACKEND = "language model"
_CHARACTERS_A_TOKEN = 4
"""A rough figure: it only weighs engines against one another."""
_EXPECTED_TOKENS = 256
"""Of an answer whose request does not say."""
_SLACK = 4096
"""Tokens that the engine which knows the beginning of a prompt may have outstanding beyond the idlest one: about what it saves."""
_PAUSE = 0.05
_ATTEMPTS_AN_ENGINE = 2


class _Engine:
    def __init__(self, name: str, model: LanguageModel) -> None:
        self.name = name
        self.model = model
        self.circuit = Circuit()
        self.outstanding = 0


class EnginePool:
    """See `ports.language_model.LanguageModel`.

    A generation goes to the engine that is likely to know the beginning of its prompt already (rendezvous hashing: Thaler and Ravishankar, "A
    name-based mapping scheme for rendezvous", 1996), unless that has much more to write than the idlest one. Where an engine breaks off, another one goes
    on from the last token. An engine that fails again and again is left alone for a while.

    Args:
        engines: By their names in logs.
    """

    def __init__(self, engines: Mapping[str, LanguageModel]) -> None:
        self._engines = [_Engine(name, model) for name, model in engines.items()]

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """See the port: those of the first engine that answers."""
        return await self._first(lambda model: model.models(deadline=deadline))

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """See the port."""
        return await self._first(lambda engine: engine.count_tokens(model, texts, deadline=deadline))

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """See the port."""
        model = _chosen(await self.models(deadline=deadline), request.options.model)
        broken: list[_Engine] = []
        events = continued(
            request,
            lambda rest: self._written(rest, model, broken, deadline),
            fingerprint=model.fingerprint,
            attempts=_ATTEMPTS_AN_ENGINE * len(self._engines),
            pause=_PAUSE,
            deadline=deadline,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def close(self) -> None:
        """See the port."""
        for engine in self._engines:
            await engine.model.close()

    async def _written(
        self, request: GenerationRequest, model: Model, broken: list[_Engine], deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """What one engine writes; it joins the broken ones if it breaks off."""
        engine = await self._engine_for(request, model, broken, deadline)
        waiting = _prompt_tokens(request) + (request.options.max_tokens or _EXPECTED_TOKENS)
        engine.outstanding += waiting
        engine.circuit.begin()
        try:
            async with aclosing(engine.model.generate(request, deadline=deadline)) as events:
                async for event in events:
                    if isinstance(event, TokenDelta):
                        engine.circuit.succeeded()
                        written = min(event.token_count, waiting)
                        waiting -= written
                        engine.outstanding -= written
                    elif isinstance(event, GenerationEnd):
                        engine.circuit.succeeded()
                    yield event
        except BROKEN:
            engine.circuit.failed()
            broken.append(engine)
            raise
        finally:
            engine.outstanding -= waiting
            engine.circuit.left()

    async def _engine_for(
        self, request: GenerationRequest, model: Model, broken: Sequence[_Engine], deadline: Deadline
    ) -> _Engine:
        """The engine to write with: one that serves exactly the model, and has not broken this generation if there is another."""
        failure: LoremeshError | None = None
        for engine in self._by_preference(request, broken):
            try:
                served = await engine.model.models(deadline=deadline)
            except BROKEN as error:
                engine.circuit.failed()
                failure = failure or error
                continue
            if model in served:
                return engine
            _log.warning(
                "the engine %s does not serve the model %s as others do: it is left out", engine.name, model.name
            )
        raise failure or BackendUnavailable(_BACKEND)

    def _by_preference(self, request: GenerationRequest, broken: Sequence[_Engine]) -> list[_Engine]:
        """The engines that may be asked, the best first."""
        allowed = [engine for engine in self._engines if engine.circuit.allows] or self._engines
        prefix = _prefix(request)
        least = min(engine.outstanding for engine in allowed)

        def rank(engine: _Engine) -> tuple[bool, int, bytes]:
            beyond = engine.outstanding if engine.outstanding > least + _SLACK else 0
            return engine in broken, beyond, _weight(prefix, engine.name)

        return sorted(allowed, key=rank)

    async def _first(self, ask: Callable[[LanguageModel], Awaitable[_Answer]]) -> _Answer:
        """What the first engine says that answers."""
        failure: LoremeshError | None = None
        for engine in sorted(self._engines, key=lambda engine: not engine.circuit.allows):
            try:
                return await ask(engine.model)
            except BROKEN as error:
                failure = failure or error
        raise failure or BackendUnavailable(_BACKEND)


def _chosen(models: Sequence[Model], name: str) -> Model:
    for model in models:
        if name in ("", model.name):
            return model
    raise ModelNotFound(name, [model.name for model in models])


def _prompt_tokens(request: GenerationRequest) -> int:
    return sum(len(message.text) for message in request.messages) // _CHARACTERS_A_TOKEN


def _prefix(request: GenerationRequest) -> str:
    """What many prompts begin with: what the system says, and how a conversation began."""
    system = "".join(message.text for message in request.messages if message.role is Role.SYSTEM)
    earlier = [message.text for message in request.messages[:-1] if message.role is Role.USER]
    return f"{request.options.model}\0{system}\0{earlier[0] if earlier else ''}"


def _weight(prefix: str, engine: str) -> bytes:
    return hashlib.blake2b(f"{engine}\0{prefix}".encode(), digest_size=8).digest()
