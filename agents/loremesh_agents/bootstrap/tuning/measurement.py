"""How an engine does under a load of prompts."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain, repeat

from loremesh_agents.bootstrap.tuning.engine_process import EngineProcess, gpu_megabytes
from loremesh_agents.domain.answer import TokenDelta, Usage
from loremesh_agents.domain.conversation import Message, Role
from loremesh_agents.domain.deadline import Deadline
from loremesh_agents.ports.language_model import GenerationEnd, GenerationRequest, LanguageModel, SamplingOptions

_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine is measured under.

    Attributes:
        prompts: Questions, at least one.
        concurrency: Generations at once.
        rounds: How often each prompt is written to.
        max_tokens: Most tokens of an answer.
        seconds: Most that a generation may take.
    """

    prompts: Sequence[str]
    concurrency: int
    rounds: int
    max_tokens: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came out: times in milliseconds, memory in megabytes.

    Attributes:
        first_token_p50: Half of the first tokens came within this time.
        first_token_p99: 99 of 100 did.
        tokens_per_second: Of all answers together.
        weight: Tokens of a prompt and of the longest answer to it, in the mean.
        memory: Most that the processes of the engine had; None where that cannot be seen.
        gpu_memory: Most that was in use on the GPUs, less what was before the engine began; None without GPUs.
    """

    first_token_p50: float
    first_token_p99: float
    tokens_per_second: float
    weight: float
    memory: float | None
    gpu_memory: float | None


async def measure(model: LanguageModel, load: Load, process: EngineProcess, *, gpu_before: float | None) -> Measurement:
    """Measures a running engine, after one answer that does not count.

    Args:
        model: The engine.
        load: What to ask of it.
        process: Its processes.
        gpu_before: Memory in use on the GPUs before it was started.

    Raises:
        LoremeshError: A generation failed.
    """
    await _write(model, load.prompts[0], load)
    peaks = _Peaks(process)
    sampling = asyncio.create_task(peaks.sample())
    try:
        began = time.monotonic()
        written = await _write_all(model, load)
        seconds = time.monotonic() - began
    finally:
        sampling.cancel()
        await asyncio.wait([sampling])
    await peaks.take()
    firsts = sorted(first for first, _ in written)
    tokens = sum(usage.completion_tokens for _, usage in written)
    prompts = sum(usage.prompt_tokens for _, usage in written) / len(written)
    gpu = None if peaks.gpu is None or gpu_before is None else max(0.0, peaks.gpu - gpu_before)
    return Measurement(
        first_token_p50=_percentile(firsts, 0.5) * 1e3,
        first_token_p99=_percentile(firsts, 0.99) * 1e3,
        tokens_per_second=tokens / seconds,
        weight=prompts + load.max_tokens,
        memory=peaks.memory,
        gpu_memory=gpu,
    )


class _Peaks:
    """The most memory that was seen."""

    def __init__(self, process: EngineProcess) -> None:
        self._process = process
        self.memory: float | None = None
        self.gpu: float | None = None

    async def take(self) -> None:
        memory, gpu = await self._process.resident_megabytes(), await gpu_megabytes()
        self.memory = memory if self.memory is None else max(self.memory, memory or 0.0)
        self.gpu = gpu if self.gpu is None else max(self.gpu, gpu or 0.0)

    async def sample(self) -> None:
        while True:
            await self.take()
            await asyncio.sleep(_SAMPLE_SECONDS)


async def _write_all(model: LanguageModel, load: Load) -> list[tuple[float, Usage]]:
    todo: Iterator[str] = chain.from_iterable(repeat(tuple(load.prompts), load.rounds))
    written: list[tuple[float, Usage]] = []

    async def work() -> None:
        # All take their prompts from one iterator.
        written.extend([await _write(model, prompt, load) for prompt in todo])

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(load.concurrency):
                group.create_task(work())
    except ExceptionGroup as errors:
        # One failure stops the others, and is the one that counts.
        raise errors.exceptions[0] from None
    return written


async def _write(model: LanguageModel, prompt: str, load: Load) -> tuple[float, Usage]:
    """Seconds to the first token, and what it was."""
    request = GenerationRequest(
        (Message(Role.USER, prompt),), prompt, options=SamplingOptions(max_tokens=load.max_tokens, temperature=0.0)
    )
    began = time.monotonic()
    first: float | None = None
    usage = Usage()
    async with aclosing(model.generate(request, deadline=Deadline.after(load.seconds))) as events:
        async for event in events:
            if isinstance(event, TokenDelta) and first is None:
                first = time.monotonic() - began
            elif isinstance(event, GenerationEnd):
                usage = event.usage
    return time.monotonic() - began if first is None else first, usage


def _percentile(ascending: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return ascending[math.ceil(share * len(ascending)) - 1]
