"""A language model behind an engine that knows token ids alone."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from loremesh_agents.adapters.model.chat_template import TemplateRefused
from loremesh_agents.adapters.model.chat_tokenizer import (
    MOST_ARCHIVE_BYTES,
    ChatTokenizer,
    TokenizerRefused,
    read_archive,
    read_folder,
)
from loremesh_agents.adapters.model.detokenizer import Detokenizer, Piece, StopTexts
from loremesh_agents.adapters.model.requests import check_request, check_resumed_ids, resumptions, token_limit
from loremesh_agents.domain.answer import FinishReason, TokenDelta, TokenLogprob, TokenLogprobs, Usage
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.domain.errors import (
    BackendUnavailable,
    BudgetExhausted,
    LoremeshError,
    ModelNotFound,
    UnsupportedByModel,
)
from loremesh_agents.ports.language_model import (
    Capability,
    GenerationEnd,
    GenerationRequest,
    Model,
    SamplingOptions,
    ToolCallPiece,
)

_log = logging.getLogger(__name__)

_MOST_ASKING = 2.0
_THREADS = 2
_AT_ONCE = 2048
"""Characters of a conversation up to which it becomes a prompt in the event loop, in a fraction of a millisecond: a thread would wait longer for the interpreter."""
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What an engine says of the model that it serves.

    Attributes:
        name: Its name.
        context_tokens: Most tokens of prompt and answer together.
        vocabulary: How many ids it knows; 0 where it does not say.
        identity: What tells it from other models of that name.
        end_ids: Ids of the tokens that end an answer.
        capabilities: What it can be asked to do.
    """

    name: str
    context_tokens: int
    vocabulary: int
    identity: tuple[str, ...]
    end_ids: frozenset[int]
    capabilities: frozenset[Capability]


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What an engine is asked to write.

    Attributes:
        model: Name of the model.
        prompt: Ids of the prompt and of what was emitted before.
        max_tokens: Most tokens to write.
        options: How.
    """

    model: str
    prompt: Sequence[int]
    max_tokens: int
    options: SamplingOptions


@dataclass(frozen=True, slots=True)
class EngineLogprobs:
    """How likely a token and the likeliest ones were: ids and natural logarithms."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class EngineTokens:
    """Tokens that are new, and their log-probabilities where they were asked for."""

    token_ids: Sequence[int]
    logprobs: Sequence[EngineLogprobs] = ()


@dataclass(frozen=True, slots=True)
class EngineEnd:
    """Why an engine stopped by itself."""

    finish_reason: FinishReason


class TokenEngine(Protocol):
    """An engine that takes token ids and gives token ids.

    Errors raised: `BackendUnavailable`, `BudgetExhausted`, `UnsupportedByModel`.

    Attributes:
        backend: Its name in errors.
        largest_seed: What it takes at the most.
    """

    backend: str
    largest_seed: int

    async def describe(self, *, deadline: Deadline) -> EngineModel:
        """The model that it serves."""
        ...

    async def tokenizer_archive(self, most_bytes: int, *, deadline: Deadline) -> bytes:
        """The ZIP archive of the model's tokenizer, whose checksum is right."""
        ...

    def generate(self, request: EngineRequest, *, deadline: Deadline) -> AsyncGenerator[EngineTokens | EngineEnd]:
        """Tokens as they are written, then the end. Closing it stops the engine's work."""
        ...

    async def close(self) -> None:
        """Frees the connections."""
        ...


@dataclass(frozen=True, slots=True)
class _Served:
    engine_model: EngineModel
    model: Model
    tokenizer: ChatTokenizer
    end_ids: frozenset[int]


