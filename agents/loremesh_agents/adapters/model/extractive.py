"""`extractive://`: answers that are quotations of the sources. No language model, and it never says that it is one."""

import hashlib
import re
from collections.abc import AsyncGenerator, Sequence

from loremesh_agents.domain.answer import FinishReason, Resumption, TokenDelta, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import BudgetExhausted, ModelChanged, ModelNotFound, UnsupportedByModel
from loremesh_agents.domain.extractive import answer_text
from loremesh_agents.ports.language_model import (
    Capability,
    GenerationEnd,
    GenerationRequest,
    Model,
    SamplingOptions,
    ToolCallPiece,
)

NAME = "extractive"
_VERSION = "2"
_CONTEXT_TOKENS = 131_072
_TOKEN = re.compile(r"\s*\S+|\s+$")


class ExtractiveModel:
    """See `ports.language_model.LanguageModel`. A token is a word with the white space before it."""

    def __init__(self) -> None:
        fingerprint = hashlib.sha256(f"{NAME}/{_VERSION}".encode()).hexdigest()[:16]
        self._model = Model(NAME, _CONTEXT_TOKENS, "", fingerprint, frozenset({Capability.RESUME}))

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """See the port."""
        return (self._model,)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """See the port."""
        self._check_model(model)
        return tuple(len(_TOKEN.findall(text)) for text in texts)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """See the port."""
        self._check_model(request.options.model)
        _check_options(request)
        text, answers = answer_text(request.question, request.sources)
        text, stopped = _until_stop(text, request.options.stop)
        tokens = _TOKEN.findall(text)
        first = self._resume_at(request, tokens)
        limit = request.options.max_tokens or request.default_max_tokens or len(tokens)
        emitted = tokens[first:limit]
        for sequence, token in enumerate(emitted, first):
            if deadline.expired:
                raise BudgetExhausted("generator", "generation")
            yield TokenDelta(token, sequence)
        if limit < len(tokens):
            reason = FinishReason.LENGTH
        else:
            reason = FinishReason.STOP if answers or stopped else FinishReason.NO_ANSWER
        prompt = sum(len(_TOKEN.findall(message.text)) for message in request.messages)
        usage = Usage(prompt_tokens=prompt, completion_tokens=min(limit, len(tokens)))
        yield GenerationEnd(reason, usage, (Resumption(first, exact=True),) if request.resume is not None else ())

    async def close(self) -> None:
        """See the port."""

    def _check_model(self, name: str) -> None:
        if name not in ("", NAME):
            raise ModelNotFound(name, (NAME,))

    def _resume_at(self, request: GenerationRequest, tokens: Sequence[str]) -> int:
        resume = request.resume
        if resume is None:
            return 0
        if resume.model_fingerprint != self._model.fingerprint:
            raise ModelChanged(NAME, resume.model_fingerprint, self._model.fingerprint)
        text = ""
        for place, token in enumerate(tokens):
            if text == resume.text:
                return place
            text += token
        if text == resume.text:
            return len(tokens)
        raise UnsupportedByModel(NAME, "going on with a text that is not the beginning of its answer")


def _check_options(request: GenerationRequest) -> None:
    options = request.options
    refused = {
        "tools": bool(request.tools),
        "a JSON schema": bool(options.json_schema),
        "log-probabilities": bool(options.top_logprobs),
        "sampling": _samples(options),
        "penalties": bool(options.frequency_penalty or options.presence_penalty),
    }
    for feature, wanted in refused.items():
        if wanted:
            raise UnsupportedByModel(NAME, feature)


def _samples(options: SamplingOptions) -> bool:
    return bool(options.temperature) or (options.top_p is not None and options.top_p < 1)


def _until_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
