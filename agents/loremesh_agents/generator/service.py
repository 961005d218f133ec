"""Writes answers with whatever engine is behind the port."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from loremesh_agents.domain.answer import Completion, TokenDelta
from loremesh_agents.domain.coalescing import coalesced
from loremesh_agents.domain.conversation import Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import InvalidRequest, ModelChanged, ModelNotFound, UnsupportedByModel
from loremesh_agents.domain.message_pace import MessagePace
from loremesh_agents.domain.principal import Principal
from loremesh_agents.domain.read_ahead import ReadAhead
from loremesh_agents.generator.admission import Generation, TokenAdmission
from loremesh_agents.generator.settings import GeneratorSettings
from loremesh_agents.ports.language_model import (
    Capability,
    GenerationEnd,
    GenerationRequest,
    LanguageModel,
    Model,
    ToolCallPiece,
)
from loremesh_agents.ports.peers import GenerationStart

_BYTES_A_TOKEN = 4
_TOKENS_A_MESSAGE = 4
"""That a chat template adds, about."""


class GeneratorService:
    """Writes answers.

    Args:
        model: The engine.
        settings: Defaults.
        admission: Says when a generation may begin.
        pace: Says how far apart the messages of a stream are; None for one of its own.
    """

    def __init__(
        self,
        model: LanguageModel,
        settings: GeneratorSettings,
        admission: TokenAdmission,
        *,
        pace: MessagePace | None = None,
    ) -> None:
        self._model = model
        self._settings = settings
        self._admission = admission
        self._pace = pace or MessagePace()

    @property
    def settings(self) -> GeneratorSettings:
        """Defaults."""
        return self._settings

    async def generate(
        self, request: GenerationRequest, *, principal: Principal, deadline: Deadline
    ) -> AsyncGenerator[GenerationStart | TokenDelta | ToolCallPiece | Completion]:
        """Streams who writes, the tokens, and a completion. Closing it stops the engine.

        Raises:
            InvalidRequest: The last message is neither the user's nor a tool's.
            ModelNotFound: The engine does not serve the model.
            UnsupportedByModel: The model cannot do what is asked.
            ModelChanged: The generation to go on with was begun by another model.
            Overloaded: There is more to write than this one can wait for.
        """
        if request.messages[-1].role not in (Role.USER, Role.TOOL):
            raise InvalidRequest.of("messages", "the last message must be of role USER or TOOL")
        began = time.monotonic()
        model = await self._find(request.options.model, deadline)
        if request.tools and Capability.TOOLS not in model.capabilities:
            raise UnsupportedByModel(model.name, "tools")
        if request.resume is not None:
            if Capability.RESUME not in model.capabilities:
                raise UnsupportedByModel(model.name, "resuming a generation")
            if request.resume.model_fingerprint != model.fingerprint:
                raise ModelChanged(model.name, request.resume.model_fingerprint, model.fingerprint)
        request = replace(request, default_max_tokens=self._settings.default_max_tokens)
        prompt = estimated_prompt_tokens(request)
        longest = min(request.options.max_tokens or self._settings.default_max_tokens, model.context_tokens)
        async with self._admission.admitted(principal, prompt, longest, deadline=deadline) as admitted:
            yield GenerationStart(model.name, model.fingerprint)
            async with aclosing(self._written(request, model, began, admitted, deadline)) as events:
                async for event in events:
                    yield event

    async def _written(
        self, request: GenerationRequest, model: Model, began: float, admitted: Generation, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | Completion]:
        """What the engine writes."""
        timings: dict[str, float] = {}
        together = self._settings.tokens_together
        with self._pace.stream():
            async with ReadAhead(self._model.generate(request, deadline=deadline)) as written:
                # The first token waits for no other.
                while (events := await written.take(self._pace.pause if timings and together > 1 else 0.0)) is not None:
                    for event in coalesced(events, together):
                        if isinstance(event, GenerationEnd):
                            admitted.used = event.usage.prompt_tokens + event.usage.completion_tokens
                            yield Completion(
                                event.finish_reason,
                                event.usage,
                                {**timings, "total": time.monotonic() - began},
                                resumptions=event.resumptions,
                                model=model.name,
                                model_fingerprint=model.fingerprint,
                            )
                            return
                        if not timings:
                            timings["first_token"] = time.monotonic() - began
                        if isinstance(event, TokenDelta):
                            admitted.used += event.token_count
                        yield event
        raise RuntimeError("the engine ended without an end")

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """The models, the default first."""
        return await self._model.models(deadline=deadline)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """Tokens of each text."""
        return await self._model.count_tokens(model, texts, deadline=deadline)

    async def _find(self, name: str, deadline: Deadline) -> Model:
        models = await self._model.models(deadline=deadline)
        for model in models:
            if name in ("", model.name):
                return model
        raise ModelNotFound(name, [model.name for model in models])


def estimated_prompt_tokens(request: GenerationRequest) -> int:
    """Tokens of a prompt, about: to count them would cost nearly as much as to begin, and who asks is charged what the engine counts in the end."""
    texts = [message.text for message in request.messages]
    texts += [f"{tool.name}{tool.description}{tool.parameters}" for tool in request.tools]
    size = sum(len(text.encode()) for text in texts)
    return size // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE * len(texts)