class TokenModel:
    """See `ports.language_model.LanguageModel`: chat template, tokenizer and stop texts are ours, the engine writes ids.

    Args:
        engine: The engine.
        tokenizer: Folder of the model's tokenizer; None to take it from the engine.
        fresh: Seconds for which what the engine says of itself is believed; a call that fails ends them.
        kept_fresh: Seconds after the last request for which the engine goes on being asked, so that the next request need not.
    """

    def __init__(
        self, engine: TokenEngine, *, tokenizer: Path | None = None, fresh: float = 2.0, kept_fresh: float = 60.0
    ) -> None:
        self._engine = engine
        self._folder = tokenizer
        self._fresh = fresh
        self._kept_fresh = kept_fresh
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenizer")
        self._asking = asyncio.Lock()
        self._served: _Served | None = None
        self._believed_until = 0.0
        self._last_used = 0.0
        self._refreshing: asyncio.Task[None] | None = None

    async def models(self, *, deadline: Deadline) -> tuple[Model, ...]:
        """See the port."""
        return ((await self._serving(deadline)).model,)

    async def count_tokens(self, model: str, texts: Sequence[str], *, deadline: Deadline) -> tuple[int, ...]:
        """See the port."""
        served = await self._serving(deadline)
        _check_name(model, served.model)
        return await self._compute(lambda: served.tokenizer.count(texts), deadline)

    async def generate(
        self, request: GenerationRequest, *, deadline: Deadline
    ) -> AsyncGenerator[TokenDelta | ToolCallPiece | GenerationEnd]:
        """See the port."""
        served = await self._serving(deadline)
        model, tokenizer = served.model, served.tokenizer
        _check_name(request.options.model, model)
        check_request(request, model, largest_seed=self._engine.largest_seed)
        emitted = check_resumed_ids(request, tokenizer.size)
        try:
            if sum(len(message.text) for message in request.messages) <= _AT_ONCE:
                prompt = tokenizer.prompt(request.messages)
            else:
                prompt = await self._compute(lambda: tokenizer.prompt(request.messages), deadline)
        except TemplateRefused as error:
            raise UnsupportedByModel(model.name, f"these messages: {error}") from None
        limit = token_limit(request, model, len(prompt))
        written = _Writing(tokenizer, request, emitted, limit)
        reason = FinishReason.LENGTH
        if limit > len(emitted):
            ask = EngineRequest(model.name, [*prompt, *emitted], limit - len(emitted), request.options)
            try:
                async with aclosing(self._engine.generate(ask, deadline=deadline)) as events:
                    async for event in events:
                        if isinstance(event, EngineEnd):
                            reason = event.finish_reason
                            break
                        for delta in written.take(event, served.end_ids):
                            yield delta
                        if written.finish_reason is not None:
                            reason = written.finish_reason
                            break
            except BackendUnavailable:
                self._believed_until = 0.0
                raise
        for delta in written.finish(complete=reason is FinishReason.STOP):
            yield delta
        if written.stopped:
            reason = FinishReason.STOP
        yield GenerationEnd(reason, Usage(len(prompt), written.count), resumptions(request))

    async def close(self) -> None:
        """See the port."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._engine.close()

    async def _serving(self, deadline: Deadline) -> _Served:
        """What the engine serves now, and its tokenizer."""
        self._last_used = now = time.monotonic()
        served = self._served
        if served is not None and now < self._believed_until:
            self._keep()
            return served
        if deadline.expired:
            raise BudgetExhausted("generator", "generation")
        try:
            async with asyncio.timeout(deadline.remaining()), self._asking:
                served = self._served
                if served is None or time.monotonic() >= self._believed_until:
                    served = await self._refresh(deadline)
        except TimeoutError:
            raise BudgetExhausted("generator", "finding the model") from None
        self._keep()
        return served

    def _keep(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._keep_fresh(), name="asking an engine what it serves")

    async def _refresh(self, deadline: Deadline) -> _Served:
        served = self._served = await self._ask(deadline)
        self._believed_until = time.monotonic() + self._fresh
        return served

    async def _keep_fresh(self) -> None:
        """Asks before what is known is too old, as long as there are requests: none of them waits for it then."""
        while time.monotonic() - self._last_used < self._kept_fresh:
            await asyncio.sleep(self._fresh / 2)
            try:
                async with self._asking:
                    await self._refresh(Deadline.after(_MOST_ASKING))
            except LoremeshError as error:
                # The next request asks itself, and is told why.
                self._believed_until = 0.0
                _log.debug("the %s engine does not say what it serves: %s", self._engine.backend, error)
                return

    async def _ask(self, deadline: Deadline) -> _Served:
        found = await self._engine.describe(deadline=deadline)
        if self._served is not None and self._served.engine_model == found:
            return self._served
        archive = b""
        if self._folder is None:
            archive = await self._engine.tokenizer_archive(MOST_ARCHIVE_BYTES, deadline=deadline)
        try:
            tokenizer = await self._compute(lambda: self._tokenizer(archive), deadline)
        except TokenizerRefused as error:
            _log.error("the tokenizer of model %s at the %s engine: %s", found.name, self._engine.backend, error)
            raise UnsupportedByModel(found.name, f"text: its tokenizer is refused, {error}") from None
        if found.vocabulary and tokenizer.size > found.vocabulary:
            raise UnsupportedByModel(
                found.name,
                f"this tokenizer: it has ids up to {tokenizer.size - 1}, the model {found.vocabulary} ids",
            )
        parts = [found.name, *found.identity, tokenizer.hash, tokenizer.template_hash]
        fingerprint = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        model = Model(found.name, found.context_tokens, tokenizer.hash, fingerprint, found.capabilities)
        return _Served(found, model, tokenizer, found.end_ids | tokenizer.end_ids)

    def _tokenizer(self, archive: bytes) -> ChatTokenizer:
        return ChatTokenizer(read_archive(archive) if self._folder is None else read_folder(self._folder))

    async def _compute(self, work: Callable[[], _Result], deadline: Deadline) -> _Result:
        """Runs work that takes milliseconds for a long text outside the event loop."""
        try:
            async with asyncio.timeout(deadline.remaining()):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except TimeoutError:
            raise BudgetExhausted("generator", "tokenization") from None


class _Writing:
    """An answer as it grows: ids to deltas, up to a stop text, an end token or the limit."""

    def __init__(
        self, tokenizer: ChatTokenizer, request: GenerationRequest, emitted: Sequence[int], limit: int
    ) -> None:
        self._tokenizer = tokenizer
        self._top = request.options.top_logprobs
        self._detokenizer = Detokenizer(tokenizer.decode, emitted)
        self._stops = StopTexts(request.options.stop)
        self._logprobs: list[TokenLogprobs] = []
        self._left = limit - len(emitted)
        self.count = len(emitted)
        self.finish_reason: FinishReason | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop text came."""
        return self._stops.stopped

    def take(self, tokens: EngineTokens, end_ids: frozenset[int]) -> list[TokenDelta]:
        """What can be given out after these tokens."""
        deltas: list[TokenDelta] = []
        for place, token in enumerate(tokens.token_ids):
            if token in end_ids:
                self.finish_reason = FinishReason.STOP
                break
            if self._top and place < len(tokens.logprobs):
                self._logprobs.append(self._named(token, tokens.logprobs[place]))
            deltas += self._through_stops(self._detokenizer.add(token))
            self._left -= 1
            if self.stopped:
                self.finish_reason = FinishReason.STOP
                break
            if self._left <= 0:
                # The engine's own end may follow, or never come.
                self.finish_reason = FinishReason.LENGTH
                break
        return deltas

    def finish(self, *, complete: bool) -> list[TokenDelta]:
        """What was held back."""
        if self.stopped:
            return []
        deltas = self._through_stops(self._detokenizer.finish(complete=complete))
        return deltas if self.stopped else [*deltas, *map(self._delta, self._stops.flush())]

    def _through_stops(self, piece: Piece | None) -> list[TokenDelta]:
        if piece is None:
            return []
        if self._logprobs:
            told = tuple(self._logprobs[: piece.token_count])
            del self._logprobs[: piece.token_count]
            piece = Piece(piece.text, piece.token_ids, piece.token_count, told)
        return [self._delta(ready) for ready in self._stops.add(piece)]

    def _delta(self, piece: Piece) -> TokenDelta:
        delta = TokenDelta(piece.text, self.count, piece.token_count, piece.token_ids, piece.logprobs)
        self.count += piece.token_count
        return delta

    def _named(self, token: int, logprobs: EngineLogprobs) -> TokenLogprobs:
        text = self._tokenizer.token_text
        top = sorted(logprobs.top, key=lambda entry: -entry[1])[: self._top]
        return TokenLogprobs(
            TokenLogprob(text(token), token, logprobs.logprob),
            tuple(TokenLogprob(text(other), other, logprob) for other, logprob in top),
        )


def _check_name(name: str, model: Model) -> None:
    if name not in ("", model.name):
        raise ModelNotFound(name, (model.name,))
